"""Run one call on a borrowed GPU machine: a fixed list of steps within a time limit.

    python -m benchmarks.gpu.call probe|train|numbers|next [--seconds S] [--device cpu --quick]

There are three calls. `probe` checks the results and profiles the main rows; `train` trains the full-size model;
`numbers` measures all rows. `next` means `train` until benchmarks/results contains a training on a GPU, and then
`numbers`. Each step is a process with a time limit.

Writes the output of the steps to $OUT/gpu_CALL.log, and their exit codes and durations to $OUT/gpu_CALL.json, which is
replaced before and after each step. Without OUT, the files are written to benchmarks/results.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import borrowed
from benchmarks.gpu.pack import unpack
from benchmarks.gpu.plan import Costs, seconds
from e3d_deploy.files import write_file
from e3d_deploy.parts import PATTERN

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACK = ROOT / ".gpu-pack"
CALLS = ("probe", "train", "numbers")
CARRIED = {
    "probe": ("packages", "onnxruntime", "bundles"),
    "train": ("packages", "digits"),
    "numbers": ("packages", "onnxruntime", "bundles"),
}
"""Folders of the pack that each call uses."""
CACHE = "inductor"
"""Folder of the pack with the compiler cache of an earlier training call; optional, and used only by `train`."""
PACKAGES = ("packages", "onnxruntime")
"""Folders of the pack that contain Python packages."""
SECONDS = {"probe": 320.0, "train": 530.0, "numbers": 380.0}
"""Time limit of each call (s).

`probe` and `numbers` together, with a start of the machine before each, fit into a quarter of an hour; so does `train`
alone.
"""
CACHE_SECONDS = 40.0
"""Time to pack the compiler cache at the end of a training call (s)."""
START_SECONDS = 35.0
"""Time that the start and the end of the training process take (s)."""
QUICK_SECONDS = 10.0
"""Duration of each training in a rehearsal (s)."""
PATIENCE = 5
"""Factor on all time limits in a rehearsal, because processors differ in speed."""
ENDING = 5.0
"""Time between SIGTERM and SIGKILL to a process (s)."""
MEMORY = """
import sys, pytest
class Skips:
    def pytest_runtest_logreport(self, report):
        self.skipped = getattr(self, "skipped", False) or report.skipped
skips = Skips()
options = ["-q", "-rs", "-x", "-m", "gpu", "-k", "memory_and_kernel", "-p", "no:cacheprovider"]
code = pytest.main([*options, "tests/runtime/backends/test_tensorrt.py"], plugins=[skips])
sys.exit(int(code) or (4 if skips.skipped and sys.argv[1] == "cuda" else 0))  # pytest returns 0 if all are skipped
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process of a call."""

    name: str
    seconds: float
    """Time limit (s)."""
    command: Sequence[str]
    planned: bool = False
    """True if the command has an option `--seconds` and limits its own time."""
    run: Path | None = None
    """Folder of the training run that the command creates; its speed is read from the log."""
    parts: Path | None = None
    """Folder to which the run writes its weights in parts."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders, device and duration of a call."""

    out: Path
    """Folder whose files are returned from the machine."""
    work: Path
    """Temporary folder."""
    unpacked: Path
    """Folder with the unpacked pieces."""
    device: str = "cuda"
    quick: bool = False
    """True to use tiny sizes, for a rehearsal."""
    seconds: float | None = None
    """Time limit of the call (s); None for that in `SECONDS`."""

    @property
    def compiles(self) -> bool:
        """True if the training compiles its cells; on a CPU this would take minutes."""
        return self.device == "cuda" and not self.quick

    @property
    def cache(self) -> Path:
        """Folder of Inductor's compiler cache; contains the carried cache, if any."""
        return self.unpacked / CACHE

    @property
    def options(self) -> list[str]:
        return ["--device", self.device, *(["--quick"] if self.quick else [])]


# Steps of each call


def probe(place: Place) -> list[Step]:
    """Return the steps that check the results and profile the main rows; no time may be left for the last step."""
    batch = ("--batches", "1")
    passes = ",".join(name if place.quick else f"{name} {BATCH}" for name in PASSES)
    return [
        benchmark(place, "probe_rows", 85, "--sections", "roofline,plain,profile,micro", "--rows", PROBED, *batch),
        benchmark(place, "probe_training", 110, "--sections", "training", "--rows", passes),
        benchmark(place, "probe_bundles", 35, "--sections", "bundles", "--rows", "onnxruntime", *batch),
        benchmark(place, "probe_backends", 60, "--sections", "backends", "--rows", "torch-cuda-graph bf16", *batch),
        Step(name="memory", seconds=20, command=["-c", MEMORY, place.device]),
    ]


def train(place: Place) -> list[Step]:
    """Return the steps of a training call: train the full-size network, then pack the compiler cache."""
    full = training(place, (place.seconds or SECONDS["train"]) - CACHE_SECONDS)
    if not place.compiles:
        return [full]
    command = ["-m", "benchmarks.gpu.inductor", str(place.cache), str(place.out / "gpu_inductor.tar.xz")]
    return [full, Step(name="inductor", seconds=CACHE_SECONDS, command=command)]


def numbers(place: Place) -> list[Step]:
    """Return the single step that measures all rows, ordered by value; times of the probe replace the estimates."""
    measured: Path | None = RESULTS / "gpu_probe_rows.json"
    try:
        Costs.read(measured)
    except ValueError as error:
        print(f"the plan uses estimated times: {error}", file=sys.stderr)
        measured = None
    costs = ["--costs", str(measured)] if measured and not place.quick else []
    return [benchmark(place, "numbers_rows", place.seconds or SECONDS["numbers"], *costs)]


def benchmark(place: Place, name: str, seconds: float, *options: str) -> Step:
    """Return a step that runs sections of `python -m benchmarks.gpu`, which ends by itself before the time limit."""
    bundles = ["--bundles", str(place.unpacked / "bundles" / ("tiny" if place.quick else "full"))]
    files = ["--out", str(place.out / f"gpu_{name}.json")]
    command = ["-m", "benchmarks.gpu", *place.options, *options, *bundles, *files]
    return Step(name=name, seconds=seconds, command=command, planned=True)


BATCH = "16"
"""Batch size of the training; 32 was not measured with 2D convolutions (benchmarks/NOTES.md)."""
PASSES = ("eager", "captured", "compiled-conv2d")
"""Training passes that the probe measures: launched by Python, captured, and as in the training call."""
FULL = ["--hidden", "64,64,64,64", "--patch-size", "4", "--kernel-size", "5", "--batch-size", BATCH]
TINY = ["--hidden", "8,8", "--patch-size", "16", "--kernel-size", "3", "--batch-size", "2"]
TINY += ["--validation-clips", "2", "--log-every", "1"]

# These are the options of benchmarks/results/gpu_train_2.json. With --schedule-by time, 1,000,000 steps stand for the
# whole time: the burn-in takes place in its last quarter, and true frames are shown in its first two fifths.
LEARNING = ["--schedule", "cosine", "--schedule-by", "time", "--warmup-steps", "200", "--learning-rate", "8e-4"]
LEARNING += ["--steps", "1000000", "--sampling-stop-step", "400000", "--burn-in-steps", "250000", "--no-decay"]
LEARNING += ["--log-every", "10", "--validate-every", "500"]
LEARNING += ["--save-every", "1000000"]  # the state for --resume would not be returned
LEARNING += ["--l1-weight", "0", "--gradient-clip", "1"]  # otherwise a short run keeps predicting black frames


def training(place: Place, seconds: float) -> Step:
    """Return the step that trains for the given time and writes the weights to the returned folder."""
    run, parts = place.work / "full", place.out / "gpu_full"
    minutes = (QUICK_SECONDS if place.quick else seconds - START_SECONDS) / 60
    speed = ["--precision", "fp32" if place.device == "cpu" else "bf16", "--workers", "1" if place.quick else "8"]
    speed += ["--compile", "--cuda-graph"] if place.compiles else ["--no-compile"]
    command = ["-m", "e3d_deploy", "train", "-o", str(run), *LEARNING, *(TINY if place.quick else FULL), *speed]
    command += ["--time-limit", f"{minutes:.3f}", "--parts", str(parts)]
    if (place.unpacked / "digits").exists():
        command += ["--digits", str(place.unpacked / "digits" / "digits.npz")]
    return Step(name="full", seconds=seconds, command=command, run=run, parts=parts)


PROBED = ",".join(
    [
        *("eager", "autocast bf16", "ring fp32", "ring tf32 in-place", "ring bf16 channels-last", "ring bf16 in-place"),
        *("attention", "norm"),
    ]
)
"""Rows that the probe measures, to check and profile the captured steps."""
STEPS = {"probe": probe, "train": train, "numbers": numbers}


# Results of earlier calls


def next_call(results: Path) -> str:
    """Return the next call: `train` until a training on a GPU is recorded, then `numbers`."""
    return "numbers" if any(map(trained_on_a_gpu, results.glob("gpu_train*.json"))) else "train"


def trained_on_a_gpu(file: Path) -> bool:
    """Return True if a file records a training on a GPU with at least one step.

    The file is the record of a training call or the log of a training; a damaged file counts as no training.
    """
    try:
        found = json.loads(file.read_text())
        on_a_gpu, steps = found.get("device") == "cuda" or bool(found.get("gpu")), found.get("steps")
        if isinstance(steps, int):  # the log of a training
            return on_a_gpu and steps > 0
        done = {step["name"] for step in steps or () if step.get("sequences_per_second")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return on_a_gpu and "full" in done


# Running


class Call:
    """Runs the steps of one call, and writes the record before and after each step.

    Args:
        seconds: time limit of the call.
    """

    def __init__(self, name: str, place: Place, seconds: float) -> None:
        self.name, self.place = name, place
        self.started, self.seconds = time.monotonic(), seconds
        self.log, self.file = place.out / f"gpu_{name}.log", place.out / f"gpu_{name}.json"
        self.record: dict[str, Any] = {
            "benchmark": f"gpu_{name}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": place.device,
            "quick": place.quick,
            "steps": [],
        }
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, steps: Sequence[Step], variables: Mapping[str, str]) -> int:
        """Run the steps one after the other; return the number that failed."""
        self.place.out.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        for step in steps:
            self.step(step, variables)
        return sum(step["code"] != 0 for step in self.record["steps"])

    def step(self, step: Step, variables: Mapping[str, str]) -> None:
        """Run a step, record its result, and print the end of its output."""
        patience = PATIENCE if self.place.quick else 1
        limit = min(patience * step.seconds, self.seconds - self.elapsed())
        found: dict[str, Any] = {"name": step.name, "at_s": round(self.elapsed(), 1), "limit_s": round(limit, 1)}
        self.record["steps"].append(found | {"code": None})
        self.write()
        before = self.log.stat().st_size
        began = time.monotonic()
        found["code"] = self.process_of(step, limit, variables) if limit > ENDING else "no time was left"
        found["seconds"] = round(time.monotonic() - began, 1)
        try:
            if step.run is not None:
                found |= learned(step.run)
            if step.parts is not None:
                keep_last_set(step.parts)
        except (OSError, ValueError, TypeError, KeyError) as error:  # files that a killed process left incomplete
            found["not_read"] = f"{type(error).__name__}: {error}"
        self.record["steps"][-1] = found
        self.write()
        with self.log.open("rb") as log:
            log.seek(before)
            tail = log.read().decode(errors="replace").splitlines()[-25:]
        print(f"=== {step.name}: {json.dumps(found)}", *tail, sep="\n", flush=True)

    def process_of(self, step: Step, limit: float, variables: Mapping[str, str]) -> int | str:
        """Run the process of a step; return its exit code, or a text if its time was over."""
        with self.log.open("ab") as log:
            log.write(f"=== {step.name}: {' '.join(step.command)[:2000]}\n".encode())
            log.flush()
            # The output goes to a file, because a surviving grandchild would keep a pipe open.
            self.process = subprocess.Popen(
                [sys.executable, *step.command, *(["--seconds", str(int(limit - ENDING))] if step.planned else [])],
                cwd=ROOT,
                env=dict(variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            try:
                return self.process.wait(limit)
            except subprocess.TimeoutExpired:
                self.end()
                return "the time was over"
            finally:
                self.process = None

    def end(self) -> None:
        """End the running step and its children."""
        process = self.process
        if process is None:
            return
        process.terminate()  # not the group: data loader workers must not end before their parent
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
        finally:
            with suppress(ProcessLookupError):  # the whole group has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def write(self) -> None:
        write_file(self.file, (json.dumps(self.record, indent=1) + "\n").encode())


def learned(run: Path) -> dict[str, Any]:
    """Return the speed and the learning curve of a training run from its log, as far as they are logged.

    The first tenth of the log is left out of the speed.
    """
    files, config = sorted(run.glob("logs/version_*/metrics.csv")), run / "config.json"
    if not files or not config.exists():
        return {}
    with files[-1].open() as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {}
    done = [(float(row["elapsed_s"]), int(row["step"])) for row in rows if row.get("elapsed_s")]
    if done:
        found["first_s"] = done[0][0]
    done = done[len(done) // 10 :]
    if len(done) > 1 and done[-1][0] > done[0][0]:
        batch = json.loads(config.read_text())["train"]["batch_size"]
        found["steps"] = done[-1][1]
        found["sequences_per_second"] = round(batch * (done[-1][1] - done[0][1]) / (done[-1][0] - done[0][0]), 2)
    if curve := [[int(row["step"]), float(row["valid_mse"])] for row in rows if row.get("valid_mse")]:
        found["valid_mse"] = curve
    return found


def keep_last_set(parts: Path) -> None:
    """Delete all parts except the newest complete set, because the number of returned files is limited."""
    sets: dict[str, list[Path]] = {}
    for file in parts.glob(PATTERN):
        sets.setdefault(file.name.split(".part-")[0], []).append(file)
    whole = [files for files in sets.values() if files[0].name.endswith(f"-of-{len(files)}.safetensors")]
    if not whole:
        return
    last = max(whole, key=lambda files: max(file.stat().st_mtime_ns for file in files))
    for file in parts.glob(PATTERN):
        if file not in last:
            file.unlink()


def carried(name: str, pack: Path) -> list[Path]:
    """Return the folders of the pack that a call uses and that exist; report missing folders on stderr."""
    for piece in CARRIED[name]:
        if not (pack / piece).is_dir():
            print(
                f"{pack / piece}: no such folder, so some rows are skipped; carry it with the checkout", file=sys.stderr
            )
    pieces = (*CARRIED[name], *((CACHE,) if name == "train" else ()))
    return [pack / piece for piece in pieces if (pack / piece).is_dir()]


def variables_for(folders: Sequence[Path], cache: Path) -> dict[str, str]:
    """Return the environment variables of the steps, with which Python finds carried packages before installed ones.

    Args:
        folders: unpacked folders of the pack.
        cache: folder of Inductor's compiler cache.
    """
    fits = ".".join(map(str, sys.version_info[:2])) == borrowed.read().python_tag
    if not fits:
        print("the carried packages are for another Python version; the installed packages are used", file=sys.stderr)
    packages = [folder for folder in folders if fits and folder.name in PACKAGES]
    path = borrowed.joined_path(*packages, ROOT)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.call", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("call", choices=(*CALLS, "next"))
    parser.add_argument("--seconds", type=seconds, help="time limit of the call (s)")
    parser.add_argument("--pack", type=Path, default=PACK, help="folder with the carried pieces")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, for a rehearsal")
    options = parser.parse_args()
    name: str = next_call(RESULTS) if options.call == "next" else options.call
    with tempfile.TemporaryDirectory(prefix="gpu-call-") as folder:
        unpacked = Path(folder) / "unpacked"
        folders = unpack(carried(name, options.pack), unpacked)
        out = Path(os.environ.get("OUT") or RESULTS).absolute()
        place = Place(
            out=out,
            work=Path(folder),
            unpacked=unpacked,
            device=options.device,
            quick=options.quick,
            seconds=options.seconds,
        )
        patience = PATIENCE if options.quick else 1
        call = Call(name, place, options.seconds or patience * SECONDS[name])

        def stop(*_: object) -> None:
            call.end()
            sys.exit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)
        failed = call.run(STEPS[name](place), variables_for(folders, place.cache))
    print(f"{name}: {len(call.record['steps'])} steps, {failed} failed, {call.elapsed():.0f} s; {call.file}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
