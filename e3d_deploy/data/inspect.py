"""Summary of a data source, for `e3d data inspect`. Needs no PyTorch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.sources import Source, fixed_windows, open_source
from e3d_deploy.data.splits import Split
from e3d_deploy.errors import ClipError, ConfigError, E3DError, ShapeError, SourceLost
from e3d_deploy.frames import to_frames
from e3d_deploy.json_values import json_object
from e3d_deploy.progress import Notify
from e3d_deploy.quiet import quiet

SAMPLED = 16
"""Maximum number of windows from which the range of values is computed."""
SHOWN = 8
"""Maximum number of windows in a contact sheet, one below the other."""


@dataclass(frozen=True, kw_only=True)
class FrameForm:
    """Size, colours and data type of the frames in a source."""

    height: int
    width: int
    channels: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Values:
    """Statistics of the values in some windows of a split, in [0, 1] as the model receives them."""

    min: float
    max: float
    mean: float
    windows: int
    split: Split


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of clips (frames)."""

    min: int
    median: float
    max: int


@dataclass(frozen=True, kw_only=True)
class SplitContents:
    """Clips and windows of one split, and the files that the split does not use."""

    clips: int
    windows: int
    """Number of windows: those that the format fixes, otherwise windows that do not overlap."""
    held_out: bool
    """True if the split shares no file with the training split, or, for `train`, with the two other splits."""
    lengths: Lengths
    skipped: tuple[str, ...]
    """Files that were skipped because they cannot be read."""
    short: tuple[str, ...]
    """Clips that are skipped because they are shorter than a window."""
    folders: tuple[str, ...]
    """Folders and files whose names assign them to the split; empty if names assign none."""


@dataclass(frozen=True, kw_only=True)
class SplitError:
    """Reason why a split has no clip."""

    error: str


@dataclass(frozen=True, kw_only=True)
class DataContents:
    """Splits, frames, values and remarks of a data source."""

    source: str
    kind: str
    frames_per_second: tuple[float, ...]
    """Distinct frame rates of the videos, ascending (frames per second)."""
    frame: FrameForm
    values: Values
    length: int
    """Frames in a window."""
    splits: Mapping[Split, SplitContents | SplitError]
    layouts: tuple[str, ...] = ()
    """Axes of the arrays, such as NTHWC."""
    remarks: tuple[str, ...] = ()
    """Decisions of the readers that a user may not expect."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return json_object(self)


def open_splits(
    text: str,
    form: Form,
    *,
    split: Split,
    length: int,
    skip_bad: bool,
    progress: Notify,
) -> dict[Split, Source | E3DError]:
    """Open each split of a source; for a split without clips, return the error instead.

    Warnings are logged for `split` only. Remarks are not logged; the sources keep them.

    Raises:
        ClipError, ShapeError, BackendUnavailable, OSError: `split` cannot be opened; see `open_source`.
    """
    open_ = partial(
        open_source,
        text,
        form,
        length=length,
        skip_bad=skip_bad,
        remarks=Remarks(silent=True),
        progress=progress,
    )
    opened: dict[Split, Source | E3DError] = {split: open_(split=split)}
    with quiet(loggers=("e3d_deploy.data",)):  # the other splits of a file would repeat the same warnings
        for name in get_args(Split):
            if name != split:
                try:
                    opened[name] = open_(split=name)
                except (ClipError, ShapeError, SourceLost) as error:
                    opened[name] = error
    return {name: opened[name] for name in get_args(Split)}


def describe(opened: Mapping[Split, Source | E3DError], split: Split, *, length: int) -> DataContents:
    """Return a summary of the splits, with the range of values in some windows of one split.

    Raises:
        ShapeError, ClipError: a window cannot be read.
    """
    source = _of(opened, split)
    windows = [window for _, _, window in _some_windows(source, SAMPLED, length=length)]
    _, H, W, C = windows[0].shape
    sample = np.stack([to_frames(window, image_size=(H, W), channels=C, name=source.name) for window in windows])
    types = ", ".join(sorted({str(window.dtype) for window in windows}))
    return DataContents(
        source=source.name,
        kind=source.kind,
        frames_per_second=tuple(sorted(set(source.frames_per_second))),
        frame=FrameForm(height=H, width=W, channels=C, dtype=types),
        values=Values(
            min=float(sample.min()),
            max=float(sample.max()),
            mean=float(sample.mean(dtype=np.float64)),
            windows=len(sample),
            split=split,
        ),
        length=length,
        splits={name: _split(one, length=length) for name, one in opened.items()},
        layouts=tuple(sorted({layout for one in _sources(opened) for layout in one.layouts})),
        remarks=tuple(dict.fromkeys(remark for one in _sources(opened) for remark in one.remarks)),
    )


def contact_sheet(opened: Mapping[Split, Source | E3DError], split: Split, *, length: int) -> bytes:
    """Return a PNG of some windows of a split, one below the other, with time from left to right.

    Raises:
        ConfigError: the frames have neither 1 nor 3 colours.
        ShapeError, ClipError: a window cannot be read.
    """
    from e3d_deploy import plots

    source, rows = _of(opened, split), {}
    for clip, first, window in _some_windows(source, SHOWN, length=length):
        _, H, W, C = window.shape
        if C not in (1, 3):
            raise ConfigError(f"picture: frames have {C} colours, only 1 or 3 can be drawn; omit --picture")
        rows[f"{clip}: {first}"] = to_frames(window, image_size=(H, W), channels=C, name=source.name)
    return plots.strips(rows, every=max(1, length // 10))


def _sources(opened: Mapping[Split, Source | E3DError]) -> list[Source]:
    return [one for one in opened.values() if isinstance(one, Source)]


def _of(opened: Mapping[Split, Source | E3DError], split: Split) -> Source:
    source = opened[split]
    assert isinstance(source, Source)  # callers pass a split that was opened
    return source


def _split(source: Source | E3DError, *, length: int) -> SplitContents | SplitError:
    if isinstance(source, E3DError):
        return SplitError(error=str(source))
    lengths = [len(clip) for clip in source.clips]
    return SplitContents(
        clips=len(lengths),
        windows=len(fixed_windows(source, length=length)),
        held_out=source.held_out,
        lengths=Lengths(min=min(lengths), median=float(np.median(lengths)), max=max(lengths)),
        skipped=tuple(source.skipped),
        short=tuple(source.short),
        folders=source.folders,
    )


def _some_windows(source: Source, count: int, *, length: int) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Yield the clip, first frame and pictures of some windows, evenly spread over all windows."""
    windows = fixed_windows(source, length=length)
    for clip, first in windows[np.arange(min(count, len(windows))) * len(windows) // min(count, len(windows))].tolist():
        yield clip, first, source.clips[clip][first : first + length]
