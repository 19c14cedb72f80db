"""Zip archives of torch.save: whether PyTorch wrote them, and whether their bytes are those it wrote."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from e3d_deploy.errors import CheckpointError

CHUNK = 1 << 20
"""Bytes read at a time."""
TENSORS = "expected tensors by name; save its {} with torch.save"


def check_archive(path: Path) -> None:
    """Check that a zip archive holds what torch.save writes, and that the checksum of each member is right.

    PyTorch checks none: a changed byte would become another weight.

    Raises:
        CheckpointError: it is damaged, or another program's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if found := _other_kind(archive.namelist()):
                raise CheckpointError(f"{path}: is {found}")
            for member in archive.infolist():
                if member.CRC:  # 0 after `torch.serialization.set_crc32_options(False)`
                    with archive.open(member) as file:
                        while file.read(CHUNK):
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged ({str(error) or 'cut off'}); copy it again") from error


def _other_kind(names: Sequence[str]) -> str | None:
    """Return in words what an archive with these members is; None for one of torch.save."""
    base = {PurePosixPath(name).name for name in names}
    if "constants.pkl" in base:
        return f"a program of TorchScript (torch.jit.save), {TENSORS.format('state_dict')}"
    if names and all(name.endswith(".npy") for name in names):
        return f"an .npz of NumPy, {TENSORS.format('arrays, as tensors,')}"
    if "data.pkl" not in base:
        return f"a zip archive without data.pkl, so not of torch.save; {TENSORS.format('state_dict')}"
    return None
