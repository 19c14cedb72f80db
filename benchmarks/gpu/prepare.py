"""Prepare the files that are sent to a borrowed GPU machine, and print the commands to run there.

    python -m benchmarks.gpu.prepare [-o .gpu-pack] [--pieces NAME,...] [--rehearse]

Writes four pieces to the pack, each a folder with one archive:

- `onnxruntime`: onnxruntime-gpu, reduced to the code for the machine's GPU, and cuda-core;
- `bundles`: the bundles of benchmarks.gpu.bundles;
- `digits`: the digits of benchmarks.digits;
- `packages`: packages that the calls import and that the machine lacks or may have in too old a version. They are found
  by running the calls on this machine with tiny sizes.

Then checks the size of the files that each call sends, and prints the commands. Needs a network (pip, npm), git and a
few minutes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.gpu import borrowed
from benchmarks.gpu.borrowed import Machine, canonical, joined_path
from benchmarks.gpu.call import CALLS, CARRIED, PACK, RESULTS, ROOT, SECONDS, carried, next_call
from benchmarks.gpu.lacking import Confiner, versions_here
from benchmarks.gpu.pack import archive, install, shrink_onnxruntime
from benchmarks.gpu.travel import MIB, check_travel
from e3d_deploy.errors import ConfigError, E3DError


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Makes the pieces of the pack."""

    machine: Machine
    pack: Path

    def onnxruntime(self, folder: Path) -> None:
        install(self.machine.carried, folder, self.machine)
        pruned = shrink_onnxruntime(folder, self.machine)
        kept, zeroed = pruned.kept_bytes / MIB, pruned.zeroed_bytes / MIB
        print(f"onnxruntime: kept {kept:.1f} MiB of machine code, zeroed {zeroed:.1f} MiB")

    def bundles(self, folder: Path) -> None:
        module("benchmarks.gpu.bundles", "-o", str(folder / "full"))
        module("benchmarks.gpu.bundles", "--tiny", "-o", str(folder / "tiny"))  # for rehearsals

    def digits(self, folder: Path) -> None:
        module("benchmarks.digits", "-o", str(folder))

    def packages(self, folder: Path) -> None:
        lacking = of_unknown_version(ROOT / "pyproject.toml", self.machine) | self.lacking()
        versions = versions_here(lacking)
        install(versions, folder, self.machine)
        for name, version in versions.items():
            print(f"packages: {name} {version}, for `import {lacking[name]}`")

    def lacking(self) -> dict[str, str]:
        """Run every call here with tiny sizes; return the packages that the calls import and the machine lacks."""
        found: dict[str, str] = {}
        for call in CALLS:
            with tempfile.TemporaryDirectory(prefix="gpu-imports-") as name:
                folder = Path(name)
                confined = Confiner(machine=self.machine, carried=frozenset(self.machine.carried)).confined(
                    folder, learn=True
                )
                variables = {**confined.variables, "OUT": str(folder / "out")}
                tiny = ("--device", "cpu", "--quick", "--pack", str(self.pack))
                module("benchmarks.gpu.call", call, *tiny, variables=variables)
                found |= confined.lacking()
        return found

    @property
    def pieces(self) -> dict[str, Callable[[Path], None]]:
        """Functions that fill the folder of a piece, by name; `packages` is last, because it uses the other pieces."""
        return {
            "onnxruntime": self.onnxruntime,
            "bundles": self.bundles,
            "digits": self.digits,
            "packages": self.packages,
        }

    def make(self, piece: str) -> None:
        """Make a piece, replacing an older one."""
        target = self.pack / piece
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="gpu-pack-") as folder:
            self.pieces[piece](Path(folder))
            archive(Path(folder), target / f"{piece}.tar.xz")
        size = (target / f"{piece}.tar.xz").stat().st_size
        print(f"{piece}: {size / MIB:.1f} MiB packed", flush=True)


def of_unknown_version(project: Path, machine: Machine) -> dict[str, str]:
    """Return the dependencies of the package whose versions on the machine are unknown and may be too old."""
    required = tomllib.loads(project.read_text())["project"]["dependencies"]
    names = [canonical(re.split(r"[^A-Za-z0-9._-]", one)[0]) for one in required]
    return {name: name for name in names if machine.installed.get(name, "") is None}


def module(name: str, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
    """Run a module of the checkout in a new process.

    Raises:
        SystemExit: the process fails; the message contains the end of its output.
    """
    variables = variables or {}
    path = joined_path(*filter(None, [variables.get("PYTHONPATH")]), ROOT)
    command = [sys.executable, "-m", name, *arguments]
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise SystemExit(f"{' '.join(command[1:])}: exit code {done.returncode}; correct the error below\n{tail}")


def plan(pack: Path, machine: Machine, root: Path = ROOT) -> list[str]:
    """Return, for each call, lines with the command, the folders to carry and their sizes.

    Raises:
        ConfigError: a piece is missing.
        ResourceLimit: the files of a call exceed the limit of the machine.
    """
    if missing := [piece for piece in dict.fromkeys(chain(*CARRIED.values())) if not (pack / piece).is_dir()]:
        raise ConfigError(f"{pack}: {', '.join(missing)} missing; make them with --pieces {','.join(missing)}")
    lines = []
    for call in CALLS:
        folders = carried(call, pack)
        travel = check_travel(root, folders, machine.limits)
        sizes = ", ".join(f"{name} {size / MIB:.1f}" for name, size in travel.carried_bytes.items())
        lines += [
            f"{call}: python3 -m benchmarks.gpu.call {call}    # at most {SECONDS[call]:.0f} s",
            f"    carry: {' '.join(str(folder.relative_to(root)) for folder in folders)}",
            f"    {travel.total_bytes / MIB:.1f} of {machine.limits.travel_bytes / MIB:.0f} MiB: "
            f"checkout {travel.tracked_bytes / MIB:.1f}, {sizes}",
            *(
                f"    first move {name} out of the checkout, and move it back afterwards"
                for name in travel.without(machine.limits)
            ),
        ]
    return [*lines, f"after the probe: {next_call(RESULTS)}"]


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=PACK, help="folder of the pack, within the checkout and ignored by git"
    )
    parser.add_argument("--pieces", default="", help="make only these pieces, separated by commas, and keep the others")
    parser.add_argument("--rehearse", action="store_true", help="also rehearse the calls (benchmarks.gpu.rehearse)")
    options = parser.parse_args()
    machine = borrowed.read()
    packer = Packer(machine=machine, pack=options.output.absolute())
    try:
        for piece in options.pieces.split(",") if options.pieces else packer.pieces:
            packer.make(piece)
        print(*plan(packer.pack, machine), sep="\n", flush=True)
    except E3DError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.rehearse:
        from benchmarks.gpu.rehearse import rehearse

        return rehearse(packer.pack, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
