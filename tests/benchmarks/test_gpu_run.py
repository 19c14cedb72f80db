"""Worker processes of the GPU benchmark: failures are recorded and other rows continue."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import machine, run, worker
from benchmarks.gpu.bench import Bench, Settings
from benchmarks.gpu.failures import line_of
from benchmarks.gpu.plan import Costs, Unit
from benchmarks.gpu.results import Results
from benchmarks.gpu.sections import micro
from benchmarks.gpu.worker import SPOILT, Job
from e3d_deploy.errors import BackendUnavailable

SETTINGS = Settings(device="cpu", quick=True, batches=(1,))
FAKE = """
import json, os, signal, subprocess, sys, time
job = json.loads(sys.argv[1])
results = json.load(open(job["file"]))
def write():
    json.dump(results, open(job["file"], "w"))
for name in job["names"]:
    section, row = name.split(": ")
    results["running"] = name
    write()
    if row == "crashes":
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if row == "hangs":
        child = subprocess.Popen(["sleep", "600"])
        with open(job["file"] + ".new", "w") as file:
            file.write(str(child.pid))
        os.rename(file.name, os.path.join(os.path.dirname(job["file"]), "hangs"))
        time.sleep(600)
    if row == "exits":
        sys.exit("no device")
    if row == "fails":
        results["failed"][name] = "it failed"
        del results["running"]
        write()
        sys.exit(75)
    results["sections"].setdefault(section, {})[row] = {"value": 1}
    del results["running"]
    write()
"""


def fake(job: Job) -> Sequence[str]:
    """Return the command line of a fake worker, which behaves as the names of its rows say."""
    return [sys.executable, "-S", "-c", FAKE, job.to_json()]


def runs(pid: int) -> bool:
    """Return True if a process exists and has not ended; a zombie has ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def listed(*rows: str) -> list[Unit]:
    return [Unit(section="plain", row=row, tier=1, cost_s=0.1, work=dict) for row in rows]


def ran(tmp_path: Path, *rows: str, seconds: float = 60) -> dict[str, Any]:
    """Run rows in fake workers; return the results."""
    results = Results(tmp_path / "gpu.json")
    costs = Costs(start_s=0.1)
    run.run(SETTINGS, listed(*rows), results, seconds=seconds, costs=costs, command=fake)
    on_disk: dict[str, Any] = json.loads(results.path.read_text())
    assert on_disk == results.data
    return on_disk


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("crashes", "its process ended by SIGSEGV (about to crash)"),
        ("exits", "its process ended with exit code 1 (no device)"),
        ("fails", "it failed"),
    ],
)
def test_only_the_row_that_ends_its_process_fails(tmp_path: Path, row: str, reason: str) -> None:
    results = ran(tmp_path, "first", row, "last")
    assert results["failed"] == {f"plain: {row}": reason}
    assert set(results["sections"]["plain"]) == {"first", "last"}


def test_a_row_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, grandchildren = subprocess.Popen.wait, list[int]()

    def until_it_hangs(process: subprocess.Popen[str], timeout: float | None = None) -> int:
        while timeout is not None and process.poll() is None:
            if (tmp_path / "hangs").exists():
                grandchildren.append(int((tmp_path / "hangs").read_text()))
                (tmp_path / "hangs").unlink()
                raise subprocess.TimeoutExpired(process.args, timeout)
            time.sleep(0.01)
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_hangs)
    results = ran(tmp_path, "first", "hangs", "last")
    assert [runs(one) for one in grandchildren] == [False]
    assert "killed after" in results["failed"]["plain: hangs"]
    assert set(results["sections"]["plain"]) == {"first", "last"}


def test_a_process_that_runs_no_row_is_not_restarted_endlessly(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json")
    command = [sys.executable, "-S", "-c", ""]
    run.run(SETTINGS, listed("a", "b"), results, seconds=60, costs=Costs(start_s=0.1), command=lambda _: command)
    assert set(results.data["failed"]) == {"plain: a", "plain: b"}


def test_rows_for_which_no_time_is_left_are_skipped(tmp_path: Path) -> None:
    results = ran(tmp_path, "first", seconds=0)
    assert results["skipped"] == {"plain: first": "no time was left for it (about 0 s)"}


def work(tmp_path: Path, works: dict[str, Any], **changes: Any) -> tuple[int, dict[str, Any]]:
    """Run rows in this process like a worker; return the exit code and the results."""
    units = [Unit(section="plain", row=row, tier=1, cost_s=1, work=work) for row, work in works.items()]
    results = Results(tmp_path / "gpu.json")
    fields = {
        "settings": SETTINGS.to_dict(),
        "file": str(results.path),
        "names": tuple(unit.name for unit in units),
        "costs_s": tuple(unit.cost_s for unit in units),
        "started": time.time(),
        "deadline": time.time() + 100,
    }
    code = worker.run(Job(**fields | changes), units, Bench(SETTINGS), results)
    return code, json.loads(results.path.read_text()) if results.path.exists() else {}


def raises(error: Exception) -> Any:
    def work() -> dict[str, Any]:
        raise error

    return work


def test_the_file_is_written_after_each_row(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look() -> dict[str, Any]:
        seen.append(json.loads((tmp_path / "gpu.json").read_text()))
        return {"value": float("nan")}

    code, results = work(tmp_path, {"first": look, "second": look})
    assert code == 0
    assert seen[0]["running"] == "plain: first"
    assert seen[1]["sections"] == {"plain": {"first": {"value": None}}}
    assert "running" not in results


def test_a_failed_row_ends_its_process_and_a_skipped_one_does_not(tmp_path: Path) -> None:
    works = {"absent": raises(BackendUnavailable("not here")), "module": raises(ImportError("no x")), "after": dict}
    code, results = work(tmp_path, works)
    assert (code, results["failed"]) == (0, {})
    assert results["skipped"] == {"plain: absent": "not here", "plain: module": "ImportError: no x"}
    code, results = work(tmp_path, {"broken": raises(ZeroDivisionError("by zero")), "after": dict})
    assert code == SPOILT
    assert results["failed"] == {"plain: broken": "ZeroDivisionError: by zero"}
    assert "ZeroDivisionError" in results["traces"]["plain: broken"]
    assert results["sections"] == {}


def test_a_worker_starts_no_row_without_time_for_it(tmp_path: Path) -> None:
    code, results = work(tmp_path, {"first": raises(AssertionError())}, deadline=time.time() + 0.5)
    assert (code, results) == (0, {})


def test_a_worker_stops_when_its_parent_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter((10, 10, 1))
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    _, results = work(tmp_path, {"first": dict, "second": dict})
    assert set(results["sections"]["plain"]) == {"first"}


def test_a_failed_write_leaves_the_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "gpu.json")
    results.write()
    before = results.path.read_text()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "disk gone")

    monkeypatch.setattr(Path, "replace", refuse)
    results.skip("plain: a", "reason")
    with pytest.raises(OSError, match="disk gone"):
        results.write()
    assert results.path.read_text() == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out of GPU memory (Tried to"),
        (RuntimeError("CUDA error: no kernel image is available for execution\nCompile with"), "has no kernels for"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "driver is too old"),
        (RuntimeError("failed to compile\nlong log"), "RuntimeError: failed to compile"),
    ],
)
def test_each_error_becomes_one_line(error: Exception, expected: str) -> None:
    assert expected in line_of(error)
    assert "\n" not in line_of(error)


@pytest.mark.parametrize(
    ("memory", "programs", "warned"),
    [("4 MiB, 0 %", [], False), ("4 MiB, 0 %", ["77, 1200 MiB, python"], True), ("9000 MiB, 80 %", [], True)],
)
def test_other_programs_on_the_gpu_cause_a_warning(
    memory: str, programs: list[str], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "smi", lambda query: programs if "apps" in query else [memory])
    found = machine.in_use()
    assert ("warning" in found) is warned
    assert not warned or "timings are unreliable" in found["warning"]


def test_machine_code_runs_on_its_own_generation_and_ptx_on_later_ones() -> None:
    built = ["sm_75", "sm_80", "sm_90a", "sm_100", "compute_120"]
    capabilities = {(7, 0): False, (8, 9): True, (9, 0): False, (10, 3): True, (11, 0): False, (12, 1): True}
    assert {one: machine.runs_on(*one, built) for one in capabilities} == capabilities


def test_temporary_files_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json")
    results.write()
    (tmp_path / ".gpu.json.0123").write_text("{")
    results.take_over()
    assert list(tmp_path.iterdir()) == [results.path]


def test_an_operation_that_fails_after_its_first_call_fails_its_row() -> None:
    """A later failure may come from a failed capture. An operation whose first call fails is only left out."""
    calls = iter(range(10))

    def second_fails() -> None:
        if next(calls):
            raise RuntimeError("capture failed")

    bench = Bench(SETTINGS)
    found = micro.timed_variants(bench, "bf16", 0.0, {"none": raises(RuntimeError("no kernel")), "some": dict})
    assert found["variants"]["none"] == {"not_run": "RuntimeError: no kernel"}
    assert found["variants"]["some"]["us"] > 0
    with pytest.raises(RuntimeError, match="capture failed"):
        micro.timed_variants(bench, "bf16", 0.0, {"some": second_fails})
