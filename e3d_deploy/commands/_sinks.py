"""Outputs of `e3d stream`: checked before the work, then opened for each source."""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._options import is_given
from e3d_deploy.commands._streams import binary_stdout

if TYPE_CHECKING:
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.live.address import Address
    from e3d_deploy.data.live.feed import Feed
    from e3d_deploy.live.push import Push
    from e3d_deploy.live.sinks import Output, Put

STDOUT = Path("-")
"""Path that stands for standard output."""


def or_stdout(path: Path | None) -> Path | None:
    """Return an output path, or `STDOUT` for every path that means standard output.

    If stdout is redirected to a file, and an output opened the same file by its path, printed text would overwrite the
    output.
    """
    from e3d_deploy.files import is_stdout

    return STDOUT if path is not None and is_stdout(path) else path


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs that the options ask for."""

    video: Path | None
    push: tuple[str, ...]
    raw: Path | None
    lines: Path | None
    zoom: int

    @property
    def take_stdout(self) -> bool:
        """True if an output goes to standard output."""
        return STDOUT in (self.raw, self.lines)

    def check(self, model: Path, addresses: "Sequence[Address]", *, json: bool) -> None:
        """Check the outputs before any work is done.

        Raises:
            UsageError: outputs conflict with each other or with the sources.
            ConfigError, OSError: an output path is an input, is given twice, or is not writable.
        """
        from e3d_deploy.data.write import check_clips_path
        from e3d_deploy.errors import ConfigError
        from e3d_deploy.files import check_writable
        from e3d_deploy.live.push import check_push
        from e3d_deploy.workflows.places import check_apart

        self._check_together(len(addresses), json=json)
        files = [one for one in (self.video, self.raw, self.lines) if one is not None and one != STDOUT]
        read = [Path(one.text) for one in addresses if one.kind == "file"]
        for file in files:
            check_apart(file, *read, model, holds_clips=file is self.video and not file.suffix)
        for number, file in enumerate(files):
            if os.path.realpath(file) in map(os.path.realpath, files[:number]):
                raise ConfigError(f"{file}: is the path of two outputs; give each output its own path")
        for file in files:
            if file is not self.video:
                check_writable(file)
        if self.video is not None:
            if len(addresses) > 1 and self.video.suffix:
                raise ConfigError(
                    f"{self.video}: got {len(addresses)} sources, expected a folder for their videos; give "
                    f"a name without {self.video.suffix}"
                )
            check_clips_path(self.video)
        for url in self.push:
            check_push(url)

    def _check_together(self, sources: int, *, json: bool) -> None:
        if self.raw == self.lines == STDOUT:
            raise click.UsageError("--raw-output - and --jsonl - both use stdout; write one of them to a file")
        if self.take_stdout and json:
            raise click.UsageError(
                "--json prints on stdout, which another output uses; write the other output to a file"
            )
        if self.raw is not None and sources > 1:
            raise click.UsageError(f"--raw-output: got {sources} sources, expected one; run the command for each")
        if self.push and len(self.push) != sources:
            raise click.UsageError(
                f"--push: got {len(self.push)} addresses for {sources} sources, expected one per source, in order"
            )
        if is_given("zoom") and not self.push and (self.video is None or self.video.suffix.lower() == ".npz"):
            kind = "without -o" if self.video is None else "with .npz"
            raise click.UsageError(f"--zoom enlarges videos and pictures, and has no effect {kind}; leave it out")


@dataclass(frozen=True, kw_only=True)
class Sinks:
    """Opened outputs of one source."""

    puts: "list[AbstractContextManager[Put]]"
    """Context managers, one per output. Each yields a function that writes one picture and its forecasts."""
    video: Path | None
    """Path of the complete video; None if no video is written."""
    push: "Push | None"
    """Encoder that sends the video to a peer; None without --push."""
    shared: "Sequence[Output]"
    """Outputs that all sources write to."""


def open_sinks(
    outputs: Outputs, addresses: "Sequence[Address]", feeds: "Sequence[Feed]", form: "Form", stack: ExitStack
) -> list[Sinks]:
    """Open the outputs of each source; the stack closes them. Files are created at the first picture.

    Raises:
        SourceLost: the peer of a --push address cannot be reached or refuses the video.
    """
    from e3d_deploy.data.rate import DEFAULT_RATE
    from e3d_deploy.files import new_folder
    from e3d_deploy.live.sinks import Output, put_line, put_raw

    shared: list[Output] = []
    puts: list[AbstractContextManager[Put]] = []
    for path, write in ((outputs.lines, put_line), (outputs.raw, put_raw)):
        if path is not None:
            output = Output(stack.enter_context(binary_stdout()) if path == STDOUT else path)
            stack.callback(output.close)
            shared.append(output)
            puts.append(nullcontext(partial(write, output)))
    folder = None
    if outputs.video is not None and len(addresses) > 1:
        folder = stack.enter_context(new_folder(outputs.video))
    found: list[Sinks] = []
    for number, (name, feed) in enumerate(zip(_file_names(addresses), feeds, strict=True)):
        rate = feed.frames_per_second or DEFAULT_RATE
        one = Sinks(puts=[], video=None, push=None, shared=shared)
        if outputs.video is not None:
            one = _with_video(one, outputs, None if folder is None else folder / name, form, rate)
        if outputs.push:
            one = _with_push(one, outputs, outputs.push[number], form, rate, stack)
        # If the reader of an output closes its pipe, the source ends. The video is written first, so that it
        # contains this picture too.
        found.append(replace(one, puts=[*one.puts, *puts]))
    return found


def _with_video(one: Sinks, outputs: Outputs, place: Path | None, form: "Form", rate: float) -> Sinks:
    """Add the video of a source.

    Args:
        place: path of the video in the folder of several videos; None if there is only one source.
    """
    from e3d_deploy.data.write import check_size
    from e3d_deploy.live.sinks import video

    assert outputs.video is not None
    H, W = form.image_size
    path = place or outputs.video
    check_size(path, (H, 2 * W), form.channels, frames_per_second=rate, zoom=outputs.zoom)
    sink = video(path, form, frames_per_second=rate, zoom=outputs.zoom, output=outputs.video)
    shown = outputs.video if place is None else outputs.video / place.name
    return replace(one, puts=[*one.puts, sink], video=shown)


def _with_push(one: Sinks, outputs: Outputs, url: str, form: "Form", rate: float, stack: ExitStack) -> Sinks:
    """Add an encoder that sends the video of a source to an address."""
    from e3d_deploy.live.push import Push, pushing

    H, W = form.image_size
    push = Push(url, (H, 2 * W), frames_per_second=rate, zoom=outputs.zoom, remark=remark)
    stack.callback(push.close)
    return replace(one, puts=[*one.puts, pushing(push)], push=push)


def remark(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)


def _file_names(addresses: "Sequence[Address]") -> list[str]:
    """Return the file names of videos: the number of the source and a readable part of its name."""
    digits = len(str(len(addresses)))
    names = []
    for number, address in enumerate(addresses, 1):
        readable = (
            Path(address.name).stem if address.kind == "file" else address.name.partition("://")[2] or address.name
        )
        names.append(f"{number:0{digits}}-{re.sub(r'[^A-Za-z0-9._]+', '-', readable).strip('-.')[:80]}.mp4")
    return names
