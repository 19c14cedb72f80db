"""Sources that the operator of the server allows viewers to choose (`e3d serve --source`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.data.folders import ARRAYS, find_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import Address, parse_address
from e3d_deploy.data.play import play
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import ClipError, ConfigError
from e3d_deploy.progress import Notify

MAX_OFFERS = 1000
"""Maximum number of sources that the page lists."""
ANY = Form(image_size=(16, 16), channels=1)
"""Arbitrary form for the test whether a file plays, because every video can be converted to every form."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Source that viewers may choose."""

    id: str
    """Identifier in requests, which reveals nothing about the source."""
    name: str
    """Name that viewers see. It contains neither folders of the server nor credentials."""
    address: Address


def offers_of(texts: Sequence[str], remark: Notify) -> tuple[Offer, ...]:
    """Return the sources that an operator allows.

    Args:
        texts: paths and addresses; a folder stands for all videos in it and in its subfolders.
        remark: called with each remark on the content of a folder.

    Raises:
        ClipError: a path does not exist, a file does not play, or a folder contains no video.
        ConfigError: an address is invalid, a text is `-`, or there are more than `MAX_OFFERS` sources.
    """
    found = [pair for text in texts for pair in _offered(text, remark)]
    if len(found) > MAX_OFFERS:
        raise ConfigError(f"--source: got {len(found)} sources, expected at most {MAX_OFFERS}; give fewer folders")
    return tuple(Offer(id=str(number), name=name, address=address) for number, (name, address) in enumerate(found, 1))


def _offered(text: str, remark: Notify) -> Iterator[tuple[str, Address]]:
    if text == "-":
        raise ConfigError("--source -: standard input cannot be served; give a file, a folder, a camera or an address")
    address = parse_address(text)
    if address.kind != "file":
        yield address.name, address
        return
    path = Path(text)
    if not path.exists():
        raise ClipError(f"{text}: no such file or folder; give --source a video, a folder of videos or an address")
    if not path.is_dir():
        play(path, ANY, remarks=Remarks(silent=True))  # an unplayable file is an error at the start, not in a session
        yield path.name, address
        return
    root = path.resolve()
    clips = [clip for clip in find_clips(path, remark) if clip.suffix.lower() not in ARRAYS]
    # A link to a place outside the folder would offer a file that the operator did not name.
    inside = [clip for clip in clips if clip.resolve().is_relative_to(root)]
    if not inside:
        raise ClipError(f"{text}: contains no video; give --source a folder with videos or pictures")
    for clip in inside:
        name = root.name if clip == path else clip.relative_to(path).as_posix()
        yield name, parse_address(str(clip))
