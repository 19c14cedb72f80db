"""Watch a fixed camera: score the novelty of every picture, report unusual events, and draw a plot at the end.

    python edge_app.py film.e3d rtsp://camera.local/front -o watch

Needs `pip install 'e3d_deploy[cpu,video,plot]'` and a bundle that `e3d export` wrote. Ctrl-C or SIGTERM ends it.
"""

import json
import signal
import sys
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from e3d_deploy import api
from e3d_deploy.live.observation import side_by_side

LEARNED = 50  # number of scores from which the threshold is learned
QUIET_S = 1.0  # time without an unusual picture that ends an event
SHOWN = 4  # number of events in the plot, the last ones


@dataclass
class Event:
    number: int
    begin_s: float
    end_s: float
    peak: api.Observation


class Alarm:
    """Groups unusual pictures into events. If no threshold is given, it is learned from the first `LEARNED` scores."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = np.inf if threshold is None else threshold
        self.needed, self.scores = LEARNED if threshold is None else 0, list[float]()
        self.count, self.events = 0, deque[Event](maxlen=SHOWN)

    def check(self, seen: api.Observation, time_s: float) -> Event | None:
        """Return the event that a picture belongs to; None if the picture is usual, or its novelty unknown."""
        if (novelty := seen.novelty) is not None and len(self.scores) < self.needed:
            self.scores.append(novelty)
            if len(self.scores) == self.needed:  # medians, because these pictures may contain an event too
                usual = np.median(self.scores)
                self.threshold = max(3.0, float(usual + 8 * np.median(np.abs(np.array(self.scores) - usual))))
        if novelty is None or novelty <= self.threshold:
            return None
        if not self.events or time_s > self.events[-1].end_s + QUIET_S:
            self.count += 1
            self.events.append(Event(self.count, time_s, time_s, seen))
        event = self.events[-1]
        event.end_s, event.peak = time_s, max(event.peak, seen, key=lambda one: one.novelty or 0)
        return event


def draw(points: deque[tuple[float, float]], alarm: Alarm, title: str, path: Path) -> None:
    """Plot novelty and events over time, above the most unusual picture of each event beside its forecast."""
    figure = Figure(figsize=(10, 5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, SHOWN, height_ratios=(3, 1))
    axes = figure.add_subplot(grid[0, :])
    axes.plot(*np.reshape(points, (-1, 2)).T, color="#1f5fa8", lw=1, label="novelty")
    if np.isfinite(alarm.threshold):
        axes.axhline(alarm.threshold, color="#b03030", lw=1, ls="--", label=f"threshold {alarm.threshold:.1f}")
    for place, event in enumerate(alarm.events):
        axes.axvspan(event.begin_s, event.end_s, color="#b03030", alpha=0.2)
        axes.annotate(f" {event.number}", (event.end_s, event.peak.novelty), color="#b03030", va="top")
        view = figure.add_subplot(grid[1, place], xticks=[], yticks=[], title=f"event {event.number}: seen, forecast")
        view.imshow(side_by_side(event.peak.followed).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
    axes.set(xlabel="time (s)", ylabel="novelty (1 is usual)", yscale="log", title=title)
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    axes.legend(loc="upper left")
    figure.savefig(path)


def follow(watch: api.Watch, alarm: Alarm, output: Path) -> None:
    """Write a line for each picture and print the events; draw the plot at the end, also after an error."""
    begin, points = datetime.now().astimezone(), deque[tuple[float, float]](maxlen=50_000)
    try:
        with (output / "pictures.jsonl").open("a", buffering=1) as lines:
            for seen in watch:
                now, recorded_s = datetime.now().astimezone(), None if watch.feed.is_live else seen.arrival.time_s
                time_s = (now - begin).total_seconds() if recorded_s is None else recorded_s
                event = alarm.check(seen, time_s)
                points.append((time_s, np.nan if seen.novelty is None else seen.novelty))
                line = {"clock": now.isoformat(), "index": seen.arrival.index, "time_s": time_s}
                print(json.dumps(line | {"novelty": seen.novelty, "event": event and event.number}), file=lines)
                if event and event.begin_s == time_s:
                    click.echo(f"event {event.number}: {now:%F %T}, {time_s:.1f} s, novelty {seen.novelty:.1f}")
    finally:
        if points:
            draw(points, alarm, f"{watch.name}, {begin:%F %T}", output / "novelty.png")
            click.echo(f"events: {alarm.count}, plot: {output / 'novelty.png'}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="watch", help="Folder of the results.")
@click.option("--threshold", type=float, help="Novelty above which a picture is unusual.  [default: learned]")
def main(bundle: Path, source: str, output: Path, threshold: float | None) -> None:
    """Watch SOURCE, which is a video, a camera (/dev/video0) or an address (rtsp://), with a bundle."""
    try:
        with api.load(bundle) as predictor, api.Watch(predictor, source, notify=click.echo) as watch:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: watch.stop())
            output.mkdir(parents=True, exist_ok=True)
            follow(watch, Alarm(threshold), output)
    except (api.E3DError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
