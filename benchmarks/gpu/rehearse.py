"""Rehearsal of the calls on a borrowed GPU machine, without a GPU and from an empty folder.

    python -m benchmarks.gpu.rehearse [--pack .gpu-pack] [--python PATH] [--parts probe,train,numbers,killed,weights]

Copies what travels to an empty folder and runs each call there on tiny sizes, with the imports confined to the
packages of machine.json and to those that are carried. Then one call is killed in the middle, and the weights that came
back are joined, exported and verified. Best with a Python of the machine's version that holds the machine's packages
(`--python`); with another version, carried packages are taken as they are installed here. Writes
benchmarks/results/rehearsal.json.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import borrowed
from benchmarks.gpu.borrowed import Machine
from benchmarks.gpu.call import CALLS, CARRIED, PACK, PACKAGES, RESULTS, ROOT
from benchmarks.gpu.lacking import Confiner
from benchmarks.gpu.pack import distributions
from benchmarks.gpu.travel import check_results, check_travel, checkout_files, is_model
from e3d_deploy.errors import E3DError
from e3d_deploy.files import write_file

TINY = ["--device", "cpu", "--quick"]
FILE = "rehearsal.json"


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Runs calls in an empty folder.

    Args:
        python: Python that stands for the machine's.
        folder: temporary folder.
    """

    machine: Machine
    pack: Path
    python: str
    folder: Path

    def call(self, name: str) -> dict[str, Any]:
        """Run a call to its end; return its sizes, steps and times.

        Raises:
            RuntimeError: it fails, or asks for a package that is not there.
            ResourceLimit: more travels, or comes back, than may.
        """
        travel = check_travel(ROOT, [self.pack / piece for piece in CARRIED[name]], self.machine.limits)
        process, log, started = self.start(name)
        code = process.wait()
        found = {
            "command": f"python3 -m benchmarks.gpu.call {name}",
            "seconds": round(time.monotonic() - started, 1),
            "exit_code": code,
            "checkout_bytes": travel.tracked_bytes,
            "carried_bytes": travel.carried_bytes,
            "back_bytes": check_results(self.out(name), self.machine.limits),
        }
        if code:
            raise RuntimeError(f"{name}: exit code {code}; mend what it says\n{tail(log)}")
        recorded = json.loads((self.out(name) / f"gpu_{name}.json").read_text())
        return found | {"steps": recorded["steps"], "json_files": whole(self.out(name))}

    def killed(self, name: str) -> dict[str, Any]:
        """Kill a call after its first rows; return which results are there, each whole.

        Raises:
            RuntimeError: it ended before.
        """
        process, log, started = self.start(name, out="killed")
        rows = self.out("killed") / f"gpu_{name}_rows.json"
        while not rows.exists():
            time.sleep(0.2)
            if process.poll() is not None:
                raise RuntimeError(f"{name}: ended before it was killed; mend what it says\n{tail(log)}")
        time.sleep(3)  # into the next rows
        kill_session(process.pid)
        process.wait()
        recorded = json.loads((self.out("killed") / f"gpu_{name}.json").read_text())
        return {
            "command": f"python3 -m benchmarks.gpu.call {name}, killed",
            "seconds": round(time.monotonic() - started, 1),
            "steps": recorded["steps"],
            "json_files": whole(self.out("killed")),
        }

    def start(self, name: str, *, out: str = "") -> tuple["subprocess.Popen[bytes]", Path, float]:
        """Start a call in a copy of what travels."""
        place = self.folder / (out or name)
        checkout = place / "checkout"
        for file in (file for file in checkout_files(ROOT) if not is_model(file)):
            (checkout / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, checkout / file)
        for piece in CARRIED[name]:
            shutil.copytree(self.pack / piece, checkout / PACK.name / piece)
        for folder in ("home", "temporary", "out"):
            (place / folder).mkdir()
        confiner = Confiner(machine=self.machine, carried=self.carried_names(name), python=self.python)
        confined = confiner.confined(place)
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "temporary"),
            "OUT": str(place / "out"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **confined.variables,
        }
        log = place / "output.txt"
        command = [self.python, "-m", "benchmarks.gpu.call", name, *TINY]
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=checkout, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return process, log, started

    def carried_names(self, name: str) -> frozenset[str]:
        """Return the carried distributions that this Python cannot import as they were packed."""
        tag = "import sys; print(*sys.version_info[:2], sep='.')"
        if subprocess.check_output([self.python, "-c", tag], text=True).strip() == self.machine.python_tag:
            return frozenset()
        archives = [file for piece in CARRIED[name] if piece in PACKAGES for file in (self.pack / piece).glob("*.xz")]
        return frozenset().union(*map(distributions, archives))

    def out(self, name: str) -> Path:
        return self.folder / name / "out"

    def weights(self) -> dict[str, Any]:
        """Join, export and verify the weights that the training call brought back."""
        began = time.monotonic()
        model, bundle = self.folder / "full.safetensors", self.folder / "full.e3d"
        e3d("join", self.out("train") / "gpu_full", "-o", model)
        e3d("export", model, "-o", bundle)
        verified = json.loads(e3d("verify", bundle, "--json"))
        kept = {"passed": verified["passed"], "max_abs_difference": max(verified["predictions"])}
        return {
            "models": {"full": {"model_bytes": model.stat().st_size, "verified": kept}},
            "seconds": round(time.monotonic() - began, 1),
        }


def e3d(*arguments: object) -> str:
    """Run a command of the package; return its output.

    Raises:
        RuntimeError: it fails.
    """
    command = [sys.executable, "-m", "e3d_deploy", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"e3d {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def whole(folder: Path) -> list[str]:
    """Return the names of the JSON files in a folder.

    Raises:
        RuntimeError: one of them is cut off.
    """
    names = []
    for file in sorted(folder.rglob("*.json")):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            raise RuntimeError(f"{file.name}: not whole ({error}); write it with write_file") from error
        names.append(file.name)
    return names


def kill_session(leader: int) -> None:
    """Kill every process of a session, as a machine does that is taken away."""
    listed = subprocess.check_output(["ps", "-o", "pid=", "--sid", str(leader)], text=True)
    for pid in map(int, listed.split()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


def versions(python: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    names = ("torch", "numpy", "onnx", "onnxruntime", "lightning", "triton")
    code = (
        "import json, sys; from importlib import metadata as m; found = {'python': sys.version.split()[0]}\n"
        f"for name in {names}:\n try: found[name] = m.version(name)\n except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    return dict(json.loads(subprocess.check_output([python, "-I", "-c", code])))


def rehearse(
    pack: Path,
    machine: Machine,
    *,
    python: str = sys.executable,
    parts: Sequence[str] = (),
    file: Path = RESULTS / FILE,
) -> int:
    """Rehearse the calls, the killed one and the way of the weights; return the exit code.

    Args:
        parts: names of these alone, the others stay in the log as they were; empty for all.
        file: gets the log, after each part.
    """
    before = json.loads(file.read_text())["parts"] if parts and file.exists() else {}
    log: dict[str, Any] = {"benchmark": "rehearsal", "cpus": os.cpu_count(), "parts": before}
    stamp = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions(python)}
    with tempfile.TemporaryDirectory(prefix="gpu-rehearsal-") as folder:
        rehearsal = Rehearsal(machine=machine, pack=pack, python=python, folder=Path(folder))
        todo: dict[str, Callable[[], dict[str, Any]]] = {
            **{name: partial(rehearsal.call, name) for name in CALLS},
            "killed": partial(rehearsal.killed, "probe"),
            "weights": rehearsal.weights,
        }
        for name in parts or todo:
            print(f"rehearsing {name}", flush=True)
            try:
                log["parts"][name] = stamp | todo[name]()
            except (E3DError, RuntimeError) as error:
                print(error, file=sys.stderr)
                return 1
            write_file(file, (json.dumps(log, indent=1) + "\n").encode())
            print(f"{name}: {log['parts'][name]['seconds']} s", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.rehearse", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--pack", type=Path, default=PACK, help="folder that `prepare` made")
    parser.add_argument("--python", default=sys.executable, help="Python that stands for the machine's")
    parser.add_argument("--parts", default="", help="these alone: probe, train, numbers, killed, weights")
    parser.add_argument("--out", type=Path, default=RESULTS / FILE, help="log")
    options = parser.parse_args()
    parts = options.parts.split(",") if options.parts else ()
    return rehearse(options.pack.absolute(), borrowed.read(), python=options.python, parts=parts, file=options.out)


if __name__ == "__main__":
    sys.exit(main())
