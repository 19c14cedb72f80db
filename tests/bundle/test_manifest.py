"""Manifest: the schema that reader, writer and docs share, invalid manifests, graphs per backend, and states."""

import ast
import inspect
import json
import math
import os
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from e3d_deploy import runtime
from e3d_deploy.bundle import manifest as manifest_module
from e3d_deploy.bundle import sidecar as sidecar_module
from e3d_deploy.bundle.folder import new_bundle, read_manifest, write_manifest
from e3d_deploy.bundle.manifest import Manifest
from e3d_deploy.bundle.schema import Entry, required
from e3d_deploy.errors import BackendUnavailable, BundleError, ConfigError, SnapshotError
from e3d_deploy.export.bundle import export
from e3d_deploy.files import sha256
from e3d_deploy.runtime import Bundle, Predictor, Snapshot
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.runtime.backends.registry import open_backend
from tests.bundle.test_old_bundle import OLD
from tests.manifests import changed, rewrite, sidecar

DOCS = Path(__file__).parents[2] / "docs" / "bundle.md"
ROUNDING = 1e-5
"""Largest difference between forecasts of two graphs of the same model; measured 6e-7 (AVX2)."""
UNKNOWN = {"later": {"deep": [1, None]}}
"""Field that the current version does not know."""


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return found


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the JSON of a bundle's manifest, and return the bundle's path."""
    found = content(path)
    change(found)
    (path / "manifest.json").write_text(json.dumps(found))
    return path


@pytest.fixture
def old_path(tmp_path: Path) -> Path:
    """Return a copy of a bundle of schema 1, which commit faccf7a wrote."""
    return Path(shutil.copytree(OLD / "tiny.e3d", tmp_path / "old.e3d"))


def test_a_manifest_is_written_as_it_was_read(exported: Path) -> None:
    for path in (exported / "tiny.e3d", OLD / "tiny.e3d"):
        assert Manifest.from_json(content(path)).to_json() == content(path)


def test_a_manifest_of_schema_1_is_written_in_schema_1(old_path: Path) -> None:
    before = content(old_path)
    write_manifest(old_path, read_manifest(old_path))
    after = content(old_path)
    assert after == before
    assert (after["schema"], list(after["graphs"])) == (1, ["step", "rollout", "clip"])


def test_a_bundle_of_schema_1_streams_by_the_states_of_its_config(old_path: Path) -> None:
    bundle = Bundle.open(old_path)
    assert bundle.manifest.states == ()
    assert {one.name: one.initial for one in bundle.states.tensors}["written"] == 1
    with runtime.load(old_path, "onnxruntime", threads=1) as predictor:
        stream = predictor.stream(Snapshot.load(OLD / "wrapped.npz"))
        stream.push(np.zeros((4, 6, 1), np.uint8))
        assert stream.snapshot().identity == bundle.identity
        assert bundle.identity not in bundle.earlier_identities


@pytest.mark.parametrize("source", ["new", "old"])
def test_unknown_fields_at_any_level_are_kept(bundle_path: Path, old_path: Path, source: str) -> None:
    path = bundle_path if source == "new" else old_path
    rewrite(path, engines={"step.tensorrt": sidecar()})

    def add(found: dict[str, Any]) -> None:
        graphs = found["graphs"]
        step = graphs[0] if source == "new" else graphs["step"]
        for place in (
            found,
            found["producer"],
            found["precision"],
            found["rounding"],
            step,
            step["inputs"][0],
            found["card"] if "card" in found else found.setdefault("card", {}),
            found["engines"]["step.tensorrt"],
            found["engines"]["step.tensorrt"]["options"],
            *(found["states"] if source == "new" else ()),
        ):
            place |= UNKNOWN

    before = content(edit(path, add))
    write_manifest(path, read_manifest(path))
    assert content(path) == before


@pytest.mark.parametrize("source", ["new", "old"])
@pytest.mark.parametrize("name", [*(name for name in required(Manifest) if name != "schema")])
def test_a_bundle_that_lacks_a_field_is_refused_when_it_is_opened(
    bundle_path: Path, old_path: Path, source: str, name: str
) -> None:
    path = edit(bundle_path if source == "new" else old_path, lambda found: found.pop(name))
    with pytest.raises(BundleError, match=f"manifest.json: lacks {name}; export the model again") as caught:
        Bundle.open(path)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["preprocessing"].pop("output"), "preprocessing: lacks output"),
        (lambda found: found["precision"].update(policy=1), r"precision\.policy: got 1, expected text"),
        (lambda found: found.update(batch=True), "batch: got True, expected a whole number"),
        (lambda found: found.update(batch=1.0), r"batch: got 1\.0, expected a whole number"),
        (lambda found: found.update(dynamic_batch=0), "dynamic_batch: got 0, expected true or false"),
        (lambda found: found["rounding"].update(states="0"), r"rounding\.states: got '0', expected a number"),
        (lambda found: found.update(graphs=3), "graphs: got 3, expected a list"),
        (lambda found: found["graphs"].append(found["graphs"][0]), "has two graphs step for all backends"),
        (lambda found: found["graphs"][0].update(backends="all"), r"graphs\[0\]\.backends: got 'all', expected a list"),
        (
            lambda found: found["graphs"][0]["inputs"][0].update(shape=[1, None]),
            r"shape\[1\]: got None, expected a whole number or text",
        ),
        (
            lambda found: found.update(engines={"step.tensorrt": {"sha256": "0"}}),
            r"step\.tensorrt: lacks build_seconds",
        ),
        (lambda found: found["rounding"].update(states=math.nan), "not a manifest .got NaN, expected a finite number"),
        (lambda found: found.update(later=[math.inf]), "not a manifest .got Infinity, expected a finite number"),
        (lambda found: found["files"].update({"a\0b": "0"}), r"files: got 'a\\x00b', expected a name of a file"),
        (lambda found: found["graphs"][0].update(backends=[]), r"graphs\.step\.backends: is empty, expected names"),
        (lambda found: found.update(schema=1), "graphs: got a list, expected an object by name in schema 1"),
        (lambda found: found.update(states=[]), "states: is empty, expected the states"),
        (
            lambda found: found["states"].pop(0),
            r"states\.cell\.0: got None, expected \('float32', .* as in the step graph",
        ),
        (
            lambda found: found["states"][0]["shape"].append(2),
            r"states\.cell\.0: got \('float32', .* as in the step graph",
        ),
        (lambda found: found["states"][4]["ring"].update(frames_to_fill=99), r"frames_to_fill: got 99, expected"),
        (lambda found: found.update(horizon=10**12), r"graphs\.clip: forecast has \(\d+,\) frames, expected 1000"),
        (lambda found: found.update(context_length=5), r"graphs\.clip: context has \(4,\) frames, expected 5"),
        (
            lambda found: found["precision"].update(budget={}),
            r"precision\.budget: got \{\}, expected limits of 0 or more",
        ),
        (
            lambda found: found["states"].reverse(),
            r"states: got \[.*\], expected each name once, in alphabetical order",
        ),
        (lambda found: found["states"][0].update(initial=0.5), r"states\[0\]\.initial: got 0\.5, expected a whole"),
        (
            lambda found: found["states"][0].update(dtype="bool"),
            r"states\.cell\.0\.dtype: got 'bool', expected float32",
        ),
        (
            lambda found: found["states"][0].update(shape=["batch", "N"]),
            r"states\.cell\.0\.shape: got \['batch', 'N'\]",
        ),
        (lambda found: found["states"][4]["ring"].update(counter="memory"), r"ring\.counter: got 'memory', expected a"),
        (
            lambda found: found["states"][4]["ring"].update(slots=3),
            r"history\.0\.ring\.slots: got 3, expected the second length of its shape",
        ),
        (lambda found: found["config"].pop("norm_eps"), "config: lacks norm_eps; the file is damaged, make it again"),
        (lambda found: found["config"].update(layer_norm="x"), "layer_norm: got 'x', expected true or false"),
        (
            lambda found: found["config"].update(history_length=7),
            r"history_length is 7, but 4 in model\.safetensors; export the model again",
        ),
        (
            lambda found: found["config"].update(hidden=[4, 4]),
            r"hidden is \(4, 4\), but \(4, 6\) in model\.safetensors",
        ),
        (lambda found: found.update(schema=True), "schema True, this version reads 1 and 2; update e3d_deploy"),
        (
            lambda found: found.update(schema=3),
            "schema 3, this version reads 1 and 2; update e3d_deploy or export again",
        ),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(
    bundle_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(edit(bundle_path, change))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "not made by e3d_deploy"),
        ({"e3d_deploy": "["}, "its config cannot be read"),
        ({"e3d_deploy": "{}"}, "its config cannot be read"),
        ({"e3d_deploy": '{"format": 2}'}, "has format 2, but this version reads format 1; update e3d_deploy"),
        ({"e3d_deploy": '{"format": 1, "config": "none"}'}, "config: got 'none', expected fields and values"),
    ],
    ids=str,
)
def test_a_model_file_without_a_config_is_refused(bundle_path: Path, metadata: dict[str, str], message: str) -> None:
    file = bundle_path / "model.safetensors"
    save_file({"weight": np.zeros(1, np.float32)}, file, metadata)
    edit(bundle_path, lambda found: found["files"].update({file.name: sha256(file)}))
    with pytest.raises(BundleError, match=rf"model\.safetensors: .*{message}"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "step.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_refused(bundle_path: Path, name: str) -> None:
    (bundle_path / name).unlink()
    os.mkfifo(bundle_path / name)
    with pytest.raises(BundleError, match=f"{name}: is not a regular file; copy or export the bundle again"):
        Bundle.open(bundle_path)


def test_a_bundle_that_another_process_made_meanwhile_is_not_replaced(bundle_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "new.e3d"
    with (
        pytest.raises(
            ConfigError, match=r"new\.e3d: was created by another process during the export; give --overwrite"
        ),
        new_bundle(output, overwrite=False),
    ):
        shutil.copytree(bundle_path, output)
    assert Bundle.open(output).manifest == Bundle.open(bundle_path).manifest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_backend_specific_graph_is_preferred_to_the_shared_graph(shared_path: Path) -> None:
    bundle = Bundle.open(shared_path)
    own = replace(bundle.entry("step"), backends=("openvino", "tensorrt"), file="own.onnx")
    both = changed(bundle, graphs=(own, *bundle.manifest.graphs))
    assert both.graph("step", "openvino").name == "own.onnx"
    assert both.graph("step", "onnxruntime").name == both.graph("step").name == "step.onnx"
    assert both.graphs == ("step", "rollout", "clip")
    alone = changed(bundle, graphs=(own, *bundle.manifest.graphs[1:]))
    with pytest.raises(
        BundleError,
        match=r"no graph 'step' for onnxruntime, only for openvino, tensorrt; .*`e3d export MODEL -o .* --backend",
    ):
        OnnxRuntimeBackend(alone)
    with pytest.raises(BundleError, match="has no graph 'other', only step, rollout, clip; export the model again"):
        bundle.graph("other", "onnxruntime")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "emulated"])
def test_a_backend_opens_its_backend_specific_graph(shared_path: Path, name: str) -> None:
    bundle = Bundle.open(shared_path)
    own = replace(bundle.entry("step"), backends=(name,), file="own.onnx")
    with pytest.raises(BundleError, match=r"own\.onnx: "):
        open_backend(changed(bundle, graphs=(own, *bundle.manifest.graphs)), name)
    shutil.copy(shared_path / "step.onnx", shared_path / "own.onnx")
    files = {**bundle.manifest.files, "own.onnx": bundle.manifest.files["step.onnx"]}
    rewrite(shared_path, graphs=(own, *bundle.manifest.graphs[1:]), files=files)
    open_backend(Bundle.open(shared_path), name).close()


def test_a_graph_of_another_backend_changes_nothing(shared_path: Path) -> None:
    bundle = Bundle.open(shared_path)
    step, rollout, clip = bundle.manifest.graphs
    own = replace(step, backends=("openvino",), precision="bf16")
    mixed = changed(bundle, graphs=(own, step, rollout, replace(clip, backends=("openvino",))))
    assert mixed.identity == bundle.identity
    assert changed(mixed, graphs=tuple(reversed(mixed.manifest.graphs))).identity == bundle.identity
    with pytest.raises(BackendUnavailable, match="onnxruntime does not run bf16"):
        open_backend(changed(bundle, graphs=(replace(step, precision="bf16"), rollout, clip)), "onnxruntime")
    picture = np.zeros((16, 24, 1), np.uint8)
    with open_backend(mixed, "onnxruntime") as backend:
        stream = Predictor.of_bundle(mixed, backend).stream(renewal="replay")
        for _ in range(mixed.context_length):
            stream.push(picture)
        found = stream.forecast(mixed.horizon)  # made by single steps, because the clip graph is for another backend
    with runtime.load(shared_path, "onnxruntime") as predictor:
        stream = predictor.stream(renewal="replay")
        for _ in range(mixed.context_length):
            stream.push(picture)
        np.testing.assert_allclose(found, stream.forecast(mixed.horizon), rtol=0, atol=ROUNDING)


@pytest.mark.usefixtures("kept_steps")
def test_snapshots_outlive_an_export_with_other_graphs(exported: Path, any_batch: Path, tmp_path: Path) -> None:
    lengths = {"context_length": 4, "horizon": 2, "batch": 1, "reference": exported / "clip.npy"}
    gpu = export(exported / "tiny.safetensors", tmp_path / "gpu.e3d", backend="tensorrt", **lengths)
    first, *others = (Bundle.open(path) for path in (exported / "tiny.e3d", any_batch, gpu))
    pictures = np.load(exported / "clip.npy")
    with runtime.load(first.path, "onnxruntime", threads=1) as predictor:
        stream = predictor.stream()
        stream.push(pictures[0])
        taken, expected = stream.snapshot(), stream.forecast(3)
    for other in others:
        assert other.digest != first.digest
        assert other.identity == first.identity
        with runtime.load(other.path, "onnxruntime", threads=1) as predictor:
            np.testing.assert_allclose(predictor.stream(taken).forecast(3), expected, rtol=0, atol=ROUNDING)
    assert changed(first, files={**first.manifest.files, "model.safetensors": "0" * 64}).identity != first.identity
    assert replace(first, config=replace(first.config, norm_eps=1e-3)).identity != first.identity


def renamed(path: Path, to: Path) -> Path:
    """Copy a bundle, and rename its states in the graphs and the manifest."""

    def new(name: str) -> str:
        prefix = "next_" if name.startswith("next_") else ""
        return f"{prefix}s_{name.removeprefix(prefix)}" if name.removeprefix(prefix) in names else name

    shutil.copytree(path, to)
    bundle = Bundle.open(to)
    names = {tensor.name for tensor in bundle.states.tensors}
    for file in (to / one.file for one in bundle.manifest.graphs):
        model = onnx.load(file, load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            value.name = new(value.name)
        for node in model.graph.node:
            node.input[:], node.output[:] = map(new, node.input), map(new, node.output)
        onnx.save(model, file)

    def change(found: dict[str, Any]) -> None:
        for graph in found["graphs"]:
            found["files"][graph["file"]] = sha256(to / graph["file"])
            for tensor in (*graph["inputs"], *graph["outputs"]):
                tensor["name"] = new(tensor["name"])
        for state in found["states"]:
            state["name"] = new(state["name"])
            if "ring" in state:
                state["ring"]["counter"] = new(state["ring"]["counter"])

    return edit(to, change)


@pytest.mark.parametrize("renewal", ["none", "refresh:2"])
def test_the_runtime_knows_states_by_their_description_alone(any_batch: Path, tmp_path: Path, renewal: str) -> None:
    """Covers a stream with more frames than the ring has slots, its snapshot, and streams stepped together."""
    other = renamed(any_batch, tmp_path / "renamed.e3d")
    pictures = np.random.default_rng(0).integers(0, 256, (11, 16, 24, 1), np.uint8)
    found = {}
    for path in (any_batch, other):
        with runtime.load(path, "onnxruntime", threads=1) as predictor:
            stream = predictor.stream(renewal=renewal)
            for picture in pictures:
                stream.push(picture)
            stream.snapshot().save(tmp_path / f"{path.name}.npz")
            restored = predictor.stream(Snapshot.load(tmp_path / f"{path.name}.npz"))
            np.testing.assert_array_equal(restored.forecast(3), stream.forecast(3))
            with predictor.streams(renewal=renewal) as streams:
                slots = [streams.open() for _ in range(2)]
                for slot in slots:
                    slot.push(pictures[0])
                found[path] = [stream.forecast(3), *(slot.forecast(3) for slot in slots)]
    np.testing.assert_array_equal(found[any_batch], found[other])
    with (
        runtime.load(other, "onnxruntime", threads=1) as predictor,
        pytest.raises(SnapshotError, match=r"snapshot: state s_cell\.0: got no such state, expected float32"),
    ):
        predictor.stream(Snapshot.load(tmp_path / f"{any_batch.name}.npz"))


def tables() -> str:
    """Return the lists of fields in docs/bundle.md, generated from the fields and their docstrings."""
    lines = []
    for module in (manifest_module, sidecar_module):
        for node in ast.parse(inspect.getsource(module)).body:
            entry = getattr(module, node.name) if isinstance(node, ast.ClassDef) else None
            if entry is None or not isinstance(node, ast.ClassDef):
                continue
            assert issubclass(entry, Entry)
            lines += [
                f"### {entry.__name__}",
                "",
                textwrap.fill(" ".join(str(inspect.getdoc(entry)).split()), 120),
                "",
            ]
            needed = required(entry)
            for number, item in enumerate(node.body):
                if isinstance(item, ast.AnnAssign):
                    below = node.body[number + 1]
                    assert isinstance(below, ast.Expr)
                    words = " ".join(ast.literal_eval(below.value).split())
                    name = ast.unparse(item.target)
                    kind = ast.unparse(item.annotation).replace(" | ", " or ")
                    line = f"- `{name}` ({kind}{'' if name in needed else ', optional'}): {words}"
                    lines.append(textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False))
            lines.append("")
            assert len([one for one in fields(entry) if one.name != "extra"]) == sum(
                isinstance(item, ast.AnnAssign) for item in node.body
            )
    return "\n".join(lines)


def test_the_docs_list_the_fields_as_the_reader_has_them() -> None:
    """If this fails, `python -m tests.bundle.test_manifest` writes the lists again."""
    assert tables() in DOCS.read_text()


if __name__ == "__main__":
    begin, _, rest = DOCS.read_text().partition("<!-- fields -->\n")
    _, _, end = rest.partition("<!-- end of fields -->")
    DOCS.write_text(f"{begin}<!-- fields -->\n{tables()}\n<!-- end of fields -->{end}")
