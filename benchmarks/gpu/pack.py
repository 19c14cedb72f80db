"""Installation, shrinking and archiving of packages and folders that are sent to a GPU machine."""

import importlib
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.borrowed import Machine, canonical
from benchmarks.gpu.fatbin import Pruned, prune
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.files import sha256

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
UNUSED = (
    *("onnxruntime/backend", "onnxruntime/datasets", "onnxruntime/quantization", "onnxruntime/tools"),
    *("onnxruntime/transformers", "onnxruntime/ThirdPartyNotices.txt", "onnxruntime/Privacy.md"),
    *("onnxruntime/capi/libonnxruntime.so*", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so", "bin"),
)
"""Files of onnxruntime-gpu that a session on CUDA does not read."""
FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 32 << 20}]
"""LZMA filters of the archives; the first one makes x86 machine code compress better."""
UNCALLED = re.compile(rb"flash|cutlass|[Mm]oe|attention_kernel_batched|onnxruntime3llm|fpA_intB|Attention|attention")
"""Names of kernels for language models. Our graphs do not call them: the recall is matrix products and a softmax."""


def install(packages: Mapping[str, str], folder: Path, machine: Machine) -> None:
    """Install packages for the machine's Python into a folder, without their dependencies.

    Raises:
        SystemExit: pip finds no wheel of a package in this version for the machine.
    """
    if not packages:
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    target = ["--target", str(folder), "--python-version", machine.python_tag, "--implementation", "cp"]
    platforms = [f"--platform={name}" for name in machine.platforms]
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    done = subprocess.run([*pip, *target, *platforms, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise SystemExit(
            f"{' '.join(wanted)}: pip found no wheels for Python {machine.python_tag}, glibc {machine.libc} "
            f"({'; '.join(errors[:2])}); change the versions in machine.json"
        )


def shrink_onnxruntime(site: Path, machine: Machine) -> Pruned:
    """Remove everything from onnxruntime-gpu and cuda-core that our graphs do not need on the machine's GPU.

    Args:
        site: folder in which the packages are installed.
    """
    for path in (path for pattern in UNUSED for path in site.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in site.glob("cuda/core/cu[0-9]*"):  # cuda-core contains a folder for each version of CUDA
        if path.name != f"cu{machine.cuda.split('.')[0]}":
            shutil.rmtree(path)
    with tempfile.TemporaryDirectory() as folder:
        decompress = zstandard(Path(folder))
        library = bytearray((site / PROVIDER).read_bytes())
        pruned = prune(library, machine.architecture, uncalled=UNCALLED, decompress=decompress)
    (site / PROVIDER).write_bytes(library)
    return pruned


def zstandard(folder: Path) -> Callable[[bytes, int], bytes]:
    """Install the package `zstandard` into a folder, because nothing else needs it; return its decompressor."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "zstandard==0.25.0"]
    subprocess.run(pip, check=True, capture_output=True)
    sys.path.insert(0, str(folder))
    try:
        module: Any = importlib.import_module("zstandard")
    finally:
        sys.path.remove(str(folder))
    decompressor = module.ZstdDecompressor()
    return lambda data, length: bytes(decompressor.decompress(data, max_output_size=length))


def archive(folder: Path, file: Path) -> None:
    """Write the files of a folder to a .tar.xz archive; equal folders yield equal archives.

    Equal files are stored once, as hard links. The compression makes addresses in machine code absolute, which saves
    7 % of onnxruntime-gpu.
    """
    stored: dict[str, str] = {}

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        return member

    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        lzma.open(file, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as packed,
        tarfile.open(fileobj=packed, mode="w", dereference=True) as tar,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = str(path.relative_to(folder))
            digest = sha256(path)
            member = plain(tar.gettarinfo(path, name))
            if digest in stored:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, stored[digest], 0
                tar.addfile(member)
                continue
            member.type, stored[digest] = tarfile.REGTYPE, name
            member.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(member, content)


def distributions(file: Path) -> set[str]:
    """Return the names of the Python packages in an archive."""
    with tarfile.open(file) as tar:
        found = {re.match(r"([^/]+)-[^-/]+\.dist-info/", name) for name in tar.getnames()}
    return {canonical(match[1]) for match in found if match}


def unpack(packed: Sequence[Path], folder: Path) -> list[Path]:
    """Unpack the archives of some folders, each into a subfolder of `folder` with the same name; return the subfolders.

    Raises:
        BackendUnavailable: Python is older than 3.11.4 and cannot prevent files outside the folder.
    """
    made = []
    for piece in packed:
        for file in sorted(piece.glob("*.tar.xz")):
            if not hasattr(tarfile, "data_filter"):
                raise BackendUnavailable("this Python cannot unpack archives safely; use Python 3.11.4 or later")
            with tarfile.open(file) as tar:
                tar.extractall(folder / piece.name, filter="data")
        made.append(folder / piece.name)
    return made
