"""Model repositories: Triton reads their configurations, and the models have everything that they need."""

import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from e3d_deploy import __version__
from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.errors import BundleError, ConfigError
from e3d_deploy.files import sha256
from e3d_deploy.runtime import Bundle, load
from e3d_deploy.triton import contract
from e3d_deploy.triton.config import Serving, Word, text_of
from e3d_deploy.triton.names import name_of
from e3d_deploy.triton.repository import write_repository
from tests.manifests import rewrite, sidecar
from tests.tools import contents
from tests.triton.configs import config_of


def test_the_configuration_of_the_python_flavour_follows_the_contract(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    serving = Serving(max_streams=5, max_batch=3, idle_s=1.5, backend="openvino", threads=2)
    (model,) = write_repository([bundle], tmp_path / "models", serving=serving)
    config = config_of(tmp_path / "models" / "tiny")
    assert (model.name, config.name, config.backend, config.max_batch_size) == ("tiny", "tiny", "python", 3)
    uint8, int32, fp32 = (model_config_pb2.DataType.Value(f"TYPE_{name}") for name in ("UINT8", "INT32", "FP32"))
    assert [(one.name, one.data_type, [*one.dims], one.optional) for one in config.input] == [
        (contract.PICTURE, uint8, [16, 24, 1], False),
        (contract.HORIZON, int32, [1], True),
    ]
    assert [(one.name, one.data_type, [*one.dims]) for one in config.output] == [
        (contract.PREDICTION, fp32, [1, 16, 24]),
        (contract.FORECAST, uint8, [-1, 16, 24, 1]),
    ]
    batching = config.sequence_batching
    assert batching.max_sequence_idle_microseconds == 1_500_000
    assert (batching.oldest.max_candidate_sequences, batching.oldest.max_queue_delay_microseconds) == (5, 2000)
    kinds = model_config_pb2.ModelSequenceBatching.Control
    assert [(one.name, one.control[0].kind) for one in batching.control_input] == [
        (contract.START, kinds.CONTROL_SEQUENCE_START),
        (contract.END, kinds.CONTROL_SEQUENCE_END),
    ]
    assert [[*one.control[0].bool_false_true] for one in batching.control_input] == [[False, True]] * 2
    values = {key: one.string_value for key, one in config.parameters.items()}
    assert values == {
        "e3d_contract": contract.VERSION,
        "e3d_bundle": bundle.identity,
        "e3d_version": __version__,
        "e3d_context": "4",
        "e3d_renewal": model.renewal,
        "e3d_backend": "openvino",
        "e3d_threads": "2",
    }


def test_the_text_of_a_message_survives_parsing_and_writing() -> None:
    message = {
        "name": 'a "quoted" näme\n',
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": Word("TYPE_FP32"), "dims": [-1, 2], "optional": True}],
        "parameters": [{"key": "k", "value": {"string_value": ""}}],
        "instance_group": [],
    }
    parsed = text_format.Parse(text_of(message), model_config_pb2.ModelConfig())
    assert (parsed.name, [*parsed.input[0].dims], parsed.input[0].optional) == ('a "quoted" näme\n', [-1, 2], True)
    assert text_format.Parse(text_format.MessageToString(parsed), model_config_pb2.ModelConfig()) == parsed


@pytest.mark.parametrize(
    ("serving", "kind"),
    [
        (Serving(), "KIND_CPU"),
        (Serving(device="gpu"), "KIND_GPU"),
        (Serving(backend="torch-cuda-graph"), "KIND_GPU"),
        (Serving(backend="torch"), "KIND_CPU"),
    ],
)
def test_instances_run_on_the_device_class_of_the_backend(
    serving: Serving, kind: str, bundle_path: Path, tmp_path: Path
) -> None:
    (model,) = write_repository([Bundle.open(bundle_path)], tmp_path / "models", serving=serving)
    (group,) = config_of(tmp_path / "models" / "tiny").instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.Kind.Value(kind))
    assert model.device == kind.removeprefix("KIND_").lower()


def test_the_model_holds_a_complete_copy_of_the_bundle(bundle_path: Path, tmp_path: Path) -> None:
    write_repository([Bundle.open(bundle_path)], tmp_path / "models")
    copy = tmp_path / "models" / "tiny" / "1" / "bundle.e3d"
    assert contents(copy) == contents(bundle_path)
    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 1), np.uint8)
    with load(copy, "onnxruntime") as one, load(bundle_path, "onnxruntime") as other:
        streams = one.stream(), other.stream()
        for picture in clip:
            for stream in streams:
                stream.push(picture)
        np.testing.assert_array_equal(streams[0].prediction, streams[1].prediction)


def with_engine(bundle: Path) -> Bundle:
    """Return a bundle with a file in place of a plan, in the form that `e3d build` writes."""
    (bundle / "engines").mkdir()
    names = ("engines/step.tensorrt.plan", "engines/step.tensorrt.json")
    for name in names:
        (bundle / name).write_bytes(b"native code")
    manifest = Bundle.open(bundle).manifest
    rewrite(
        bundle,
        engines={"step.tensorrt": sidecar()},
        verification={"tensorrt": Verification(), "torch": Verification()},
        files={**manifest.files, **{name: sha256(bundle / name) for name in names}},
    )
    return Bundle.open(bundle)


def test_engines_are_copied_only_if_they_are_asked_for(bundle_path: Path, tmp_path: Path) -> None:
    bundle = with_engine(bundle_path)
    write_repository([bundle], tmp_path / "without")
    copied = Bundle.open(tmp_path / "without" / "tiny" / "1" / "bundle.e3d")
    assert (dict(copied.manifest.engines), (copied.path / "engines").exists()) == ({}, False)
    write_repository([bundle], tmp_path / "with", engines=True)
    assert contents(tmp_path / "with" / "tiny" / "1" / "bundle.e3d") == contents(bundle_path)


def test_a_file_that_changes_during_the_copy_leaves_nothing(bundle_path: Path, tmp_path: Path) -> None:
    bundle = with_engine(bundle_path)
    (bundle_path / "engines" / "step.tensorrt.plan").write_bytes(b"other code")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=r"step\.tensorrt\.plan: changed while it was copied; run the command again"):
        write_repository([bundle], tmp_path / "models", engines=True)
    assert contents(tmp_path) == before


def test_a_bundle_for_a_fixed_batch_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    rewrite(bundle_path, batch=2)
    with pytest.raises(BundleError, match="its graphs take 2 streams at once; export with --batch any"):
        write_repository([Bundle.open(bundle_path)], tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_existing_folder_is_replaced_only_if_it_is_a_repository_and_this_is_asked_for(
    bundle_path: Path, tmp_path: Path
) -> None:
    bundle, output = Bundle.open(bundle_path), tmp_path / "models"
    write_repository([bundle], output, name="old")
    with pytest.raises(ConfigError, match="already exists; give --overwrite"):
        write_repository([bundle], output)
    write_repository([bundle], output, overwrite=True)
    assert [one.name for one in output.iterdir()] == ["tiny"]
    (output / "other").mkdir()
    (output / "other" / "config.pbtxt").write_text('name: "other"\n')
    before = contents(output)
    with pytest.raises(ConfigError, match="contains other, which `e3d pack --triton` did not write"):
        write_repository([bundle], output, overwrite=True)
    assert contents(output) == before
    (output / "other" / "config.pbtxt").unlink()
    (output / "other").rmdir()
    (output / "tiny" / "2").mkdir()
    with pytest.raises(ConfigError, match="contains tiny/2, which `e3d pack --triton` did not write"):
        write_repository([bundle], output, overwrite=True)
    assert (output / "tiny" / "2").exists()
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match="already exists and is not a folder, so it is not replaced"):
        write_repository([bundle], tmp_path / "file", overwrite=True)
    assert [one for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_a_file_of_the_user_in_a_version_is_not_deleted(bundle_path: Path, tmp_path: Path) -> None:
    bundle, output = Bundle.open(bundle_path), tmp_path / "models"
    write_repository([bundle], output, flavours=["python", "onnxruntime"])
    (output / "tiny" / "1" / "__pycache__").mkdir()  # the server makes it
    write_repository([bundle], output, flavours=["python", "onnxruntime"], overwrite=True)
    (output / "tiny" / "1" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains tiny/1/notes\.txt, which `e3d pack --triton` did not write"):
        write_repository([bundle], output, overwrite=True)
    assert (output / "tiny" / "1" / "notes.txt").read_text() == "mine"


def test_two_bundles_with_one_model_name_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = bundle_path.rename(tmp_path / "other" / "my tiny.e3d")
    bundles = [Bundle.open(twin), Bundle.open(twin.rename(tmp_path / "my_tiny.e3d"))]
    bundles = [Bundle.open(tmp_path / "my_tiny.e3d"), bundles[0]]
    with pytest.raises(ConfigError, match=r"my_tiny\.e3d and .*my tiny\.e3d both give the model my_tiny; rename one"):
        write_repository(bundles, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "-a", "a b", "ä", "a\n"])
def test_an_invalid_model_name_is_refused(name: str, bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected letters, digits, underscores"):
        write_repository([Bundle.open(bundle_path)], tmp_path / "models", name=name)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("film.e3d", "film"), ("my film.e3d", "my_film"), ("plain", "plain"), (".e3d", "model"), (".x.e3d", "_x"),
     ("é-1.2.e3d", "_-1.2")],
)  # fmt: skip
def test_the_name_of_a_bundle_becomes_a_valid_model_name(folder: str, name: str, tmp_path: Path) -> None:
    assert name_of(tmp_path / folder) == name


def test_a_repository_and_its_bundles_do_not_contain_one_another(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    with pytest.raises(ConfigError, match="is inside the bundle"):
        write_repository([bundle], bundle_path / "models")
    write_repository([bundle], tmp_path / "models")
    inner = Bundle.open(tmp_path / "models" / "tiny" / "1" / "bundle.e3d")
    with pytest.raises(ConfigError, match="contains the bundle"):
        write_repository([inner], tmp_path / "models", overwrite=True)
    assert json.loads((inner.path / "manifest.json").read_text())["name"] == "tiny"


def test_a_bundle_with_only_the_step_graph_can_be_served(bundle_path: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    rewrite(bundle_path, graphs=tuple(one for one in manifest.graphs if one.name == "step"))
    write_repository([Bundle.open(bundle_path)], tmp_path / "models", flavours=["python", "onnxruntime"])
    with load(tmp_path / "models" / "tiny" / "1" / "bundle.e3d", "onnxruntime") as predictor:
        stream = predictor.stream()
        stream.push(np.zeros((16, 24, 1), np.uint8))
        assert stream.predict(horizon=3).shape == (3, 16, 24, 1)
