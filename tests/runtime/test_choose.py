"""Choice of `auto`: the fastest of the backends that agree with the reference."""

import json
import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from e3d_deploy import runtime
from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.cli import main
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.inventory import version_of
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.runtime.choose import _key, _times, _warn_not_stored, choose, open_first
from e3d_deploy.turns import block
from tests.fake_backend import AGELESS
from tests.manifests import changed, sidecar
from tests.tools import perturb


@pytest.fixture(autouse=True)
def cpu_alone(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there(monkeypatch, "onnxruntime", "openvino", "torch")


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture
def openvino_backend() -> Any:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")
    from e3d_deploy.runtime.backends.openvino import OpenVINOBackend

    return OpenVINOBackend


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make a, b and torch the candidates, all of them ONNX Runtime; return a list of the names of closed backends."""
    closed: list[str] = []

    def opened(bundle: Bundle, name: str, *, threads: int | None) -> OnnxRuntimeBackend:
        backend = OnnxRuntimeBackend(bundle, threads=threads)
        backend.name = name
        close = backend.close

        def noted() -> None:
            closed.append(name)
            close()

        monkeypatch.setattr(backend, "close", noted)
        return backend

    monkeypatch.setattr("e3d_deploy.runtime.choose.open_backend", opened)
    there(monkeypatch, "a", "b", "torch")
    return closed


def there(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("e3d_deploy.runtime.choose.candidates", lambda: list(names))


def slow(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make these backends take a second per step."""
    monkeypatch.setattr(
        "e3d_deploy.runtime.choose._times", lambda _, backends: {one: 1e3 if one in names else 1.0 for one in backends}
    )


def reasons(choice: Any) -> dict[str, str]:
    return {one.backend: one.reason for one in choice.tried}


@pytest.mark.usefixtures("openvino_backend")
@pytest.mark.parametrize(("slower", "taken"), [("openvino", "onnxruntime"), ("onnxruntime", "openvino")])
def test_the_fastest_that_agrees_is_taken(
    bundle: Bundle, slower: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, slower)
    backend, choice = choose(bundle)
    assert backend.name == choice.backend == taken
    assert [one.backend for one in choice.tried] == [taken, slower, "torch"]
    assert reasons(choice)[slower] == f"agrees with the reference, but is slower than {taken}"
    assert "is the fastest that does" in choice.reason
    assert "not tried" in reasons(choice)["torch"]


@pytest.mark.usefixtures("openvino_backend")
def test_times_are_of_real_steps(bundle: Bundle) -> None:
    _, choice = choose(bundle, threads=1)
    timed = {one.backend: one.step_ms for one in choice.tried if one.step_ms is not None}
    assert set(timed) == {"onnxruntime", "openvino"}
    assert min(timed.values()) == timed[choice.backend] > 0


def test_a_time_is_the_median_of_steps_in_turn(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    now, stepped = [0.0], []

    def paced(name: str, *milliseconds: float) -> Any:
        left = list(milliseconds)

        def step(frame: Any, state: int) -> tuple[Any, int]:
            stepped.append((name, state))
            now[0] += left.pop(0) / 1000
            return frame, state + 1

        backend = {"initial_state": lambda _: 0, "from_arrays": lambda _: 0, "step": step}
        return SimpleNamespace(sizes=(1,), pads=False, **backend)

    monkeypatch.setattr("e3d_deploy.runtime.choose.block", partial(block, clock=lambda: now[0]))
    monkeypatch.setattr("e3d_deploy.runtime.choose.SECONDS", 0)  # one frame per turn
    bundle = changed(bundle, card=AGELESS.to_dict())
    assert _times(bundle, {"a": paced("a", 2, 90, 3), "b": paced("b", 5, 1, 4)}) == pytest.approx({"a": 3, "b": 4})
    assert stepped == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_graphs_for_two_streams_are_timed_by_their_steps(two_streams: Path) -> None:
    bundle = Bundle.open(two_streams)
    with closing(OnnxRuntimeBackend(bundle)) as backend:
        (found,) = _times(bundle, {"onnxruntime": backend}).values()
    assert isinstance(found, float), found
    assert found > 0


def test_all_but_the_one_that_is_taken_are_closed(
    bundle: Bundle, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, "a")
    assert choose(bundle)[0].name == "b"
    assert closed == ["a"]
    perturb(monkeypatch, OnnxRuntimeBackend)
    with pytest.raises(BackendUnavailable):
        choose(bundle, again=True)
    assert closed == ["a", "a", "b", "torch"]


def breaks(monkeypatch: pytest.MonkeyPatch, *names: str, error: BaseException) -> None:
    """Make all backends agree with the reference, and these raise an error when they are timed."""
    step = OnnxRuntimeBackend.step
    monkeypatch.setattr("e3d_deploy.runtime.choose.agrees", lambda *_: True)

    def broken(self: OnnxRuntimeBackend, *arguments: Any) -> Any:
        if self.name in names:
            raise error
        return step(self, *arguments)

    monkeypatch.setattr(OnnxRuntimeBackend, "step", broken)


def test_what_breaks_while_it_is_timed_is_refused_alone(
    bundle: Bundle, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, "a", error=RuntimeError("the driver is gone"))
    backend, choice = choose(bundle)
    assert (backend.name, closed) == ("b", ["a"])
    assert reasons(choice)["a"] == "opens but does not run (the driver is gone)"
    breaks(monkeypatch, "a", "b", error=RuntimeError("the driver is gone"))
    assert choose(bundle, again=True)[0].name == "torch"


def test_nothing_stays_open_when_it_is_interrupted(
    bundle: Bundle, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, "b", error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        choose(bundle)
    assert closed == ["a", "b"]


def test_what_cannot_be_closed_keeps_nobody_from_the_others(
    bundle: Bundle, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(_: OnnxRuntimeBackend) -> None:
        raise RuntimeError("the driver is gone")

    slow(monkeypatch, "a")
    monkeypatch.setattr(OnnxRuntimeBackend, "close", stuck)
    assert choose(bundle)[0].name == "b"
    assert closed == ["a"]


def test_a_library_that_is_half_there_is_refused_alone(
    bundle: Bundle, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, "b")
    assert choose(bundle)[0].name == "a"
    init = OnnxRuntimeBackend.__init__
    tries: list[int] = []

    def missing(*arguments: Any, **options: Any) -> None:
        tries.append(1)
        if len(tries) < 3:  # first as the stored choice, and then as a candidate
            raise OSError("libnvinfer.so.10: cannot open shared object file")
        init(*arguments, **options)

    monkeypatch.setattr(OnnxRuntimeBackend, "__init__", missing)
    backend, choice = choose(bundle)
    assert backend.name == "b"
    assert reasons(choice)["a"] == "libnvinfer.so.10: cannot open shared object file"
    tries[:] = [1]
    assert open_first(bundle).name == "b"


def test_what_drifts_is_not_taken_and_that_is_said(
    bundle: Bundle, openvino_backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    perturb(monkeypatch, OnnxRuntimeBackend)
    assert choose(bundle)[0].name == "openvino"
    assert "backend onnxruntime: does not agree with the reference" in caplog.text
    perturb(monkeypatch, openvino_backend, by=np.nan)
    assert choose(bundle, again=True)[0].name == "torch"
    there(monkeypatch, "onnxruntime", "openvino")
    with pytest.raises(BackendUnavailable, match=r"auto: no installed backend runs .*onnxruntime: does not agree"):
        choose(bundle, again=True)
    there(monkeypatch)
    with pytest.raises(BackendUnavailable, match=r"auto: no backend is installed; pip install 'e3d_deploy\[cpu\]'"):
        choose(bundle, again=True)


@pytest.mark.usefixtures("openvino_backend")
def test_what_opens_but_does_not_run_is_not_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel for this processor")

    monkeypatch.setattr(OnnxRuntimeBackend, "step", broken)
    backend, choice = choose(bundle)
    assert backend.name == "openvino"
    assert reasons(choice)["onnxruntime"] == "opens but does not run (no kernel for this processor)"


def test_verify_without_a_name_takes_the_first_that_opens(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first installed backend may not open: there may be a GPU, but no engine in the bundle."""
    there(monkeypatch, "tensorrt", "onnxruntime")
    perturb(monkeypatch, OnnxRuntimeBackend)
    assert open_first(bundle).name == "onnxruntime"
    there(monkeypatch, "tensorrt")
    with pytest.raises(BackendUnavailable, match=r"auto: no installed backend runs .*tensorrt"):
        open_first(bundle)


@pytest.mark.usefixtures("openvino_backend")
def test_a_choice_is_kept_for_the_same_graphs_machine_and_threads(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow(monkeypatch, "onnxruntime")
    _, first = choose(bundle, threads=1)
    slow(monkeypatch, "openvino")
    with caplog.at_level(logging.INFO, "e3d_deploy"):
        backend, kept = choose(bundle, threads=1)
    assert (backend.name, kept) == ("openvino", first)
    assert "(stored choice)" in caplog.text
    assert choose(bundle, threads=2)[0].name == "onnxruntime"
    monkeypatch.setattr("e3d_deploy.runtime.choose.machine", lambda: {"cpu": "another"})
    assert choose(bundle, threads=1)[0].name == "onnxruntime"


def test_its_key_changes_with_all_that_the_choice_depends_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, graph = (
        changed(bundle, files={**bundle.manifest.files, name: "0" * 64}) for name in ("model.safetensors", "step.onnx")
    )
    built, again = (changed(bundle, engines={"step.tensorrt": sidecar(sha256=digit * 64)}) for digit in "01")
    keys = [_key(bundle, 1), _key(bundle, 2), *(_key(one, 1) for one in (weights, graph, built, again))]
    newer: dict[str, Callable[..., Any]] = {
        "machine": lambda: {"gpu": "another"},
        "version_of": lambda packages: "99" if packages == ("onnxruntime",) else version_of(packages),
    }
    for name, function in newer.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"e3d_deploy.runtime.choose.{name}", function)
            keys.append(_key(bundle, 1))
    with monkeypatch.context() as patch:
        there(patch, "onnxruntime")
        keys.append(_key(bundle, 1))
    assert len(set(keys)) == len(keys) == 9
    same = changed(bundle, verification={"torch": Verification(passed=True)}, created="later", card={"note": 1})
    assert _key(same, 1) == _key(bundle, 1) == keys[0]


def test_a_kept_choice_that_is_gone_or_broken_is_made_again(
    bundle: Bundle,
    openvino_backend: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow(monkeypatch, "onnxruntime")
    assert choose(bundle)[0].name == "openvino"

    def gone(self: Any, *_: Any, **__: Any) -> None:
        raise BackendUnavailable("openvino: is broken")

    with monkeypatch.context() as patch:
        patch.setattr(openvino_backend, "__init__", gone)
        assert choose(bundle)[0].name == "onnxruntime"
        assert (
            "openvino: is the stored choice, but cannot be opened; choosing again (openvino: is broken" in caplog.text
        )
    [file] = tmp_path.rglob("choices/*.json")
    for damaged in ("{", '{"backend": "onnxruntime", "tried": []}'):
        file.write_text(damaged)
        assert choose(bundle)[0].name == "openvino"


def test_a_place_that_cannot_be_written_keeps_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose(bundle)[0].name in ("onnxruntime", "openvino")


def test_where_there_is_no_home_nothing_is_kept_and_that_is_said_once(
    bundle: Bundle, homeless: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there(monkeypatch, "onnxruntime")
    _warn_not_stored.cache_clear()
    for _ in range(2):
        assert choose(bundle)[0].name == "onnxruntime"
    assert caplog.text.count("the choice of a backend cannot be stored") == 1


@pytest.mark.usefixtures("openvino_backend")
def test_load_takes_it_and_doctor_shows_it(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, "onnxruntime")
    monkeypatch.setattr("e3d_deploy.doctor.bundle.SECONDS", 0.001)  # of a block that counts streams
    assert runtime.load(bundle_path).backend.name == "openvino"
    result = CliRunner().invoke(main, ["doctor", "--bundle", str(bundle_path)])
    assert result.exit_code == 0
    assert f"auto selects openvino for {bundle_path}" in result.stdout
    assert "but is slower than openvino" in result.stdout
    found = json.loads(CliRunner().invoke(main, ["doctor", "--bundle", str(bundle_path), "--json"]).stdout)
    assert found["choice"]["tried"][0] == {
        "backend": "openvino",
        "step_ms": 1.0,
        "reason": "agrees with the reference, and is the fastest that does",
    }
