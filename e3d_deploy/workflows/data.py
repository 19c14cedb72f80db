"""Inspection of a data source, as training would read it."""

from pathlib import Path

from e3d_deploy.data.form import Form
from e3d_deploy.data.inspect import DataContents, contact_sheet, describe, open_splits
from e3d_deploy.data.splits import Split, check_split
from e3d_deploy.files import write_file
from e3d_deploy.paths import check_path, check_source
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.arguments import check_counts
from e3d_deploy.workflows.places import check_picture


def inspect_data(
    source: str | Path,
    form: Form,
    *,
    split: Split = "train",
    length: int = 20,
    skip_bad: bool = False,
    picture: str | Path | None = None,
    progress: Notify = silent,
) -> DataContents:
    """Describe the kind, splits, frames and clip lengths of a source.

    Args:
        source: file or folder of arrays, videos or pictures, or `moving-mnist`.
        form: size, colours, fit and layout of the frames.
        split: split whose values are measured and shown.
        length: context and horizon of a training clip (frames).
        skip_bad: skip unreadable files with a warning.
        picture: PNG file for a contact sheet of the split.
        progress: called with lines about files that are read.

    Raises:
        ClipError, ShapeError: the split cannot be read.
        BackendUnavailable: the library for videos and pictures is missing.
        ConfigError: an argument is invalid, or the picture is an input or cannot be written.
    """
    check_counts(length=length)
    check_split(split)
    text = check_source("source", source)
    picture = None if picture is None else check_path("picture", picture)
    check_picture(picture, text)
    opened = open_splits(text, form, split=split, length=length, skip_bad=skip_bad, progress=progress)
    found = describe(opened, split, length=length)
    if picture is not None:
        write_file(picture, contact_sheet(opened, split, length=length))
    return found
