"""Sources of `e3d stream`: checked together with the options, and opened."""

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
"""Number of frames that are timed to estimate the time of longer forecasts."""
LONG_S = 5.0
"""Time above which the duration of a forecast is printed before the work (s)."""


def check_options(addresses: "Sequence[Address]") -> None:
    """Refuse options that do not apply to these sources."""
    kinds = [address.kind for address in addresses]
    if kinds.count("stdin") > 1:
        raise click.UsageError("SOURCE: got - more than once, and there is only one stdin; give it once")
    if is_given("raw") and "stdin" not in kinds:
        raise click.UsageError("--raw applies only to raw pictures on stdin; leave it out, or give - as a SOURCE")
    if is_given("realtime") and not {"file", "network"} & set(kinds):
        raise click.UsageError(
            "--realtime applies only to files and addresses, and no SOURCE is a file or address; leave it out"
        )
    for name in ("silence_s", "attempts"):
        if is_given(name) and not {"camera", "network"} & set(kinds):
            flag = f"--{name.removesuffix('_s')}"
            raise click.UsageError(
                f"{flag} applies only to cameras and addresses, and no SOURCE is a camera or address; leave it out"
            )


def check_horizon(predictor: "Predictor", horizon: int, sources: int) -> None:
    """Refuse a horizon that needs too much memory, and print how long a slow forecast takes.

    Raises:
        ResourceLimit: the forecasts of all sources need more than the free memory.
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
        remark(f"a forecast of {horizon} frames takes about {duration(seconds)}, for each picture")


def open_feeds(
    addresses: "Sequence[Address]",
    form: "Form",
    options: "FeedOptions",
    selection: "Selection",
    stack: ExitStack,
) -> "dict[str, Feed]":
    """Open the sources; the stack closes them.

    Returns:
        The sources by label; repeated names get a number, so that labels are unique.

    Raises:
        E3DError: a source cannot be opened.
    """
    from e3d_deploy.data.live.feed import Feed

    feeds: dict[str, Feed] = {}
    for address in addresses:
        feed = stack.enter_context(Feed(address, form, options, selection=selection, notify=remark))
        again = sum(other.name == address.name for other in addresses[: len(feeds)])
        feeds[f"{address.name} ({again + 1})" if again else address.name] = feed
    return feeds
