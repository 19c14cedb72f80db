"""Forecast many cameras in one process: one model steps the newest pictures of all cameras together.

    python many_cameras.py film.e3d rtsp://camera.local/front /dev/video0 a.mp4

Prints a line of JSON for each camera every two seconds: counters, times and the motion that is expected. Films are
played at their own frame rate, as a camera would. Ctrl-C or SIGTERM ends the program. Needs
`pip install 'e3d_deploy[cpu,video]'` and a bundle that `e3d export` wrote.
"""

import json
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import click
import numpy as np

from e3d_deploy import api

HORIZON = 5  # number of frames that a report looks ahead
REPORT_S = 2.0  # time between two reports


class Camera(threading.Thread):
    """Pushes the pictures of a source into a stream, until the source ends or is closed."""

    def __init__(self, feed: api.Feed, stream: api.SlotStream) -> None:
        super().__init__(name=feed.address.name)
        self.feed, self.stream = feed, stream
        self.state = "running"

    def run(self) -> None:
        try:
            for arrival in self.feed:
                if arrival.begins_video:  # also after a reconnect
                    self.stream.reset()
                self.stream.push(arrival.picture)  # never waits: a full queue drops its oldest picture
            self.state = "ended"
        except api.E3DError as error:  # the camera was lost; the other cameras continue
            self.state = str(error)

    def report(self) -> dict[str, object]:
        """Return the counters of the stream, and how much the next frames will change (gray levels)."""
        report = {"camera": self.name, "state": self.state, "reconnects": self.feed.reconnects, **self.stream.stats()}
        if self.state == "running" and self.stream.pushed > 0:
            with suppress(api.StreamError):  # the stream fails in its own thread too, which reports the error
                first, *_, last = self.stream.predict(HORIZON).astype(int)  # uint8 [HORIZON, H, W, C]
                report["motion"] = float(np.abs(last - first).mean())
        return report


def follow(cameras: list[Camera]) -> None:
    """Run cameras until all have ended, or until Ctrl-C or SIGTERM."""
    for camera in cameras:
        camera.start()
    try:
        while any(camera.is_alive() for camera in cameras):
            time.sleep(REPORT_S)
            for camera in cameras:
                click.echo(json.dumps(camera.report()))
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
    for camera in cameras:
        camera.feed.close()
        camera.join()
        click.echo(json.dumps(camera.report()))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True)
def main(bundle: Path, sources: tuple[str, ...]) -> None:
    """Forecast all SOURCES, which are cameras, addresses or films, with a bundle."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = api.FeedOptions(policy="block", realtime=True)
    try:
        with ExitStack() as stack:
            predictor = stack.enter_context(api.load(bundle))
            feeds = [stack.enter_context(api.open_feed(predictor, source, options)) for source in sources]
            shared = predictor.streams(max_streams=len(feeds), queue_length=1, policy="drop-oldest")
            streams = stack.enter_context(shared)
            follow([Camera(feed, streams.open()) for feed in feeds])
    except api.E3DError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
