"""Size of an installation of the wheel with each set of extras.

    python -m benchmarks.install

Each set is installed in a new environment without pip. Writes benchmarks/results/install_SYSTEM.json.
"""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, save

ROOT = Path(__file__).parents[1]
SETS = {
    "": "`e3d --help` and `e3d doctor`",
    "cpu": "a device that runs bundles",
    "cpu,video": "the same, with videos and cameras",
    "openvino,video": "the same with OpenVINO instead of ONNX Runtime",
    "cpu,serve": "`e3d serve`",
    "triton": "a client of Triton server",
    "export,cpu": "exports and verifies models",
    "train,cpu,video,plot": "trains, exports and verifies models",
    "demo": "`make demo`",
    "all": "everything that needs no GPU, except OpenVINO and TensorFlow",
}
"""Sets of extras, with the purpose of each."""


@contextmanager
def environment(wheel: Path, extras: str) -> Iterator[Path]:
    """Yield the folder of an environment with the wheel and its extras while the block runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        constraints = str(ROOT / "requirements" / "constraints.txt")
        subprocess.run([*pip, "-c", constraints, f"{wheel}[{extras}]" if extras else str(wheel)], check=True)
        yield folder


def measured(folder: Path) -> dict[str, Any]:
    """Return the size of an environment, the number of its distributions, and the version of PyTorch in it."""
    packages = next(folder.glob("lib/python*/site-packages"))
    return {
        "megabytes": round(megabytes(folder)),
        "distributions": len(list(packages.glob("*.dist-info"))),
        "pytorch": version_of("torch", packages),
    }


def version_of(distribution: str, packages: Path) -> str | None:
    """Return the version of a distribution in a folder of packages; None if it is not there."""
    found = packages.glob(f"{distribution}-*.dist-info")
    return next((path.name.removesuffix(".dist-info").split("-")[1] for path in found), None)


def megabytes(folder: Path) -> float:
    """Return the space that the files of a folder take on the disk (MB)."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e6


def table() -> str:
    """Return the sizes as Markdown."""
    lines = []
    for file in sorted(RESULTS.glob("install_*.json")):
        found = json.loads(file.read_text())
        where = found["environment"]
        lines += [
            f"Measured on {where['date'][:10]} on {found['system']} with Python {found['python']} and PyTorch "
            f"{found['rows']['demo']['pytorch']}. The wheel itself has {found['wheel_megabytes']:.1f} MB.",
            "",
            "| extras | purpose | size | packages |",
            "|---|---|---|---|",
        ]
        for extras, row in found["rows"].items():
            name = f"`{extras}`" if extras else "none"
            lines.append(f"| {name} | {SETS[extras]} | {row['megabytes']:,} MB | {row['distributions']} |")
    return "\n".join(lines)


def main() -> None:
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        kept = shutil.ignore_patterns(".*", "build", "*.egg-info", "models")
        source = shutil.copytree(ROOT, Path(name) / "source", ignore=kept)
        subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", name, source], check=True)
        (wheel,) = Path(name).glob("*.whl")
        for extras in SETS:
            with environment(wheel, extras) as folder:
                rows[extras] = measured(folder)
            write(rows, wheel)  # after each set, because all of them together take minutes


def write(rows: Mapping[str, Mapping[str, Any]], wheel: Path) -> None:
    """Write the sizes, by set of extras, and the size of the wheel."""
    system = f"{platform.system()} {platform.machine()}"
    save(
        f"install_{system.lower().replace(' ', '-')}",
        {
            "what": "space on the disk of an environment with the wheel and a set of extras, bytecode included",
            "system": system,
            "python": platform.python_version(),
            "wheel_megabytes": round(wheel.stat().st_size / 1e6, 1),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
