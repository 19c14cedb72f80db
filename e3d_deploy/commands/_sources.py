"""Sources of `e3d stream`: options that go with them, and their opening."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._options import is_given
from e3d_deploy.commands._sinks import remark
from e3d_deploy.progress import duration

if TYPE_CHECKING:
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.live.address import Address
    from e3d_deploy.data.live.feed import Feed, FeedOptions
    from e3d_deploy.data.rate import Selection
    from e3d_deploy.runtime import Predictor

SAMPLE = 50
"""Frames by which the time of longer forecasts is estimated."""
LONG_S = 5.0
"""Time of a forecast that is told before it begins (s)."""


def check_options(addresses: "Sequence[Address]") -> None:
    """Refuse options that mean nothing for these sources."""
    kinds = [address.kind for address in addresses]
    if kinds.count("stdin") > 1:
        raise click.UsageError("-: got it twice, expected once, as there is one stdin; leave one out")
    if is_given("raw") and "stdin" not in kinds:
        raise click.UsageError("--raw applies only to raw frames on stdin; leave it out, or give - as a SOURCE")
    if is_given("realtime") and not {"file", "network"} & set(kinds):
        raise click.UsageError("--realtime applies only to files and addresses, and no SOURCE is one; leave it out")
    for name in ("silence_s", "attempts"):
        if is_given(name) and not {"camera", "network"} & set(kinds):
            option = f"--{name.removesuffix('_s')}"
            raise click.UsageError(
                f"{option} applies only to cameras and addresses, and no SOURCE is one; leave it out"
            )


def check_horizon(predictor: "Predictor", horizon: int, sources: int) -> None:
    """Refuse a horizon whose forecasts fit into no memory, and say how long one takes that is long.

    Raises:
        ResourceLimit: there is not enough memory.
    """
    import numpy as np

    from e3d_deploy.live.worker import needed_bytes
    from e3d_deploy.memory import check_memory

    check_memory(f"--horizon {horizon}", sources * needed_bytes(predictor.config, horizon), "give a smaller --horizon")
    if horizon <= SAMPLE:
        return
    stream = predictor.stream(renewal="none")
    stream.push(np.zeros((*predictor.config.image_size, predictor.config.channels), np.uint8))
    started = time.perf_counter()
    stream.forecast(SAMPLE)
    seconds = (time.perf_counter() - started) / SAMPLE * horizon
    if seconds > LONG_S:
        remark(f"each picture takes about {duration(seconds)}: that long is a forecast of {horizon} frames")


def open_feeds(
    addresses: "Sequence[Address]",
    form: "Form",
    options: "FeedOptions",
    selection: "Selection",
    stack: ExitStack,
) -> "dict[str, Feed]":
    """Open the sources, by labels that differ; the stack closes them.

    Raises:
        E3DError: one cannot be opened.
    """
    from e3d_deploy.data.live.feed import Feed

    feeds: dict[str, Feed] = {}
    for address in addresses:
        feed = stack.enter_context(Feed(address, form, options, selection=selection, notify=remark))
        again = sum(other.name == address.name for other in addresses[: len(feeds)])
        feeds[f"{address.name} ({again + 1})" if again else address.name] = feed
    return feeds
