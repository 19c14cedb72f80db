"""Recognize TIFF stacks whose pages are not the frames of a clip. Needs no PyTorch."""

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from math import prod
from operator import mul

_SIZE_IN_OME = re.compile(r'\bSize([CZT])="(\d+)"')
_AXIS_OF_OME = {"C": "channels", "Z": "slices", "T": "frames"}
AXES = ("channels", "slices", "frames")
REMEDY = "save each channel of each slice to its own file"


def why_no_clip(description: object, *, pages: int, samples: int) -> str | None:
    """Return the reason why the pages of a TIFF are not one clip, and a remedy; None if they may be one clip.

    The description of the TIFF decides.

    Args:
        description: text of the first page, where ImageJ, OME and tifffile describe the axes.
        pages: number of pages in the file.
        samples: number of samples (channels) per pixel.
    """
    if not isinstance(description, str):
        return None
    if description.startswith("ImageJ="):
        stated = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)
        sizes = {name: int(value) for name, value in stated.items() if value.isdecimal()}
        if sizes.get("images", 0) > pages:
            return (
                f"ImageJ states {sizes['images']} images, but the number of pages is {pages}; save it as an image "
                "sequence"
            )
        return _why_several({axis: sizes.get(axis, 1) for axis in AXES})
    if "<OME" in description:
        sizes = {_AXIS_OF_OME[axis]: int(size) for axis, size in reversed(_SIZE_IN_OME.findall(description))}
        sizes["channels"] = sizes.get("channels", 1) // samples  # OME counts the samples of a pixel as channels
        # If the sizes do not multiply to the number of pages, the description covers several files.
        return _why_several(sizes) if prod(sizes.values()) == pages else None
    return _by_tifffile(description, pages) if description.startswith('{"shape"') else None


def _why_several(sizes: Mapping[str, int]) -> str | None:
    several = {axis: size for axis, size in sizes.items() if size > 1}
    if "channels" not in several and len(several) < 2:
        return None
    got = ", ".join(f"{several[axis]} {axis}" for axis in AXES if axis in several)
    return f"got pages for {got}, expected only frames; {REMEDY}"


def _by_tifffile(description: str, pages: int) -> str | None:
    try:
        stated = json.loads(description)
    except ValueError:
        return None
    shape = stated["shape"] if isinstance(stated["shape"], list) else []
    if stated.get("truncated"):
        return f"tifffile states the shape {shape}, but the number of pages is {pages}; write it without `truncate`"
    outer = next((shape[: n + 1] for n, size in enumerate(accumulate(shape, mul)) if size == pages), [])
    if sum(size > 1 for size in outer) < 2:
        return None
    return f"got pages for axes of length {' and '.join(map(str, outer))}, expected only frames; {REMEDY}"
