"""`e3d doctor --bundle`: the backend of a bundle and the number of streams, on this machine."""

import json
from pathlib import Path

import pytest

from e3d_deploy.commands.doctor import streams_lines
from e3d_deploy.doctor import Fault
from e3d_deploy.doctor import bundle as module
from e3d_deploy.doctor.bundle import BundleReport, examine_bundle
from e3d_deploy.errors import BundleError
from e3d_deploy.measure.results import Answer, Curve, Point, StreamCurves
from e3d_deploy.runtime import choose
from e3d_deploy.runtime.choose import Choice, Tried
from tests.tools import e3d


@pytest.fixture(autouse=True)
def _no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the search for faults, which has tests of its own, and measure as briefly as possible."""
    monkeypatch.setattr("e3d_deploy.doctor.find_faults", lambda: [])
    monkeypatch.setattr(module, "SECONDS", 0.001)


def point(streams: int, p99_ms: float, sizes: tuple[int, ...] = (2,)) -> Point:
    return Point(
        streams=streams, step_sizes=sizes, frames_per_second=1, p50_ms=p99_ms / 2, p99_ms=p99_ms, mean_ms=p99_ms / 2,
        rounds=9,
    )  # fmt: skip


def report(answer: Answer, first: Point, load_average: float | None = None) -> BundleReport:
    streams = StreamCurves(
        how="", target_p99_ms=40.0, fps=25.0, renewal="refresh:2", curves=(Curve(backend="torch", points=(first,)),),
        answers=(answer,),
    )  # fmt: skip
    return BundleReport(Choice("torch", (Tried("torch", 1.0, "agrees"),)), streams, load_average)


def test_the_report_of_a_bundle_is_measured_and_complete(bundle_path: Path) -> None:
    found = json.loads(e3d("doctor", "--bundle", bundle_path, "--json", "--threads", 1, "--fps", 1000).stdout)
    streams = found["streams"]
    assert streams["fps"] == 1000
    assert streams["target_p99_ms"] == 1
    (answer,), (curve,) = streams["answers"], streams["curves"]
    assert answer["backend"] == curve["backend"] == found["choice"]["backend"]
    assert curve["points"][0]["streams"] == 1
    assert all(one["rounds"] >= 3 and one["p50_ms"] > 0 for one in curve["points"])
    assert found["faults"] == []


def test_the_report_of_a_bundle_says_what_was_measured(bundle_path: Path) -> None:
    text = e3d("doctor", "--bundle", bundle_path, "--fps", 1000).stdout
    assert "auto selects " in text
    assert " 1000 frames/s: with " in text
    assert "(renewal " in text


def test_streams_are_counted_in_words() -> None:
    one, seven = point(1, 8.0), point(7, 39.5)
    answer = Answer(backend="torch", streams=7, at_least=False, at=seven, beyond=point(8, 45.0), best=one)
    assert streams_lines(report(answer, one)) == [
        "7 streams hold 25 frames/s: with 7, p99 is 39.50 ms of 40.00 ms (9 rounds timed)",
        "one stream: median 4.00 ms per frame, 2 steps per frame (renewal refresh:2)",
    ]
    many = Answer(backend="torch", streams=256, at_least=True, at=point(256, 30.0), beyond=None, best=one)
    assert streams_lines(report(many, one))[0].startswith("at least 256 streams hold 25 frames/s")
    busy = streams_lines(report(many, point(1, 8.0, (1,)), load_average=1000.0))
    assert busy[1].startswith("one stream: median 4.00 ms per frame, 1 step per frame")
    assert busy[2] == "the machine is busy (load average 1000.0), so it may hold more when it is idle"
    single = Answer(backend="torch", streams=1, at_least=False, at=one, beyond=None, best=one)
    assert streams_lines(report(single, one))[0].startswith("1 stream holds 25 frames/s")
    slow = point(1, 900.0)
    none = Answer(backend="torch", streams=0, at_least=False, at=None, beyond=slow, best=slow)
    assert streams_lines(report(none, slow))[0] == (
        "0 streams hold 25 frames/s: with 1, p99 is 900.00 ms of 40.00 ms (9 rounds timed)"
    )


def test_a_damaged_bundle_is_refused_as_usual(bundle_path: Path) -> None:
    (bundle_path / "step.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError):
        examine_bundle(bundle_path, fps=30)
    result = e3d("doctor", "--bundle", bundle_path, "--json", code=5)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_a_rate_without_a_bundle_is_refused() -> None:
    assert "--fps requires --bundle" in e3d("doctor", "--fps", 25, code=2).stderr


def test_a_bundle_for_a_fixed_batch_has_no_renewal(two_streams: Path) -> None:
    assert examine_bundle(two_streams, fps=1000, threads=1).streams.renewal == "none"


def test_faults_are_shown_if_no_backend_runs_the_bundle(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault("library-broken", "openvino is broken", "pip install openvino", ("openvino",))
    monkeypatch.setattr("e3d_deploy.doctor.find_faults", lambda: [fault])
    monkeypatch.setattr(choose, "candidates", lambda: [])
    result = e3d("doctor", "--bundle", bundle_path, "--again", code=4)
    assert "library-broken: openvino is broken\n    pip install openvino" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: auto: no backend is installed")
