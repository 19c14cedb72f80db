"""Contract of all backends: they run the files that were checked when the bundle was opened, even if these change."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from e3d_deploy.bundle.folder import MANIFEST, MODEL, REFERENCE
from e3d_deploy.errors import BackendUnavailable, BundleError
from e3d_deploy.files import sha256, swap
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.spec import BackendSpec
from e3d_deploy.runtime.backends.specs import has_libraries
from e3d_deploy.tensors import read_header
from tests.fake_tensorrt_runtime import floats
from tests.runtime.backends.cases import FAKED

PLANS = ("tensorrt", "tensorrt-rtx")
"""Backends that read and check the plan of a graph when that graph first runs."""
NAME = "program.e3d"
Answers = dict[str, NDArray[Any]]
EXPECTED: dict[str, Answers] = {}
"""Results of each backend on an unchanged bundle."""


def other_weights(file: Path) -> bytes:
    """Return the content of a model file with all weights halved."""
    _, start = read_header(file)
    content = file.read_bytes()
    return content[:start] + (np.frombuffer(content[start:], np.float32) / 2).tobytes()


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | changes))


def another(path: Path, place: Path) -> Path:
    """Create a complete bundle with other weights."""
    shutil.copytree(path, place)
    (place / MODEL).write_bytes(other_weights(path / MODEL))
    edit(place, files=json.loads((path / MANIFEST).read_text())["files"] | {MODEL: sha256(place / MODEL)})
    return place


def overwrite(path: Path) -> None:
    content = other_weights(path / MODEL)
    with (path / MODEL).open("r+b") as same:
        same.write(content)


def truncate(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)


def replace(path: Path) -> None:
    swap(another(path, path.with_name("other.e3d")), path)


def move_away(path: Path) -> None:
    """Change the working directory to one where another bundle has the same relative path."""
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    another(path, elsewhere / NAME)
    os.chdir(elsewhere)


@dataclass(frozen=True)
class Damage:
    """Change of a bundle's folder while a program has the bundle open."""

    make: Callable[[Path], object]
    graph: str = ""
    """Graph that first runs after the change; empty for none."""
    message: str = ""
    """Error message when the bundle is opened again; empty if another bundle is opened without an error."""


DAMAGES = {
    "weights overwritten": Damage(overwrite, "clip", r"model\.safetensors: altered or truncated"),
    "truncated": Damage(truncate, "rollout", r"manifest\.json: is not a manifest"),
    "deleted": Damage(shutil.rmtree, "", "no such bundle"),
    "replaced": Damage(replace, "clip"),
    "another working directory": Damage(move_away, "rollout"),
    "newer schema": Damage(lambda path: edit(path, schema=99), "", "schema 99, this version reads"),
}


def opened(bundle: Bundle, spec: BackendSpec) -> Backend:
    try:
        return open_backend(bundle, spec.name, threads=1)
    except BackendUnavailable as error:
        if spec.name in FAKED or has_libraries(spec):
            raise
        pytest.skip(str(error))


def answers(backend: Backend, *graphs: str) -> Answers:
    """Return the results of two steps, of a step with two streams, and of the given graphs."""
    first, second = floats(2)
    prediction, state = backend.step(second, backend.step(first, backend.initial_state(1))[1])
    found = {"step": prediction, **backend.to_arrays(state)}
    if 2 in backend.sizes:
        found["two"], _ = backend.step(np.repeat(first, 2, axis=0), backend.initial_state(2))
    if "clip" in graphs:
        found["clip forecast"], _ = backend.clip(floats(4).swapaxes(0, 1))
    if "rollout" in graphs:
        found["rollout forecast"], _ = backend.rollout(prediction, state)
    return found


@pytest.fixture
def program(arranged: tuple[BackendSpec, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the bundle to a relative path and return that path."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(arranged[1].path, NAME)
    return Path(NAME)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_program_continues_with_the_files_that_it_opened(
    arranged: tuple[BackendSpec, Bundle], program: Path, damage: str, tmp_path: Path
) -> None:
    spec, untouched = arranged
    if spec.name not in EXPECTED:
        with opened(untouched, spec) as backend:
            EXPECTED[spec.name] = answers(backend, "clip", "rollout")
    bundle, given = Bundle.open(program), DAMAGES[damage]
    with opened(bundle, spec) as backend:
        backend.step(floats(1)[0], backend.initial_state(1))
        given.make(tmp_path / NAME)
        found = answers(backend, "" if spec.name in PLANS else given.graph)
    for name, value in found.items():
        np.testing.assert_array_equal(value, EXPECTED[spec.name][name], err_msg=name)
    assert bundle.reference().keys() == untouched.reference().keys()
    if given.message:
        with pytest.raises(BundleError, match=given.message):
            Bundle.open(program)
    else:
        assert Bundle.open(program).identity != bundle.identity


@pytest.mark.parametrize("damage", ["truncated", "deleted", "replaced"])
def test_a_changed_plan_is_an_error_when_it_is_first_run(
    arranged: tuple[BackendSpec, Bundle], program: Path, damage: str
) -> None:
    spec, _ = arranged
    if spec.name not in PLANS:
        pytest.skip("it has no plans")
    with opened(Bundle.open(program), spec) as backend:
        DAMAGES[damage].make(program.absolute())
        for file in program.glob("engines/clip.*.plan"):
            file.write_bytes(b"another")
        with pytest.raises(BundleError, match=r"clip\..*\.plan: (altered|cannot be read)"):
            answers(backend, "clip")
        backend.step(floats(1)[0], backend.initial_state(1))


def test_a_backend_does_not_keep_the_reference_clip(arranged: tuple[BackendSpec, Bundle]) -> None:
    spec, bundle = arranged
    with opened(bundle, spec) as backend:
        kept: Bundle | None = vars(backend).get("bundle")
        assert kept is None or REFERENCE not in kept.held
        assert REFERENCE in bundle.held


@pytest.mark.parametrize(("key", "value"), [("location", "other.bin"), ("offset", "99999999"), ("length", "4")])
def test_a_graph_that_reads_unchecked_data_is_refused(
    arranged: tuple[BackendSpec, Bundle], program: Path, key: str, value: str
) -> None:
    spec, _ = arranged
    if spec.name in PLANS or not spec.runs_graphs:
        pytest.skip("it does not read the graph")
    shutil.copy(program / MODEL, "other.bin")  # The libraries look for it in the working directory.
    file = program / Bundle.open(program).entry("step", spec.name).file
    model = onnx.load(file, load_external_data=False)
    weight = next(one for one in model.graph.initializer if one.external_data)
    for entry in weight.external_data:
        if entry.key == key:
            entry.value = value
    file.write_bytes(model.SerializeToString())
    edit(program, files=json.loads((program / MANIFEST).read_text())["files"] | {file.name: sha256(file)})
    with pytest.raises((BundleError, ValueError)), opened(Bundle.open(program), spec) as backend:
        backend.step(floats(1)[0], backend.initial_state(1))
