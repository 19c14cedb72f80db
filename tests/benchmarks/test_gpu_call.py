"""Calls on a borrowed GPU machine: which is due, how steps are run and recorded, how results survive an end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import borrowed
from benchmarks.gpu.call import (
    CALLS,
    CARRIED,
    ROOT,
    SECONDS,
    STEPS,
    Call,
    Place,
    Step,
    compiled_is_worth_it,
    keep_last_set,
    learned,
    next_call,
)
from benchmarks.gpu.rehearse import kill_session, whole

SLEEP = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(out=tmp_path / "out", work=tmp_path, unpacked=tmp_path / "unpacked")


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def gone(pid: int) -> bool:
    """Return if a process has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# Which call is due


def test_training_is_due_until_it_has_run_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu_train.json"
    assert next_call(tmp_path) == "train"
    write(file, {"device": "cpu", "steps": [{"name": "full", "sequences_per_second": 1.0}]})
    assert next_call(tmp_path) == "train"
    write(file, {"device": "cuda", "steps": [{"name": "full", "code": 1}]})
    assert next_call(tmp_path) == "train"
    write(file, {"device": "cuda", "steps": [{"name": "full", "code": 0, "sequences_per_second": 150.0}]})
    assert next_call(tmp_path) == "numbers"


def test_cells_are_compiled_if_that_trains_on_more_in_the_time_of_the_call(tmp_path: Path) -> None:
    file = tmp_path / "gpu_probe.json"
    assert compiled_is_worth_it(tmp_path, 300)
    eager: dict[str, object] = {"name": "train_eager", "sequences_per_second": 100.0, "first_s": 10.0}
    compiled: dict[str, object] = {"name": "train_compiled"}
    write(file, {"device": "cuda", "steps": [eager, compiled]})
    assert not compiled_is_worth_it(tmp_path, 300)  # it did not get as far as training
    compiled |= {"sequences_per_second": 150.0, "first_s": 60.0}
    write(file, {"device": "cuda", "steps": [eager, compiled]})
    assert compiled_is_worth_it(tmp_path, 300)
    assert not compiled_is_worth_it(tmp_path, 120)  # compiling takes half of it
    write(file, {"device": "cpu", "steps": [eager, compiled]})
    assert compiled_is_worth_it(tmp_path, 120)


@pytest.mark.parametrize("content", ['{"device": "cuda", "st', "null", "5", '{"steps": null}', "[" * 200_000, '["a"]'])
def test_damaged_results_count_as_none(content: str, tmp_path: Path) -> None:
    for name in ("gpu_train.json", "gpu_probe.json"):
        (tmp_path / name).write_text(content)
    assert next_call(tmp_path) == "train"
    assert compiled_is_worth_it(tmp_path, 120)


# What the calls consist of


@pytest.mark.parametrize("name", CALLS)
def test_steps_fit_into_the_time_of_their_call(name: str, place: Place) -> None:
    """The last one of the probe may find none left."""
    needed = [step.seconds for step in STEPS[name](place)][: -1 if name == "probe" else None]
    assert sum(needed) <= SECONDS[name] <= borrowed.read().limits.call_seconds
    assert set(CARRIED[name]) <= {"packages", "onnxruntime", "bundles", "digits"}


def test_training_ends_before_it_is_ended(place: Place) -> None:
    for step in STEPS["train"](place):
        minutes = float(step.command[step.command.index("--time-limit") + 1])
        assert 0 < 60 * minutes <= step.seconds - 15
        assert step.command[step.command.index("--precision") + 1] == "bf16"


# Running


def test_every_step_is_recorded_and_a_failure_does_not_stop_the_rest(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    call = Call("probe", place, 100)
    steps = [
        Step(name="good", seconds=30, command=["-c", "print('all is well')"]),
        Step(name="bad", seconds=30, command=["-c", "raise SystemExit('broken')"]),
        Step(name="last", seconds=30, command=["-c", "pass"]),
    ]
    assert call.run(steps, os.environ) == 1
    recorded = json.loads((place.out / "gpu_probe.json").read_text())
    assert [(step["name"], step["code"]) for step in recorded["steps"]] == [("good", 0), ("bad", 1), ("last", 0)]
    assert all(step["seconds"] < 30 for step in recorded["steps"])
    log = (place.out / "gpu_probe.log").read_text()
    assert log.index("all is well") < log.index("broken")
    assert "all is well" in capsys.readouterr().out


def test_a_step_and_its_children_end_with_its_time(place: Place) -> None:
    file = place.work / "pid"
    call = Call("probe", place, 100)
    assert call.run([Step(name="slow", seconds=6, command=["-c", SLEEP, str(file)])], os.environ) == 1
    (step,) = json.loads((place.out / "gpu_probe.json").read_text())["steps"]
    assert step["code"] == "the time was over"
    assert gone(int(file.read_text()))


def test_no_step_begins_without_time(place: Place) -> None:
    call = Call("probe", place, 1)
    assert call.run([Step(name="late", seconds=30, command=["-c", "pass"])], os.environ) == 1
    assert json.loads((place.out / "gpu_probe.json").read_text())["steps"][0]["code"] == "no time was left"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_call_leaves_whole_results(place: Place, number: signal.Signals) -> None:
    """It ends its steps itself at SIGTERM; whoever sends SIGKILL kills them too."""
    pid = place.work / "pid"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom benchmarks.gpu import call\n"
        f"steps = [call.Step(name='one', seconds=30, command=['-c', 'pass']),\n"
        f" call.Step(name='two', seconds=60, command=['-c', {SLEEP!r}, {str(pid)!r}])]\n"
        "call.STEPS['probe'] = lambda place: steps\n"
        "sys.argv = ['call', 'probe', '--pack', 'none']\nsys.exit(call.main())\n"
    )
    environment = {**os.environ, "OUT": str(place.out), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGTERM:
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    else:
        kill_session(process.pid)
        assert process.wait(30) == -signal.SIGKILL
    assert whole(place.out) == ["gpu_probe.json"]
    steps = json.loads((place.out / "gpu_probe.json").read_text())["steps"]
    assert [(step["name"], step["code"]) for step in steps] == [("one", 0), ("two", None)]
    while not gone(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(int(pid.read_text()))


def test_speed_and_curve_of_a_training_run_are_read_from_its_log(tmp_path: Path) -> None:
    assert learned(tmp_path) == {}
    write(tmp_path / "config.json", {"train": {"batch_size": 32}})
    lines = ["elapsed_s,step,valid_mse"]
    lines += [f"{10 + 0.5 * step},{step}," for step in range(0, 100, 10)]
    lines += [",50,120.5"]
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("\n".join(lines))
    assert learned(tmp_path) == {"first_s": 10.0, "steps": 90, "sequences_per_second": 64.0, "valid_mse": [[50, 120.5]]}


def test_only_the_last_whole_set_of_weights_comes_back(tmp_path: Path) -> None:
    keep_last_set(tmp_path)
    for age, (name, numbers) in enumerate({"a": (1, 2), "b": (1, 2), "c": (1,)}.items()):
        for number in numbers:
            file = tmp_path / f"model-{name}.part-{number}-of-2.safetensors"
            file.write_bytes(b"")
            os.utime(file, (1000 + age, 1000 + age))
    (tmp_path / "metrics.csv").write_text("")
    keep_last_set(tmp_path)
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert kept == ["metrics.csv", *(f"model-b.part-{number}-of-2.safetensors" for number in (1, 2))]


def test_a_result_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"steps": [')
    with pytest.raises(RuntimeError, match=r"half\.json: not whole"):
        whole(tmp_path)
