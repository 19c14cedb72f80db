"""One call on a borrowed GPU machine.

    python -m benchmarks.gpu.call probe|train|numbers|next [--seconds S] [--device cpu --quick]

`probe` finds out if everything is right and where the time goes; `train` trains the full-size model; `numbers` times
everything. `next` is `train` while benchmarks/results holds no result of it on a GPU, and `numbers` from then on. Every
step is a process with a time limit. Its output goes to $OUT/gpu_CALL.log, and its exit code and duration to
$OUT/gpu_CALL.json, which is written before and after each step; without OUT, benchmarks/results is meant.
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
"""Folders of the pack that each call needs."""
PACKAGES = ("packages", "onnxruntime")
"""Folders of the pack that hold Python packages."""
SECONDS = {"probe": 340.0, "train": 400.0, "numbers": 500.0}
"""Duration of each call (s); with the start of the machine both calls of a session fit into a quarter of an hour."""
DEMO_SECONDS = 60.0
"""Time for the small network at the end of a training call (s)."""
START_SECONDS = 20.0
"""Part of a training step's time that its start and its end take (s)."""
QUICK_SECONDS = 10.0
"""Duration of each training in a rehearsal (s)."""
PATIENCE = 5
"""Factor on every time limit in a rehearsal, as processors differ."""
ENDING = 5.0
"""Time between asking a process to end and ending it (s)."""
VERSIONS = """
import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__, "cuda", torch.version.cuda)
for name in ("numpy", "triton", "cuda.core", "cuda.bindings", "onnx", "onnxruntime", "lightning"):
    try:
        module = __import__(name, fromlist=["__version__"])
        print(name, module.__version__, module.__file__)
    except (ImportError, AttributeError) as error:
        print(name, "missing:", error)
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), "cudnn", torch.backends.cudnn.version())
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process of a call."""

    name: str
    seconds: float
    """Most time that it gets (s)."""
    command: Sequence[str]
    run: Path | None = None
    """Folder of the training run that it makes, read for its speed."""
    parts: Path | None = None
    """Folder for the weights of that run, in parts."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how a call runs."""

    out: Path
    """Folder that comes back."""
    work: Path
    """Temporary folder."""
    unpacked: Path
    """Carried folders, unpacked."""
    device: str = "cuda"
    quick: bool = False
    """Tiny sizes, to rehearse."""

    @property
    def options(self) -> list[str]:
        return ["--device", self.device, *(["--quick"] if self.quick else [])]


# Steps of each call


def probe(place: Place) -> list[Step]:
    """Return the steps that tell what is right and where the time goes; the last ones may find no time left."""
    memory = ["-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_tensorrt_backend.py"]
    batch = ("--batches", "1")
    return [
        Step(name="versions", seconds=15, command=["-c", VERSIONS]),
        training(place, "train_eager", 35, compiled=False, kept=False),
        benchmark(place, "probe_rows", 130, "--sections", "roofline,plain,profile,micro", "--rows", PROBED, *batch),
        training(place, "train_compiled", 65, compiled=True, kept=False),
        benchmark(place, "probe_bundles", 45, "--sections", "bundles", "--rows", "onnxruntime", *batch),
        benchmark(place, "probe_compiled", 90, "--sections", "compiled,backends", "--rows", IN_APPLICATIONS, *batch),
        Step(name="memory", seconds=20, command=[*memory, "-k", "memory_and_kernel"]),
    ]


def train(place: Place) -> list[Step]:
    """Return the steps of a training call: the full-size network, and the small one for the last minute."""
    compiled = compiled_was_faster(RESULTS)
    return [
        training(place, "full", SECONDS["train"] - DEMO_SECONDS, compiled=compiled, kept=True),
        training(place, "demo", DEMO_SECONDS, compiled=False, kept=True),
    ]


def numbers(place: Place) -> list[Step]:
    """Return the one step that times everything, most valuable first."""
    measured = RESULTS / "gpu_probe_rows.json"
    costs = ["--costs", str(measured)] if measured.exists() and not place.quick else []
    return [benchmark(place, "numbers_rows", SECONDS["numbers"], *costs)]


def benchmark(place: Place, name: str, seconds: float, *options: str) -> Step:
    """Return a step that runs sections of `python -m benchmarks.gpu`, and ends by itself before its time."""
    bundles = ["--bundles", str(place.unpacked / "bundles" / ("tiny" if place.quick else "full"))]
    files = ["--out", str(place.out / f"gpu_{name}.json"), "--seconds", str(int(seconds - ENDING))]
    command = ["-m", "benchmarks.gpu", *place.options, *options, *bundles, *files]
    return Step(name=name, seconds=seconds, command=command)


FULL = ["--hidden", "64,64,64,64", "--patch-size", "4", "--kernel-size", "5"]
SMALL = ["--hidden", "40,40", "--patch-size", "8", "--kernel-size", "3"]
TINY = ["--hidden", "8,8", "--patch-size", "16", "--kernel-size", "3", "--batch-size", "2"]
TINY += ["--validation-clips", "2", "--log-every", "1"]

LEARNING = ["--schedule", "onecycle", "--schedule-by", "time", "--steps", "1000000", "--log-every", "10"]
LEARNING += ["--l1-weight", "0", "--gradient-clip", "1"]  # or a short run stays on the plateau of black frames


def training(place: Place, name: str, seconds: float, *, compiled: bool, kept: bool) -> Step:
    """Return a step that trains until its time is over.

    Args:
        kept: write the weights to the folder that comes back; else only the speed counts.
    """
    run = place.work / name
    network = TINY if place.quick else [*(SMALL if name == "demo" else FULL), "--batch-size", "32"]
    minutes = (QUICK_SECONDS if place.quick else seconds - START_SECONDS) / 60
    speed = ["--precision", "fp32" if place.device == "cpu" else "bf16", "--workers", "1" if place.quick else "8"]
    command = ["-m", "e3d_deploy", "train", "-o", str(run), *LEARNING, *network, *speed]
    command += ["--time-limit", f"{minutes:.3f}", "--compile" if compiled and not place.quick else "--no-compile"]
    if (place.unpacked / "digits").exists():
        command += ["--digits", str(place.unpacked / "digits" / "digits.npz")]
    if kept:
        command += ["--parts", str(place.out / f"gpu_{name}")]
    return Step(name=name, seconds=seconds, command=command, run=run, parts=place.out / f"gpu_{name}" if kept else None)


PROBED = "eager,autocast,ring,attention,norm,convolution"
"""Rows that need no compiling; those of `profile` that do find no time in the probe."""
IN_APPLICATIONS = "ring bf16 in-place compiled,torch-cuda-graph bf16"
"""Rows that show if the step compiles, and runs as an application has it; the second takes it from PyTorch's cache."""
STEPS = {"probe": probe, "train": train, "numbers": numbers}


# What was found before


def next_call(results: Path) -> str:
    """Return the call that is due: training until a result of it on a GPU is there, then numbers."""
    trained = recorded(results / "gpu_train.json")
    done = {step["name"] for step in trained.get("steps", ()) if step.get("sequences_per_second")}
    return "numbers" if trained.get("device") == "cuda" and "full" in done else "train"


def compiled_was_faster(results: Path) -> bool:
    """Return if compiled cells trained faster in the probe; True if they were not tried."""
    found = recorded(results / "gpu_probe.json")
    speeds = {step["name"]: step.get("sequences_per_second") for step in found.get("steps", ())}
    if found.get("device") != "cuda" or "train_compiled" not in speeds:
        return True
    return bool((speeds["train_compiled"] or 0) > (speeds.get("train_eager") or 0))


def recorded(file: Path) -> dict[str, Any]:
    """Return a result; empty if it is not there."""
    return dict(json.loads(file.read_text())) if file.exists() else {}


# Running


class Call:
    """One call, its record written before and after each step."""

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
        patience = PATIENCE if self.place.quick else 1
        limit = min(patience * step.seconds, self.seconds - self.elapsed())
        found: dict[str, Any] = {"name": step.name, "at_s": round(self.elapsed(), 1), "limit_s": round(limit, 1)}
        self.record["steps"].append(found | {"code": None})
        self.write()
        before = self.log.stat().st_size
        began = time.monotonic()
        found["code"] = self.process_of(step, limit, variables) if limit > ENDING else "no time was left"
        found["seconds"] = round(time.monotonic() - began, 1)
        if step.run is not None:
            found |= learned(step.run)
        if step.parts is not None:
            keep_last_set(step.parts)
        self.record["steps"][-1] = found
        self.write()
        with self.log.open("rb") as log:
            log.seek(before)
            tail = log.read().decode(errors="replace").splitlines()[-25:]
        print(f"=== {step.name}: {json.dumps(found)}", *tail, sep="\n", flush=True)

    def process_of(self, step: Step, limit: float, variables: Mapping[str, str]) -> int | str:
        """Run a step; return its exit code, or that its time was over."""
        with self.log.open("ab") as log:
            log.write(f"=== {step.name}: {' '.join(step.command)[:2000]}\n".encode())
            log.flush()
            # Into a file, not a pipe: a grandchild that lives on would keep a pipe open.
            self.process = subprocess.Popen(
                [sys.executable, *step.command],
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
        os.killpg(process.pid, signal.SIGTERM)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
        finally:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def write(self) -> None:
        write_file(self.file, (json.dumps(self.record, indent=1) + "\n").encode())


def learned(run: Path) -> dict[str, Any]:
    """Return speed and learning curve of a training run, as far as its log has them; its first tenth does not count."""
    files, config = sorted(run.glob("logs/version_*/metrics.csv")), run / "config.json"
    if not files or not config.exists():
        return {}
    with files[-1].open() as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {}
    done = [(float(row["elapsed_s"]), int(row["step"])) for row in rows if row.get("elapsed_s")]
    done = done[len(done) // 10 :]
    if len(done) > 1 and done[-1][0] > done[0][0]:
        batch = json.loads(config.read_text())["train"]["batch_size"]
        found["steps"] = done[-1][1]
        found["sequences_per_second"] = round(batch * (done[-1][1] - done[0][1]) / (done[-1][0] - done[0][0]), 2)
    if curve := [[int(row["step"]), float(row["valid_mse"])] for row in rows if row.get("valid_mse")]:
        found["valid_mse"] = curve
    return found


def keep_last_set(parts: Path) -> None:
    """Delete all but the last whole set of parts, as only so many files come back."""
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
    """Return the folders of the pack that a call needs and that are there; say on stderr which are not."""
    for piece in CARRIED[name]:
        if not (pack / piece).is_dir():
            print(f"{pack / piece}: is not there, so some rows are skipped; carry it", file=sys.stderr)
    return [pack / piece for piece in CARRIED[name] if (pack / piece).is_dir()]


def variables_for(folders: Sequence[Path]) -> dict[str, str]:
    """Return the environment of the steps: carried packages before installed ones, output at once."""
    fits = ".".join(map(str, sys.version_info[:2])) == borrowed.read().python_tag
    if not fits:
        print("the carried packages are for another Python; those installed here are taken", file=sys.stderr)
    packages = [folder for folder in folders if fits and folder.name in PACKAGES]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([*map(str, packages), str(ROOT), *filter(None, before)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.call", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("call", choices=(*CALLS, "next"))
    parser.add_argument("--seconds", type=float, help="duration of the call")
    parser.add_argument("--pack", type=Path, default=PACK, help="what was carried")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to rehearse")
    options = parser.parse_args()
    name: str = next_call(RESULTS) if options.call == "next" else options.call
    with tempfile.TemporaryDirectory(prefix="gpu-call-") as folder:
        unpacked = Path(folder) / "unpacked"
        folders = unpack(carried(name, options.pack), unpacked)
        out = Path(os.environ.get("OUT") or RESULTS).absolute()
        place = Place(out=out, work=Path(folder), unpacked=unpacked, device=options.device, quick=options.quick)
        patience = PATIENCE if options.quick else 1
        call = Call(name, place, options.seconds or patience * SECONDS[name])

        def stop(*_: object) -> None:
            call.end()
            sys.exit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)
        failed = call.run(STEPS[name](place), variables_for(folders))
    print(f"{name}: {len(call.record['steps'])} steps, {failed} failed, {call.elapsed():.0f} s; {call.file}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
