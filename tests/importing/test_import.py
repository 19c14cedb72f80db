"""Import of checkpoints: models predict what the originals predicted, and unfit checkpoints are refused by name."""

import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ClipError, ConfigError
from e3d_deploy.importing import compare_outputs, google, import_checkpoint, openstl
from e3d_deploy.model import E3DLSTM, to_frames
from tests.golden import GOLDEN, channels_first, read
from tests.tools import e3d, largest_difference

FRAMES = 2e-5  # measured 7.2e-7 (A released), 8.6e-7 (A paper), 4.6e-6 (M), 2.2e-6 and 3.6e-6 (C)
OPENSTL = 5e-6  # measured 9.4e-7 (a_plain), 8.9e-7 (b_normed)
RELEASED = GOLDEN / "checkpoint_A_released"
PLAIN = GOLDEN / "openstl" / "a_plain.pth"

needs_tensorflow = pytest.mark.skipif(sys.version_info >= (3, 14), reason="TensorFlow has no wheel for this Python")


def predictions(model: E3DLSTM, frames: Tensor, horizon: int) -> Tensor:
    return model(frames[:, :-horizon], horizon)[:, -horizon:]


def write_tensorflow(prefix: Path, variables: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    """Write a TensorFlow V2 checkpoint of these variables."""
    google.read(RELEASED / "model.ckpt-5", ema=False)  # imports TensorFlow without its warnings
    import tensorflow

    names = list(variables)
    tensorflow.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tensorflow.constant(variables[name]) for name in names],
    )
    return prefix


def openstl_tensors(config: ModelConfig, seed: int = 0) -> tuple[E3DLSTM, dict[str, Tensor]]:
    """Return a network with weights that affect the result, and its weights under OpenSTL's names."""
    torch.manual_seed(seed)
    model = E3DLSTM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight += 0.1 * torch.randn_like(weight)
    names = openstl.names_of(config)
    return model, {names[ours]: weight.clone() for ours, weight in model.state_dict().items()}


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(image_size=(16, 24), hidden=(4, 4), kernel_size=3, semantics="openstl", layer_norm=False)


# Predictions of the originals


@needs_tensorflow
@pytest.mark.parametrize(("name", "horizon", "side"), [("A_released", 3, 16), ("A_paper", 3, 16), ("M_paper", 10, 64)])
def test_a_tensorflow_checkpoint_predicts_like_the_released_code(name: str, horizon: int, side: int) -> None:
    arrays, settings = read(GOLDEN / f"checkpoint_{name}" / "predictions.npz")
    variant = settings["variant"]
    model = import_checkpoint(GOLDEN / f"checkpoint_{name}", memory=variant, image_size=(side, side)).model
    assert model.config.hidden == tuple(settings["hidden"])
    assert model.config.semantics == {"released": "google", "paper": "paper"}[variant]
    frames, expected = (to_frames(channels_first(arrays[part]), 4) for part in ("x", "pred"))
    assert largest_difference(predictions(model, frames, horizon), expected) < FRAMES


@needs_tensorflow
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_layers_of_unequal_size_show_their_memory(variant: str, tmp_path: Path) -> None:
    arrays, settings = read(GOLDEN / f"model_C_{variant}.npz")
    weights = {name.removeprefix("w/"): value for name, value in arrays.items() if name.startswith("w/")}
    prefix = write_tensorflow(tmp_path / "model.ckpt-1", weights)
    imported = import_checkpoint(prefix, image_size=(settings["height"], settings["width"]))
    model = imported.model
    (memory,) = (one for one in imported.evidence if one.what == "memory")
    assert (memory.value, memory.how[:19]) == (variant, "kernels of conv3d_2")
    expected = to_frames(channels_first(arrays["free/out"]), 4)
    found = predictions(model, channels_first(arrays["images"]), expected.shape[1])
    assert largest_difference(found, expected) < FRAMES
    other: Any = {"released": "paper", "paper": "released"}[variant]
    with pytest.raises(ConfigError, match=f"memory: got {other}, but the kernels of conv3d_2 are for {variant}"):
        import_checkpoint(prefix, memory=other)


@needs_tensorflow
def test_ema_imports_the_moving_averages() -> None:
    imported = import_checkpoint(RELEASED, ema=True, memory="released")
    model = imported.model
    plain = import_checkpoint(RELEASED, memory="released").model
    recorded, _ = read(GOLDEN / "trace_A_released.npz")
    names = google.names_of(model.config)
    for ours, weight in model.state_dict().items():
        expected = torch.tensor(recorded[f"ema/{names[ours]}"])
        assert torch.equal(weight, expected.permute(google.KERNEL_AXES) if expected.ndim == 5 else expected), ours
    assert not torch.equal(model.to_patch.weight, plain.to_patch.weight)
    assert ("weights", "moving averages") in [(one.what, one.value) for one in imported.evidence]


@pytest.mark.parametrize(("name", "patch_size"), [("mnist", 4), ("kth", 8)])
def test_the_published_settings_are_recognised(name: str, patch_size: int) -> None:
    variables = json.loads((GOLDEN / f"variables_official_{name}.json").read_text())["variables"]
    parameters = {one["name"]: one["shape"] for one in variables if one["role"] == "parameter"}
    config, _ = google.identify(
        parameters, memory="released", patch_size=None, channels=None, image_size=(128, 128), source=name
    )
    assert (config.hidden, config.kernel_size, config.patch_size, config.channels) == ((64,) * 4, 5, patch_size, 1)
    assert set(google.names_of(config).values()) == set(parameters)


@pytest.mark.parametrize("name", ["a_plain.pth", "b_normed.ckpt"])
def test_an_openstl_checkpoint_predicts_like_openstl(name: str) -> None:
    model = import_checkpoint(GOLDEN / "openstl" / name).model
    recorded = GOLDEN / "openstl" / name
    settings = json.loads(recorded.with_suffix(".json").read_text())
    config = model.config
    assert config.hidden == tuple(settings["hidden"])
    assert config.image_size == tuple(settings["image"])
    assert (config.patch_size, config.channels) == (settings["patch_size"], settings["channels"])
    assert config.layer_norm == bool(settings["layer_norm"])
    parity = compare_outputs(model, recorded.with_suffix(".npz"))
    assert list(parity.differences) == [2, 3, 4, 5, 6]  # all_outputs includes the predictions within the context
    assert parity.worst < OPENSTL
    with pytest.raises(ClipError, match=r"cannot be read \(Is a directory\)"):
        compare_outputs(model, GOLDEN)


# The command


@needs_tensorflow
def test_import_writes_a_model_and_shows_the_evidence(tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    options = ["--image-size", "16x16", "--reference", RELEASED / "predictions.npz"]
    result = e3d("import", RELEASED / "model.ckpt-5", "-o", output, *options)
    assert "google/e3d_lstm" in result.stdout
    assert "assumed; set it with --memory" in result.stdout
    assert result.stdout.splitlines()[-1] == str(output)
    assert "the weights do not show which memory they were trained with; assumed `released`" in result.stderr
    assert "PASS largest difference" in result.stderr
    assert f"next: e3d export {output} -o m.e3d" in result.stderr
    config = checkpoint.load(output).config
    assert (config.semantics, config.norm_eps, config.image_size) == ("google", 1e-12, (16, 16))

    again = ["import", PLAIN, "-o", output]
    assert "already exists; give --overwrite" in e3d(*again, code=2).stderr
    e3d(*again, "--overwrite")
    assert checkpoint.load(output).config.semantics == "openstl"
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@needs_tensorflow
@pytest.mark.parametrize("name", ["", "model.ckpt-5", "model.ckpt-5.index", "model.ckpt-5.data-00000-of-00001"])
def test_a_tensorflow_checkpoint_is_found_by_any_of_its_names(name: str) -> None:
    model = import_checkpoint(RELEASED / name, memory="released").model
    assert (model.config.hidden, model.config.image_size) == ((4, 4), (64, 64))


def test_a_folder_records_which_of_its_checkpoints_is_the_latest(tmp_path: Path) -> None:
    for step in (5, 10):
        (tmp_path / f"model.ckpt-{step}.index").touch()
    with pytest.raises(CheckpointError, match="has 2 checkpoints; give one of them, such as"):
        google.prefix_of(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/home/else/model.ckpt-10"\n')
    assert google.prefix_of(tmp_path) == tmp_path / "model.ckpt-10"


def test_a_model_that_differs_from_the_original_is_not_written(tmp_path: Path) -> None:
    tensors = torch.load(PLAIN, weights_only=True)
    tensors["conv_last.weight"] *= 1.01
    torch.save(tensors, tmp_path / "other.pth")
    options = ["-o", tmp_path / "m.safetensors", "--reference", PLAIN.with_suffix(".npz")]
    result = e3d("import", tmp_path / "other.pth", *options, code=3)
    assert "FAIL largest difference" in result.stderr
    assert "the model does not reproduce the original network" in result.stderr
    assert not (tmp_path / "m.safetensors").exists()

    tensors["conv_last.weight"][0] = torch.nan
    torch.save(tensors, tmp_path / "other.pth")
    assert "conv_last.weight holds 16 of 256 values" in e3d("import", tmp_path / "other.pth", *options, code=5).stderr


NOISE = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"frames": np.zeros((1, 6, 16, 16, 1), np.uint8)}, "has frames; expected an .npz with frames"),
        (
            {"images": np.zeros((1, 3, 16, 16, 1), np.uint8), "pred_images": np.zeros((1, 3, 16, 16, 1))},
            "3 predictions for 3 frames leave no context",
        ),
        (
            {"frames": np.zeros((1, 3, 32, 16, 1), np.uint8), "predictions": np.zeros((1, 1, 32, 16, 1))},
            "expected [..., 16, 16, 1]",
        ),
        (
            {"frames": np.zeros((2, 3, 16, 16, 1), np.uint8), "predictions": np.zeros((1, 1, 16, 16, 1))},
            "outputs of shape [1, 1, 16, 16, 1], expected [2, 1, 16, 16, 1]",
        ),
        (
            {"frames": np.zeros((1, 30, 16, 16, 1), np.uint8), "predictions": np.zeros((1, 20, 16, 16, 1))},
            "the original recalls all; import it with --history-length 29",
        ),
        (
            {"frames": np.zeros((1, 3, 16, 16, 1), np.uint8), "predictions": np.zeros((1, 1, 16, 16, 1))},
            "has no frame with a contrast above 0 of 255 grey levels",
        ),
        (
            {"frames": np.zeros((0, 3, 16, 16, 1), np.uint8), "predictions": np.zeros((0, 1, 16, 16, 1))},
            "has no frame with a contrast above 0 of 255 grey levels",
        ),
        ({"frames": NOISE, "predictions": NOISE[:, 2:]}, "its predictions are uint8; record"),
        ({"frames": NOISE, "predictions": NOISE[:, 2:] + np.inf}, "its predictions contain NaN or infinity"),
        (
            {"frames": NOISE, "predictions": NOISE[:, 2:] * 1e-7},
            "its predictions differ by at most 2.5e-05, which is within",
        ),
    ],
    ids=[
        "no predictions",
        "no context",
        "another size",
        "another batch",
        "too long",
        "black",
        "none",
        "uint8",
        "infinite",
        "all the same",
    ],
)
def test_an_unfit_reference_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray[Any, Any]], message: str) -> None:
    np.savez(tmp_path / "r.npz", **arrays)  # type: ignore[arg-type]
    options = ["-o", tmp_path / "m.safetensors", "--reference"]
    assert message in e3d("import", PLAIN, *options, tmp_path / "r.npz", code=2).stderr
    assert "no such file" in e3d("import", PLAIN, *options, tmp_path / "none.npz", code=2).stderr
    assert "cannot be read" in e3d("import", PLAIN, *options, __file__, code=2).stderr
    assert not (tmp_path / "m.safetensors").exists()


# Properties that shapes do not show


def test_a_stride_is_taken_from_lightning_or_the_user(tmp_path: Path, tiny: ModelConfig) -> None:
    config = ModelConfig.from_dict(tiny.to_dict() | {"stride": 2, "layer_norm": True})
    model, tensors = openstl_tensors(config)
    frames = torch.rand(2, 3, 1, 16, 24)
    wrapped = {f"model.module.{name}": tensor for name, tensor in tensors.items()}
    kept = {"stride": 2, "patch_size": 4, "in_shape": [10, 1, 16, 24]}
    torch.save({"state_dict": wrapped, "hyper_parameters": kept}, tmp_path / "kept.ckpt")
    torch.save(tensors, tmp_path / "bare.pth")
    for name, stride, how in (("kept.ckpt", None, "stored by Lightning"), ("bare.pth", 2, "--stride")):
        imported = import_checkpoint(tmp_path / name, stride=stride)
        found = imported.model
        assert found.config == config
        assert torch.equal(found(frames, 2), model(frames, 2))
        assert ("stride", "2", how) in [(one.what, one.value, one.how) for one in imported.evidence]
    assert import_checkpoint(tmp_path / "bare.pth").model.config.stride == 1


def test_frames_of_other_colours_need_an_option(tmp_path: Path) -> None:
    """Frames of TaxiBJ have 2 colours."""
    config = ModelConfig(image_size=(8, 8), channels=2, patch_size=4, hidden=(4,), semantics="openstl")
    torch.save(openstl_tensors(config)[1], tmp_path / "taxi.pth")
    line = e3d("import", tmp_path / "taxi.pth", "-o", tmp_path / "m.safetensors", code=2).stderr
    assert "for patches of 32 channels; give one of --patch-size 1 --channels 32, " in line
    assert "--patch-size 4 --channels 2" in line
    for options in ({"channels": 2}, {"patch_size": 4}, {"channels": 2, "patch_size": 4}):
        assert import_checkpoint(tmp_path / "taxi.pth", **options).model.config == config  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for patches of 32 channels"):
        import_checkpoint(tmp_path / "taxi.pth", channels=1)


@needs_tensorflow
def test_a_longer_history_can_be_set() -> None:
    imported = import_checkpoint(RELEASED, memory="released", history_length=29)
    model = imported.model
    assert model.config.history_length == 29
    assert imported.evidence[-1].value == "29 cells"


@needs_tensorflow
def test_options_of_the_other_project_are_refused() -> None:
    with pytest.raises(ConfigError, match="stride: convolutions of google/e3d_lstm have none"):
        import_checkpoint(RELEASED, stride=2)
    for options in ({"ema": True}, {"memory": "paper"}):
        with pytest.raises(ConfigError, match=r"omit --(memory|ema)"):
            import_checkpoint(PLAIN, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the norms are for 16x16 pixels"):
        import_checkpoint(PLAIN, image_size=(64, 64))


# What is refused


def changed(tensors: dict[str, Any], change: str, name: str) -> dict[str, Any]:
    """Return the tensors with one of them damaged."""
    match change:
        case "missing":
            return {other: tensor for other, tensor in tensors.items() if other != name}
        case "unknown":
            return tensors | {f"{name}/extra": tensors[name]}
        case "shape":
            return tensors | {name: tensors[name][..., :-1]}
        case _:
            return tensors | {name: tensors[name].astype(np.int32)}


@needs_tensorflow
def test_tensorflow_variables_beyond_float32_or_of_two_patch_sizes_are_named(tmp_path: Path) -> None:
    arrays, _ = read(GOLDEN / "model_A_released.npz")
    weights = {key.removeprefix("w/"): value for key, value in arrays.items() if key.startswith("w/")}
    last = "generator/e3d-lstm/conv3d/kernel"
    beyond = write_tensorflow(tmp_path / "model.ckpt-1", weights | {last: weights[last].astype(np.float64) * 1e300})
    with pytest.raises(CheckpointError, match=f"{last} holds a weight of .* expected at most 3.40282e\\+38"):
        import_checkpoint(beyond, memory="released")
    halved = write_tensorflow(tmp_path / "model.ckpt-2", weights | {last: weights[last][..., :-1]})
    with pytest.raises(CheckpointError, match=f"e3d0/conv3d_1/kernel takes patches of .* and {last} gives"):
        import_checkpoint(halved, memory="released")


MESSAGES = {"missing": "lacks {}", "unknown": "holds {}/extra", "shape": "{} has the shape", "integers": "{} is"}


@needs_tensorflow
@pytest.mark.parametrize("change", MESSAGES)
@pytest.mark.parametrize("name", ["e3d1/conv3d_4/kernel", "e3d0/hidden/gamma", "conv3d/bias", "e3d0/conv3d_2/kernel"])
def test_a_tensorflow_variable_that_does_not_fit_is_named(change: str, name: str, tmp_path: Path) -> None:
    arrays, _ = read(GOLDEN / "model_A_released.npz")
    weights = {key.removeprefix("w/"): value for key, value in arrays.items() if key.startswith("w/")}
    full = f"generator/e3d-lstm/{name}"
    prefix = write_tensorflow(tmp_path / "model.ckpt-1", changed(weights, change, full))
    with pytest.raises(CheckpointError, match=MESSAGES[change].format(full)):
        import_checkpoint(prefix, memory="released")


@pytest.mark.parametrize("change", MESSAGES)
@pytest.mark.parametrize(
    "name", ["cell_list.0.conv_gm.0.conv3d.weight", "cell_list.1._norm_c_t.weight", "conv_last.weight"]
)
def test_an_openstl_tensor_that_does_not_fit_is_named(
    change: str, name: str, tmp_path: Path, tiny: ModelConfig
) -> None:
    tensors = {key: tensor.numpy() for key, tensor in openstl_tensors(tiny)[1].items()}
    damaged = {key: torch.from_numpy(array) for key, array in changed(tensors, change, name).items()}
    torch.save(damaged, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=MESSAGES[change].format(name)):
        import_checkpoint(tmp_path / "m.pth")


@needs_tensorflow
def test_another_architecture_is_refused_with_its_tensors_named(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3, 3), "encoder.bias": torch.zeros(3)}, tmp_path / "simvp.pth")
    prefix = write_tensorflow(tmp_path / "model.ckpt-1", {"predrnn/kernel": np.zeros((3, 3), np.float32)})
    for path, lacking, named in (
        (tmp_path / "simvp.pth", "cell_list.0._norm_c_t.weight", "encoder.weight, encoder.bias"),
        (prefix, "generator/e3d-lstm/e3d0/conv3d/kernel", "predrnn/kernel"),
    ):
        line = e3d("import", path, "-o", tmp_path / "m.safetensors", code=5).stderr
        assert f"lacks {lacking} and contains {named}; it contains a different network" in line


class Malicious:
    """Object that writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.mark, "was run"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_not_run(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "m.pth"
    content = {"state_dict": {"conv_last.weight": Malicious(mark)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    line = e3d("import", path, "-o", tmp_path / "m.safetensors", code=5).stderr
    assert ("nothing to import" if kind == "pickle" else "but only tensors are loaded; if you trust the file") in line
    assert [file.name for file in tmp_path.iterdir()] == ["m.pth"]
    pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False)
    assert mark.read_text() == "was run"  # torch.load runs it for users who trust the file


def zipped(folder: str, *names: str) -> bytes:
    """Return a zip archive with these members in a folder."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(f"{folder}/{name}", "content")
    return content.getvalue()


def test_a_changed_byte_is_found_by_its_checksum(tmp_path: Path, tiny: ModelConfig) -> None:
    tensors = openstl_tensors(tiny)[1]
    torch.save(tensors, tmp_path / "m.pth")
    content = bytearray((tmp_path / "m.pth").read_bytes())
    content[content.index(tensors["conv_last.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pth: is damaged \(Bad CRC-32 for file 'm/data/.*copy it again"):
        import_checkpoint(tmp_path / "m.pth")


def test_an_archive_without_checksums_is_imported(tmp_path: Path, tiny: ModelConfig) -> None:
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(openstl_tensors(tiny)[1], tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert import_checkpoint(tmp_path / "m.pth").model.config == tiny


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_is_recognised_by_its_content(zipped: bool, tmp_path: Path, tiny: ModelConfig) -> None:
    path = tmp_path / "m.safetensors"
    torch.save(openstl_tensors(tiny)[1], path, _use_new_zipfile_serialization=zipped)
    assert import_checkpoint(path).model.config == tiny


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("not a model")
    (tmp_path / "cut.pth").write_bytes(PLAIN.read_bytes()[:1000])
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "not a model")
    np.savez(tmp_path / "arrays.npz", weight=np.zeros(3))
    (tmp_path / "program.pth").write_bytes(zipped("program", "data.pkl", "code/__torch__.py", "constants.pkl"))
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"epoch": 3, "conv_last.weight": torch.zeros(3)}, tmp_path / "number.pth")
    for name, message in {
        "none.ckpt": "no such checkpoint, neither none.ckpt nor none.ckpt.index is there",
        "empty": "a folder without a TensorFlow checkpoint",
        "text.pth": "nothing to import",
        "cut.pth": "is damaged",
        "zip.pth": "is a zip archive without data.pkl, so torch.save did not write it",
        "arrays.npz": "is a NumPy .npz file, expected a dict of tensors; save its arrays as tensors with torch.save",
        "program.pth": "is a TorchScript program (torch.jit.save), expected a dict of tensors; save its state_dict",
        "list.pth": "holds a list, expected a dict of tensors",
        "number.pth": "epoch is a int, expected a tensor",
    }.items():
        code = 2 if name == "none.ckpt" else 5
        assert message in e3d("import", tmp_path / name, "-o", tmp_path / "m.safetensors", code=code).stderr
    for origin in ("google", "openstl"):
        missing = e3d("import", tmp_path / "none.ckpt", "--from", origin, "-o", tmp_path / "m.safetensors", code=2)
        assert "no such checkpoint, neither none.ckpt nor none.ckpt.index is there" in missing.stderr
    assert (
        "not a TensorFlow checkpoint" in e3d("import", PLAIN, "--from", "google", "-o", tmp_path / "m", code=5).stderr
    )
    assert "a folder" in e3d("import", RELEASED, "--from", "openstl", "-o", tmp_path / "m", code=5).stderr


@needs_tensorflow
@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_tensorflow_checkpoint_is_refused(suffix: str, damage: str, tmp_path: Path) -> None:
    shutil.copytree(RELEASED, tmp_path / "c")
    file = tmp_path / "c" / f"model.ckpt-5.{suffix}"
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[-300:-100] = b"\xff" * 200
    file.write_bytes(content[:1000] if damage == "cut" else content)
    if damage == "gone":
        file.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read|a folder without a TensorFlow"):
        import_checkpoint(tmp_path / "c", memory="released")


def test_without_tensorflow_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    line = e3d("import", RELEASED, "-o", tmp_path / "m.safetensors", code=4).stderr
    assert "tensorflow is not installed" in line
    assert "pip install 'e3d_deploy[import-tf]'" in line
    e3d("import", PLAIN, "-o", tmp_path / "m.safetensors")
