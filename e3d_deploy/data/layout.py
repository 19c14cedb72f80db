"""Meaning of the axes of an array. Needs no PyTorch.

N is a clip, T a frame, C a colour; H and W are rows and columns.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from e3d_deploy.data.axes import Read, geometry, is_along_time, is_time_beside_clips
from e3d_deploy.data.form import LAYOUTS, Form
from e3d_deploy.errors import ShapeError

MOVED = ("CTHW", "NCTHW", "CNTHW", "HWT", "HWTC", "NHWT", "NHWTC", "HTW", "HTWC", "NHTW", "NHTWC")
"""Layouts whose frames do not lie in one piece; they are named in errors."""
UNUSUAL = "CNTHW"
"""Layout of these that is no reason to doubt another one: three clips of colours would fit it too."""
SEVERAL = (2, 3, 4)
"""Sizes of an axis that could be colours."""
PUBLISHED = "mnist_test_seq"
"""Part of the name of a published file, whose clips are the second axis."""
AXES_REMEDY = "reshape it, or resize its frames if they have another size"


def is_published(name: str) -> bool:
    """Return True if the file of an array is named as published, whatever its folders are called."""
    return PUBLISHED in Path(name).name


def find_layout(name: str, shape: tuple[int, ...], form: Form, read: Read) -> tuple[str, str | None]:
    """Return the layout of an array that holds frames of a form, and a remark where its numbers decided.

    Args:
        name: array, for errors; its file may be a published one.
        read: gives a frame, by layout, clip and number, or None where it cannot be read.

    Raises:
        ShapeError: no layout fits, or several do; it names them.
    """
    if form.layout is not None:
        _check_given(name, shape, form)
        return form.layout, None
    if len(shape) not in {len(layout) for layout in LAYOUTS}:
        raise ShapeError(f"{name}: got {list(shape)}, expected [B, T, H, W, C] or [T, H, W, C]; {AXES_REMEDY}")
    fitting = _distinct((layout for layout in LAYOUTS if _fits(layout, shape, form)), shape)
    if not fitting:
        raise ShapeError(f"{name}: {_misfit(shape, form)}")
    moved = _rivals(shape, form)
    if len(fitting) == 1:
        _check_time(name, shape, fitting[0], moved, read)
        return fitting[0], _remark(fitting[0], shape) if moved else None
    published = is_published(name) and "TNHW" in fitting
    if not published and len(shape) == 4 and form.channels == 1 and (shape[0] == 3 or shape[1] in SEVERAL):
        colours = shape[1] if shape[1] in SEVERAL else shape[0]
        raise ShapeError(
            f"{_ambiguous(name, shape, fitting, moved)}, or convert it to gray if it has {colours} colours"
        )
    usual = "TNHW" if published else next((one for one in fitting if one.startswith("NT") and len(one) == 5), None)
    decided = _decide(fitting, shape, read)
    if decided is None and published:
        return "TNHW", None
    layout = decided or usual
    if layout is None or (usual is not None and layout != usual):
        raise ShapeError(_ambiguous(name, shape, fitting, moved))
    _check_time(name, shape, layout, moved, read)
    return layout, _remark(layout, shape) if moved or not usual else None


def _remark(layout: str, shape: tuple[int, ...]) -> str:
    return f"read as {_words(layout, shape)}, as frames change less along T ({layout})"


def _rivals(shape: tuple[int, ...], form: Form) -> list[str]:
    """Return the layouts that fit an array too, but whose frames do not lie in one piece."""
    return [
        layout
        for layout in MOVED
        if layout != UNUSUAL and _fits(layout, shape, form) and shape[layout.find("T")] > 1
        # Without colours these are the same numbers in the same order as without C.
        and (form.channels > 1 or layout.find("C") in (-1, len(layout) - 1))
    ]  # fmt: skip


def _check_time(
    name: str,
    shape: tuple[int, ...],
    layout: str,
    moved: Sequence[str],
    read: Read,
) -> None:
    """Check that the numbers of an array speak against the layouts that fit beside the one to be read.

    Raises:
        ShapeError: they do not.
    """
    # Colours of one frame may differ more or less than frames, so they tell nothing.
    over_colours = any("CT" in rival for rival in moved)
    if moved and (over_colours or not is_along_time(layout, shape, read)):
        raise ShapeError(_ambiguous(name, shape, [layout], moved))


def _check_given(name: str, shape: tuple[int, ...], form: Form) -> None:
    layout = form.layout or ""
    H, W, C = form.shape
    sizes = dict(zip(layout, shape, strict=False))
    if len(layout) != len(shape) or (sizes["H"], sizes["W"], sizes.get("C", 1)) != (H, W, C):
        raise ShapeError(
            f"{name}: got {list(shape)}, expected {layout} with H {H}, W {W} and C {C}; give another --layout, or a "
            "model for this size"
        )


def _fits(layout: str, shape: tuple[int, ...], form: Form) -> bool:
    if len(layout) != len(shape):
        return False
    sizes = dict(zip(layout, shape, strict=True))
    return (sizes["H"], sizes["W"], sizes.get("C", 1)) == form.shape


def _distinct(layouts: Iterable[str], shape: tuple[int, ...]) -> list[str]:
    """Return layouts that read an array in different ways; clips of one frame count only if there are no others."""
    found: dict[tuple[int, ...], str] = {}
    places = {layout: geometry(layout, shape) for layout in layouts}
    longer = any(one.length > 1 for one in places.values())
    for layout, one in places.items():
        if one.length > 1 or not longer:
            steps = (one.clip_stride if one.clips > 1 else 0, one.frame_stride)
            found.setdefault((one.clips, one.length, *steps), layout)
    return list(found.values())


def _misfit(shape: tuple[int, ...], form: Form) -> str:
    """Return an error of an array that fits no layout."""
    expected = list(form.shape)
    for layout in MOVED:
        if layout == "NHWT" and shape[-1] in SEVERAL:  # rather colours
            continue
        if _fits(layout, shape, form) and shape[layout.find("T")] > 1:
            return (
                f"got {list(shape)}, which fits {layout} alone, and frames have to lie in one piece; transpose it to "
                f"[T, H, W, C] or [B, T, H, W, C]"
            )
    frame = list(shape[-3:])
    if len(shape) == 3 or (len(shape) == 4 and frame[2] not in (1, *SEVERAL, expected[2])):
        if form.channels > 1:
            return f"got {list(shape)}, expected [B, T, H, W, C] or [T, H, W, C] with frames {expected}; {AXES_REMEDY}"
        if len(shape) == 3:
            known = f"[B, T, H, W, C] or [T, H, W, C], or [T, H, W] of {expected[:2]}"
            return f"got {list(shape)}, expected {known}; {AXES_REMEDY}"
        frame = [*shape[-2:], 1]
    return other_size(frame, form)


def other_size(frame: Sequence[int], form: Form) -> str:
    """Return an error of frames [H, W, C] that are not as a model takes them."""
    H, W, C = frame
    size = f", with --image-size {H}x{W} --channels {C} when it is trained" if C in (1, 3, form.channels) else ""
    return f"frames {list(frame)}, expected {list(form.shape)}; resize them, or take a model for this size{size}"


def _ambiguous(name: str, shape: tuple[int, ...], layouts: Sequence[str], moved: Sequence[str] = ()) -> str:
    readings = ", or ".join(f"{layout} ({_words(layout, shape)})" for layout in (*layouts, *moved))
    found = f"{name}: got {list(shape)}, which may be {readings}; give --layout"
    found += " with the right one" if len(layouts) > 1 else f" {layouts[0]}"
    if moved:
        found += f", or transpose it to [T, H, W, C] or [B, T, H, W, C] if it is {' or '.join(moved)}"
    return found


def _words(layout: str, shape: tuple[int, ...]) -> str:
    sizes = dict(zip(layout, shape, strict=True))
    clips = f"{sizes['N']} clips of " if "N" in sizes else ""
    colours = f" of {sizes['C']} colours" if sizes.get("C", 1) > 1 else ""
    return f"{clips}{sizes['T']} frames{colours}"


def _decide(layouts: list[str], shape: tuple[int, ...], read: Read) -> str | None:
    """Return the one of two layouts that differ in the order of T and N that the numbers speak for; None if neither."""
    if len(layouts) != 2 or layouts[0].replace("NT", "TN") != layouts[1].replace("NT", "TN"):
        return None
    return next((layout for layout in layouts if is_time_beside_clips(layout, shape, read)), None)
