"""Check that a zip archive was written by torch.save and is undamaged."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from e3d_deploy.errors import CheckpointError

CHUNK = 1 << 20
"""Bytes read at a time."""
TENSORS = "expected a dict of tensors; save its {} with torch.save"


def check_archive(path: Path) -> None:
    """Check that torch.save wrote a zip archive, and that every member has the right checksum.

    PyTorch checks no checksums, so a changed byte would silently change a weight.

    Raises:
        CheckpointError: the archive is damaged, or another program wrote it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if found := _other_kind(archive.namelist()):
                raise CheckpointError(f"{path}: is {found}")
            for member in archive.infolist():
                if member.CRC:  # 0 if the file was saved after `torch.serialization.set_crc32_options(False)`
                    with archive.open(member) as file:
                        while file.read(CHUNK):
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged ({str(error) or 'cut off'}); copy it again") from error


def _other_kind(names: Sequence[str]) -> str | None:
    """Describe an archive with these members if torch.save did not write it; otherwise return None."""
    base = {PurePosixPath(name).name for name in names}
    if "constants.pkl" in base:
        return f"a TorchScript program (torch.jit.save), {TENSORS.format('state_dict')}"
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy .npz file, {TENSORS.format('arrays as tensors')}"
    if "data.pkl" not in base:
        return f"a zip archive without data.pkl, so torch.save did not write it; {TENSORS.format('state_dict')}"
    return None
