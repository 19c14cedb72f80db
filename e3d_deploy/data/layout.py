"""Find the layout of an array, the meaning of its axes. Needs no PyTorch.

N counts clips, T frames and C colours; H and W are rows and columns.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from e3d_deploy.data.axes import Read, geometry, is_along_time, is_time_beside_clips
from e3d_deploy.data.form import LAYOUTS, Form
from e3d_deploy.errors import ShapeError

MOVED = ("CTHW", "NCTHW", "CNTHW", "HWT", "HWTC", "NHWT", "NHWTC", "HTW", "HTWC", "NHTW", "NHTWC")
"""Layouts whose frames are not contiguous; they are not supported, but errors name them."""
UNUSUAL = "CNTHW"
"""Layout in MOVED that is not a rival of other layouts, because it would make every array of three clips ambiguous."""
SEVERAL = (2, 3, 4)
"""Numbers of colours that an axis of this size could hold."""
PUBLISHED = "mnist_test_seq"
"""Part of the file name of the published Moving MNIST test set, whose clips are the second axis."""
AXES_REMEDY = "reshape it, or resize its frames if they have another size"


def is_published(name: str) -> bool:
    """Return True if a file is named like the published test set; the names of its folders do not matter."""
    return PUBLISHED in Path(name).name


def find_layout(name: str, shape: tuple[int, ...], form: Form, read: Read) -> tuple[str, str | None]:
    """Return the layout of an array of frames, and a remark if the layout was guessed from the values.

    Args:
        name: name of the array, for errors and to recognize the published test set.
        shape: shape of the array.
        form: size and colours of the model's frames, and the layout if one is given.
        read: returns a frame, given layout, clip and frame number, or None if the frame cannot be read.

    Raises:
        ShapeError: no layout fits, or several layouts fit; the error names them.
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
    return f"read as {_words(layout, shape)} ({layout}), because frames change less along T"


def _rivals(shape: tuple[int, ...], form: Form) -> list[str]:
    """Return the layouts that also fit an array, but whose frames are not contiguous."""
    return [
        layout
        for layout in MOVED
        if layout != UNUSUAL and _fits(layout, shape, form) and shape[layout.find("T")] > 1
        # With one colour, axis C does not change the order of the numbers.
        and (form.channels > 1 or layout.find("C") in (-1, len(layout) - 1))
    ]  # fmt: skip


def _check_time(
    name: str,
    shape: tuple[int, ...],
    layout: str,
    moved: Sequence[str],
    read: Read,
) -> None:
    """Check that the values of an array rule out the other layouts that fit its shape.

    Raises:
        ShapeError: a different layout remains possible.
    """
    # The colours of one frame may differ more or less than successive frames do, so they are no evidence.
    over_colours = any("CT" in rival for rival in moved)
    if moved and (over_colours or not is_along_time(layout, shape, read)):
        raise ShapeError(_ambiguous(name, shape, [layout], moved))


def _check_given(name: str, shape: tuple[int, ...], form: Form) -> None:
    layout = form.layout or ""
    H, W, C = form.shape
    sizes = dict(zip(layout, shape, strict=False))
    if len(layout) != len(shape) or (sizes["H"], sizes["W"], sizes.get("C", 1)) != (H, W, C):
        raise ShapeError(
            f"{name}: got {list(shape)}, expected {layout} with H {H}, W {W} and C {C}; give another --layout, or use "
            "a model for this size"
        )


def _fits(layout: str, shape: tuple[int, ...], form: Form) -> bool:
    if len(layout) != len(shape):
        return False
    sizes = dict(zip(layout, shape, strict=True))
    return (sizes["H"], sizes["W"], sizes.get("C", 1)) == form.shape


def _distinct(layouts: Iterable[str], shape: tuple[int, ...]) -> list[str]:
    """Return one layout for each different way to read an array.

    Layouts with clips of one frame count only if no layout has longer clips.
    """
    found: dict[tuple[int, ...], str] = {}
    geometries = {layout: geometry(layout, shape) for layout in layouts}
    longer = any(one.length > 1 for one in geometries.values())
    for layout, one in geometries.items():
        if one.length > 1 or not longer:
            steps = (one.clip_stride if one.clips > 1 else 0, one.frame_stride)
            found.setdefault((one.clips, one.length, *steps), layout)
    return list(found.values())


def _misfit(shape: tuple[int, ...], form: Form) -> str:
    """Return the text of the error for an array that fits no layout."""
    expected = list(form.shape)
    for layout in MOVED:
        if layout == "NHWT" and shape[-1] in SEVERAL:  # the last axis is more likely to be colours
            continue
        if _fits(layout, shape, form) and shape[layout.find("T")] > 1:
            return (
                f"got {list(shape)}, which fits only {layout}, where frames are not contiguous; transpose it to "
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
    """Return the text of the error for frames that the model does not take, of shape [H, W, C]."""
    H, W, C = frame
    size = f", with --image-size {H}x{W} --channels {C} when it is trained" if C in (1, 3, form.channels) else ""
    return f"frames {list(frame)}, expected {list(form.shape)}; resize them, or use a model for this size{size}"


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
    """Return the layout that the values support, of two that differ only in the order of T and N; otherwise None."""
    if len(layouts) != 2 or layouts[0].replace("NT", "TN") != layouts[1].replace("NT", "TN"):
        return None
    return next((layout for layout in layouts if is_time_beside_clips(layout, shape, read)), None)
