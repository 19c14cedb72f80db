"""What `auto` takes: what agrees with the reference, and of that the fastest."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from e3d_deploy import runtime
from e3d_deploy.cli import main
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.choose import choose, open_first
from e3d_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from e3d_deploy.runtime.openvino_backend import OpenVINOBackend


@pytest.fixture(autouse=True)
def cpu_alone(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there(monkeypatch, "onnxruntime", "openvino", "torch")


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


def there(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("e3d_deploy.runtime.choose.installed", lambda: list(names))


def slow(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these take a second a step."""
    monkeypatch.setattr(
        "e3d_deploy.runtime.choose._times", lambda _, backends: {one: 1e3 if one in names else 1.0 for one in backends}
    )


def off(monkeypatch: pytest.MonkeyPatch, kind: type, by: float = 0.001) -> None:
    """Let a backend give something else than PyTorch."""
    step = kind.step  # type: ignore[attr-defined]

    def wrong(self: Any, *arguments: Any) -> Any:
        prediction, state = step(self, *arguments)
        return prediction + np.float32(by), state

    monkeypatch.setattr(kind, "step", wrong)


def reasons(choice: Any) -> dict[str, str]:
    return {one.backend: one.reason for one in choice.tried}


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


def test_times_are_of_real_steps(bundle: Bundle) -> None:
    _, choice = choose(bundle, threads=1)
    timed = {one.backend: one.step_ms for one in choice.tried if one.step_ms is not None}
    assert set(timed) == {"onnxruntime", "openvino"}
    assert min(timed.values()) == timed[choice.backend] > 0


def test_what_drifts_is_not_taken_and_that_is_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    off(monkeypatch, OnnxRuntimeBackend)
    assert choose(bundle)[0].name == "openvino"
    assert "backend onnxruntime: does not give what PyTorch recorded" in caplog.text
    off(monkeypatch, OpenVINOBackend, by=np.nan)
    assert choose(bundle, again=True)[0].name == "torch"
    there(monkeypatch, "onnxruntime", "openvino")
    with pytest.raises(BackendUnavailable, match=r"auto: nothing that is installed runs .*onnxruntime: does not give"):
        choose(bundle, again=True)
    there(monkeypatch)
    with pytest.raises(BackendUnavailable, match=r"auto: no backend is installed; pip install 'e3d_deploy\[cpu\]'"):
        choose(bundle, again=True)


def test_what_opens_but_does_not_run_is_not_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel for this processor")

    monkeypatch.setattr(OnnxRuntimeBackend, "step", broken)
    backend, choice = choose(bundle)
    assert backend.name == "openvino"
    assert reasons(choice)["onnxruntime"] == "opens but does not run (no kernel for this processor)"


def test_verify_without_a_name_takes_the_first_that_opens(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first that is installed: a GPU may be there and the bundle have no engine."""
    there(monkeypatch, "tensorrt", "onnxruntime")
    off(monkeypatch, OnnxRuntimeBackend)
    assert open_first(bundle).name == "onnxruntime"
    there(monkeypatch, "tensorrt")
    with pytest.raises(BackendUnavailable, match=r"auto: nothing that is installed runs .*tensorrt"):
        open_first(bundle)


def test_a_choice_is_kept_for_the_same_graphs_machine_and_threads(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow(monkeypatch, "onnxruntime")
    _, first = choose(bundle, threads=1)
    slow(monkeypatch, "openvino")
    with caplog.at_level(logging.INFO, "e3d_deploy"):
        backend, kept = choose(bundle, threads=1)
    assert (backend.name, kept) == ("openvino", first)
    assert "chosen before" in caplog.text
    assert choose(bundle, threads=2)[0].name == "onnxruntime"
    monkeypatch.setattr("e3d_deploy.runtime.choose.machine", lambda: {"cpu": "another"})
    assert choose(bundle, threads=1)[0].name == "onnxruntime"


def test_a_kept_choice_that_is_gone_or_broken_is_made_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow(monkeypatch, "onnxruntime")
    assert choose(bundle)[0].name == "openvino"

    def gone(self: Any, *_: Any, **__: Any) -> None:
        raise BackendUnavailable("openvino: is broken")

    with monkeypatch.context() as patch:
        patch.setattr(OpenVINOBackend, "__init__", gone)
        assert choose(bundle)[0].name == "onnxruntime"
        assert "openvino, chosen before, does not open any more: openvino: is broken" in caplog.text
    [file] = tmp_path.rglob("choices/*.json")
    file.write_text("{")
    assert choose(bundle)[0].name == "openvino"


def test_a_place_that_cannot_be_written_keeps_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose(bundle)[0].name in ("onnxruntime", "openvino")


def test_load_takes_it_and_doctor_shows_it(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, "onnxruntime")
    assert runtime.load(bundle_path).backend.name == "openvino"
    result = CliRunner().invoke(main, ["doctor", "--bundle", str(bundle_path)])
    assert result.exit_code == 0
    assert f"auto takes openvino for {bundle_path}" in result.stdout
    assert "but is slower than openvino" in result.stdout
    found = json.loads(CliRunner().invoke(main, ["doctor", "--bundle", str(bundle_path), "--json"]).stdout)
    assert found["choice"]["tried"][0] == {
        "backend": "openvino",
        "step_ms": 1.0,
        "reason": "agrees with the reference, and is the fastest that does",
    }
