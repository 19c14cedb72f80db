"""Calls on a borrowed GPU machine: choice of the next call, run and record of steps, results after an interruption."""

import json
import os
import signal
import subprocess
import sys
import tarfile
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
    carried,
    keep_last_set,
    learned,
    next_call,
    variables_for,
)
from benchmarks.gpu.inductor import pack
from benchmarks.gpu.pack import unpack
from benchmarks.gpu.rehearse import check_json_files, kill_session

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
    """Return True if a process has ended, even if its parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# Choice of the next call


@pytest.mark.parametrize(
    "found",
    [
        {"device": "cuda", "steps": [{"name": "full", "code": 0, "sequences_per_second": 150.0}]},
        {"gpu": "NVIDIA H200", "steps": 2551},
    ],
)
def test_numbers_is_next_once_a_training_on_a_gpu_is_recorded(found: object, tmp_path: Path) -> None:
    assert next_call(tmp_path) == "train"
    write(tmp_path / "gpu_train_2.json", found)
    assert next_call(tmp_path) == "numbers"


@pytest.mark.parametrize(
    "found",
    [
        {"device": "cpu", "steps": [{"name": "full", "sequences_per_second": 1.0}]},
        {"device": "cuda", "steps": [{"name": "full", "code": 1}]},
        {"device": "cuda", "steps": [{"code": None}]},
        {"gpu": "NVIDIA H200", "steps": 0},
        {"steps": 2551},
    ],
)
def test_train_is_next_after_a_training_without_steps_on_a_gpu(found: object, tmp_path: Path) -> None:
    write(tmp_path / "gpu_train.json", found)
    assert next_call(tmp_path) == "train"


def test_numbers_is_next_in_this_checkout() -> None:
    assert next_call(ROOT / "benchmarks" / "results") == "numbers"


@pytest.mark.parametrize("content", ['{"device": "cuda", "st', "null", "5", '{"steps": null}', "[" * 200_000, '["a"]'])
def test_damaged_results_count_as_no_training(content: str, tmp_path: Path) -> None:
    (tmp_path / "gpu_train.json").write_text(content)
    assert next_call(tmp_path) == "train"


# Steps of the calls


@pytest.mark.parametrize("name", CALLS)
def test_steps_fit_into_the_time_of_their_call(name: str, place: Place) -> None:
    """The last step of the probe is not counted, because no time may be left for it."""
    needed = [step.seconds for step in STEPS[name](place)][: -1 if name == "probe" else None]
    assert sum(needed) <= SECONDS[name] <= borrowed.read().limits.call_seconds
    assert set(CARRIED[name]) <= {"packages", "onnxruntime", "bundles", "digits"}


def test_training_ends_before_its_time_limit(place: Place) -> None:
    step = STEPS["train"](place)[0]
    minutes = float(step.command[step.command.index("--time-limit") + 1])
    assert 0 < 60 * minutes <= step.seconds - 15


def test_training_uses_the_command_that_was_measured(place: Place) -> None:
    """Options for time, digits and folders are not compared."""
    log = json.loads((ROOT / "benchmarks" / "results" / "gpu_train_2.json").read_text())
    command = list(STEPS["train"](place)[0].command)
    for option in ("-o", "--time-limit", "--parts"):
        del command[command.index(option) : command.index(option) + 2]
    measured = log["command"].split()
    for option in ("-o", "--time-limit", "--parts", "--digits"):
        del measured[measured.index(option) : measured.index(option) + 2]
    assert sorted(command) == sorted(measured[1:])


def test_a_rehearsed_training_compiles_nothing(tmp_path: Path) -> None:
    place = Place(out=tmp_path, work=tmp_path, unpacked=tmp_path, device="cpu", quick=True)
    (step,) = STEPS["train"](place)
    assert "--no-compile" in step.command
    assert "--cuda-graph" not in step.command


# Compiler cache from one call to the next


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="unpacking safely needs Python 3.11.4 or later")
def test_the_compiler_cache_reaches_the_next_training(place: Place, tmp_path: Path) -> None:
    cache = place.cache
    for name, content in {"fxgraph/ab/one": b"code", "triton/0/x.cubin": b"code", "locks/a.lock": b""}.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(content)
    packed = tmp_path / "pack" / "inductor" / "inductor.tar.xz"
    assert "MiB" in pack(cache, packed, 10_000)
    folders = carried("train", tmp_path / "pack")
    assert folders == [tmp_path / "pack" / "inductor"]
    assert carried("numbers", tmp_path / "pack") == []
    there = Place(out=place.out, work=place.work, unpacked=tmp_path / "there")
    unpack(folders, there.unpacked)
    assert variables_for([], there.cache)["TORCHINDUCTOR_CACHE_DIR"] == str(there.cache)
    found = sorted(str(file.relative_to(there.cache)) for file in there.cache.rglob("*") if file.is_file())
    assert found == ["fxgraph/ab/one", "triton/0/x.cubin"]  # hard-linked locks would wait for each other


@pytest.mark.parametrize(("size", "says"), [(0, "nothing was compiled"), (1000, "expected at most 0; the next call")])
def test_an_empty_or_too_large_cache_is_refused(size: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernel").write_bytes(os.urandom(size))
    with pytest.raises(ValueError, match=says):
        pack(tmp_path / "cache", tmp_path / "cache.tar.xz", 100)
    assert not (tmp_path / "cache.tar.xz").exists()


# Runs of calls


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


def test_a_step_and_its_children_are_killed_at_the_time_limit(place: Place) -> None:
    file = place.work / "pid"
    call = Call("probe", place, 100)
    assert call.run([Step(name="slow", seconds=6, command=["-c", SLEEP, str(file)])], os.environ) == 1
    (step,) = json.loads((place.out / "gpu_probe.json").read_text())["steps"]
    assert step["code"] == "the time was over"
    assert gone(int(file.read_text()))


def test_no_step_starts_without_time(place: Place) -> None:
    call = Call("probe", place, 1)
    assert call.run([Step(name="late", seconds=30, command=["-c", "pass"])], os.environ) == 1
    assert json.loads((place.out / "gpu_probe.json").read_text())["steps"][0]["code"] == "no time was left"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_terminated_or_killed_call_leaves_complete_results(place: Place, number: signal.Signals) -> None:
    """At SIGTERM the call ends its steps; SIGKILL is sent to the steps too."""
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
    deadline = time.monotonic() + 300
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGTERM:
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM
    else:
        kill_session(process.pid)
        assert process.wait(120) == -signal.SIGKILL
    assert check_json_files(place.out) == ["gpu_probe.json"]
    steps = json.loads((place.out / "gpu_probe.json").read_text())["steps"]
    assert [(step["name"], step["code"]) for step in steps] == [("one", 0), ("two", None)]
    while not gone(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(int(pid.read_text()))


def test_speed_and_learning_curve_are_read_from_the_log_of_a_training(tmp_path: Path) -> None:
    assert learned(tmp_path) == {}
    write(tmp_path / "config.json", {"train": {"batch_size": 32}})
    lines = ["elapsed_s,step,valid_mse"]
    lines += [f"{10 + 0.5 * step},{step}," for step in range(0, 100, 10)]
    lines += [",50,120.5"]
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("\n".join(lines))
    assert learned(tmp_path) == {"first_s": 10.0, "steps": 90, "sequences_per_second": 64.0, "valid_mse": [[50, 120.5]]}


def test_only_the_newest_complete_set_of_weights_is_kept(tmp_path: Path) -> None:
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


def test_an_incomplete_result_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"steps": [')
    with pytest.raises(RuntimeError, match=r"half\.json: incomplete"):
        check_json_files(tmp_path)
