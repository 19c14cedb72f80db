"""Rehearse the calls on a borrowed GPU machine, on this machine without a GPU.

    python -m benchmarks.gpu.rehearse [--pack .gpu-pack] [--python PATH] [--parts probe,train,numbers,killed,weights]

Copies the files that are sent to the machine to an empty folder and runs each call there with tiny sizes. Imports are
confined to the packages of machine.json and the carried packages. Then kills one call while it runs, and joins, exports
and verifies the weights that the training call returned.

Give `--python` a Python of the machine's version with the machine's packages. With another version, the packages that
are installed here stand in for the carried packages. Writes benchmarks/results/rehearsal.json after each part.
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
    """Runs calls in empty folders.

    Args:
        pack: folder of the pieces that `prepare` made.
        python: Python that stands in for the machine's.
        folder: temporary folder for the copies and results.
    """

    machine: Machine
    pack: Path
    python: str
    folder: Path

    def call(self, name: str) -> dict[str, Any]:
        """Run a call to its end; return its sizes, steps and times.

        Raises:
            RuntimeError: the call fails, for example because a package is missing.
            ResourceLimit: the sent or returned files exceed a limit.
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
            raise RuntimeError(f"{name}: exit code {code}; correct the error below\n{tail(log)}")
        recorded = json.loads((self.out(name) / f"gpu_{name}.json").read_text())
        return found | {"steps": recorded["steps"], "json_files": check_json_files(self.out(name))}

    def killed(self, name: str) -> dict[str, Any]:
        """Kill a call after its first rows; check that its result files are complete, and return their names.

        Raises:
            RuntimeError: the call ended before it was killed, or a result file is incomplete.
        """
        process, log, started = self.start(name, out="killed")
        rows = self.out("killed") / f"gpu_{name}_rows.json"
        while not rows.exists():
            time.sleep(0.2)
            if process.poll() is not None:
                raise RuntimeError(f"{name}: ended before it was killed; correct the error below\n{tail(log)}")
        time.sleep(3)  # some of the next rows run meanwhile
        kill_session(process.pid)
        process.wait()
        recorded = json.loads((self.out("killed") / f"gpu_{name}.json").read_text())
        return {
            "command": f"python3 -m benchmarks.gpu.call {name}, killed",
            "seconds": round(time.monotonic() - started, 1),
            "steps": recorded["steps"],
            "json_files": check_json_files(self.out("killed")),
        }

    def start(self, name: str, *, out: str = "") -> tuple["subprocess.Popen[bytes]", Path, float]:
        """Copy the files that are sent to the machine and start a call in the copy.

        Args:
            out: subfolder for the copy and the results; empty for one named after the call.

        Returns:
            The process, the file of its output, and its start time.
        """
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
        """Return the carried distributions that must be imported from this machine.

        There are none if this Python has the machine's version, because it can import the carried packages.
        """
        tag = "import sys; print(*sys.version_info[:2], sep='.')"
        if subprocess.check_output([self.python, "-c", tag], text=True).strip() == self.machine.python_tag:
            return frozenset()
        archives = [file for piece in CARRIED[name] if piece in PACKAGES for file in (self.pack / piece).glob("*.xz")]
        return frozenset().union(*map(distributions, archives))

    def out(self, name: str) -> Path:
        return self.folder / name / "out"

    def weights(self) -> dict[str, Any]:
        """Join, export and verify the weights that the training call returned."""
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
    """Run `e3d` with arguments; return its standard output.

    Raises:
        RuntimeError: the command fails.
    """
    command = [sys.executable, "-m", "e3d_deploy", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"e3d {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def check_json_files(folder: Path) -> list[str]:
    """Check that all JSON files under a folder are complete; return their names.

    Raises:
        RuntimeError: a file is not valid JSON.
    """
    names = []
    for file in sorted(folder.rglob("*.json")):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            raise RuntimeError(f"{file.name}: incomplete ({error}); write the file with write_file") from error
        names.append(file.name)
    return names


def kill_session(leader: int) -> None:
    """Kill all processes of a session, as happens when a machine is taken away."""
    listed = subprocess.check_output(["ps", "-o", "pid=", "--sid", str(leader)], text=True)
    for pid in map(int, listed.split()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def tail(log: Path) -> str:
    """Return the last lines of a file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


def versions(python: str) -> dict[str, str]:
    """Return the versions of a Python and of its main packages."""
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
    """Rehearse the calls, a killed call and the use of the weights; return the exit code.

    Args:
        parts: names of the parts to rehearse; empty for all. The log keeps its entries for other parts.
        file: log, written after each part.
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
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of the pack that benchmarks.gpu.prepare wrote")
    parser.add_argument("--python", default=sys.executable, help="Python that stands in for the machine's")
    parser.add_argument(
        "--parts", default="", help="rehearse only these, separated by commas: probe, train, numbers, killed, weights"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / FILE, help="result file")
    options = parser.parse_args()
    parts = options.parts.split(",") if options.parts else ()
    return rehearse(options.pack.absolute(), borrowed.read(), python=options.python, parts=parts, file=options.out)


if __name__ == "__main__":
    sys.exit(main())
