"""Recognize clips that show one scene, judging by their names. Needs no PyTorch.

Such clips are views, which differ in camera angle or modality, or chapters of one GoPro film.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from e3d_deploy.data.folders import CLIPS
from e3d_deploy.data.masks import GENERIC
from e3d_deploy.data.series import CAMERAS, NUMBERED

MODALITIES = ("rgb", "color", "colour", "gray", "grey", "depth", "flow", "ir", "nir", "infrared", "thermal", "normals")
"""Words for the modality of a view."""
SIDES = ("left", "right", "front", "back", "rear")
"""Words for the position of a view, at the start or end of a clip's name."""
PLACES = ("top", "bottom", "side", "center", "centre", "middle")
"""Words for the position of a view, as the complete name of a folder or clip."""
_ANY = "|".join(sorted({*MODALITIES, *SIDES, *PLACES, *CAMERAS, *GENERIC}, key=len, reverse=True))
_WHOLE = re.compile(rf"(?:(?:{_ANY})(?:[\W_]+|$))+|image[-_ ]?0?[0-3]")
"""Pattern of a name that only names a view; image_0 to image_3 are the cameras of KITTI."""
_KINDS, _ENDS = "|".join(MODALITIES), "|".join((*MODALITIES, *SIDES))
_KIND = re.compile(rf"[\W_]+(?:{_KINDS})$")
_END = re.compile(rf"(?:[\W_]+(?:{_ENDS}|[lr]))+$|^(?:(?:{_ENDS})[\W_]+)+")
_AXIS = re.compile(r"(?<![^\W\d_])flow[\W_]*[xyuv](?![^\W_])")
"""Pattern of optical flow with an axis; the x and y components of a flow are stored as separate clips."""
_CHAPTER = re.compile(r"g([hxs])\d\d(\d{4})|g(?:opr|p\d\d)(\d{4})")
"""Pattern of a chapter of a GoPro film; group 2 or 3 is the number of the film."""


def scenes(folder: Path, clips: Iterable[Path]) -> list[list[Path]]:
    """Group the clips in a folder by scene.

    Clips show one scene if their paths differ only in suffixes and words for views (`image_00`, `left`, `rgb`,
    `flow_x`), or if they are chapters of one GoPro film.
    """
    found: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for clip in clips:
        found[_scene(clip.relative_to(folder).parts)].append(clip)
    return list(found.values())


def _scene(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders and the name in a path, without words for views."""
    if not parts:
        return ()
    *above, name = parts
    stem = Path(name).stem if name.lower().endswith(CLIPS) else name
    return tuple(part for part in (*map(_folder, above), _clip(stem)) if part)


def _folder(name: str) -> str:
    name = _without_cameras(name)
    return "" if _WHOLE.fullmatch(name) else _KIND.sub("", name)


def _clip(name: str) -> str:
    name = _without_cameras(name)
    if chapter := _CHAPTER.fullmatch(name):
        return f"gopro {chapter[1] or ''}{chapter[2] or chapter[3]}"
    return "" if _WHOLE.fullmatch(name) else _END.sub("", name)


def _without_cameras(name: str) -> str:
    """Return a name in lower case, without numbered cameras and without axes of optical flow."""
    name = _AXIS.sub("flow", name.casefold())
    return NUMBERED.sub("", name).strip("-_. ") if NUMBERED.search(name) else name
