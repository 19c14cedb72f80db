"""Overhead of `e3d serve` with one and with eight viewers, and its behaviour under a load of 32 sessions.

    python -m benchmarks.serve [--model film|digits] [--backend onnxruntime] [--minutes 2]

The server runs in another process. The viewers are WebSocket clients in this process that send pictures like a webcam.
In turn with them, threads in this process push the same pictures to the same bundle and forecast, like an application
that embeds the runtime. Nothing is drawn, because the page measures its own drawing. Writes
benchmarks/results/serve_MODEL_PROCESSOR.json.
"""

import asyncio
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import processor_kind, save
from e3d_deploy import runtime, turns
from e3d_deploy.data.form import Form
from e3d_deploy.demo.exhibits import DIGITS, FILM
from e3d_deploy.export.bundle import export
from e3d_deploy.shipped import extracted

EXHIBITS = {"digits": DIGITS, "film": FILM}
Pictures = NDArray[np.uint8]


@contextmanager
def serving(bundle: Path, backend: str, *options: str) -> Iterator[tuple[str, int]]:
    """Serve a bundle in another process; yield its WebSocket address and process id."""
    command = [sys.executable, "-m", "e3d_deploy", "serve", str(bundle), "--port", "0", "--max-sessions", "40"]
    command += ["--backend", backend, "--threads", "1", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
        yield address.rstrip("/").replace("http://", "ws://") + "/v1/live", server.pid
    finally:
        server.terminate()
        server.wait(30)


class Viewer:
    """WebSocket client that acts like a browser with a webcam, but draws nothing."""

    def __init__(self, address: str, pictures: Pictures, horizon: int) -> None:
        self.address, self.pictures, self.horizon = address, pictures, horizon
        self.times_ms: list[float] = []

    async def run(self, seconds: float) -> None:
        """For a time, repeatedly send a picture and wait for its forecast; append the latencies to `times_ms`."""
        from websockets.asyncio.client import connect

        host = self.address.split("/")[2]
        async with connect(self.address, subprotocols=["e3d.v1"], origin=f"http://{host}", max_size=None) as socket:  # type: ignore[list-item, arg-type]
            await socket.send(json.dumps({"type": "open", "source": "webcam", "horizon": self.horizon}))
            while json.loads(await socket.recv())["type"] != "ready":
                pass
            end, number = time.perf_counter() + seconds, 0
            while time.perf_counter() < end:
                started = time.perf_counter()
                await socket.send(self.pictures[number % len(self.pictures)].tobytes())
                while not isinstance(answer := await socket.recv(), bytes):
                    pass
                self.times_ms.append(1000 * (time.perf_counter() - started))
                header = json.loads(answer[4 : 4 + struct.unpack("<I", answer[:4])[0]])
                assert header["horizon"] == self.horizon
                number += 1


def view(
    address: str, pictures: Pictures, *, viewers: int, horizon: int, seconds: float
) -> tuple[list[list[float]], int]:
    """Run several viewers for a time; return the latencies of each (ms), and the number of viewers that failed."""

    async def all_of_them() -> tuple[list[list[float]], int]:
        each = [Viewer(address, pictures, horizon) for _ in range(viewers)]
        ends = await asyncio.gather(*(one.run(seconds) for one in each), return_exceptions=True)
        for error in filter(None, ends):
            print(f"a viewer failed: {error!r}", file=sys.stderr)
        return [one.times_ms for one in each], sum(end is not None for end in ends)

    return asyncio.run(all_of_them())


def embed(
    predictor: runtime.Predictor, pictures: Pictures, *, streams: int, horizon: int, seconds: float
) -> list[list[float]]:
    """Follow several streams in this process for a time; return the times of a push and forecast (ms), by stream."""
    times: list[list[float]] = [[] for _ in range(streams)]

    def follow(stream: runtime.SlotStream, mine: list[float]) -> None:
        end, number = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            started = time.perf_counter()
            stream.push(pictures[number % len(pictures)])
            stream.forecast(horizon)
            mine.append(1000 * (time.perf_counter() - started))
            number += 1

    with predictor.streams() as pool:
        threads = [threading.Thread(target=follow, args=(pool.open(), mine)) for mine in times]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return times


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process (MB)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def load(address: str, pid: int, pictures: Pictures, *, horizon: int, minutes: float) -> dict[str, Any]:
    """Load the server with 32 sessions; return failed sessions, latencies, and the server's memory every 5 s (MB)."""
    memory: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(5):
            memory.append(resident_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        times, lost = view(address, pictures, viewers=32, horizon=horizon, seconds=60 * minutes)
    finally:
        done.set()
        watcher.join()
    every = np.concatenate([np.array(one) for one in times])
    return {
        "sessions": 32, "minutes": minutes, "lost": lost, "forecasts": len(every),
        "fewest_of_a_session": min(map(len, times)), "p50_ms": round(float(np.percentile(every, 50)), 1),
        "p99_ms": round(float(np.percentile(every, 99)), 1), "memory_mb": [round(one) for one in memory],
    }  # fmt: skip


@click.command()
@click.option("--model", type=click.Choice(sorted(EXHIBITS)), default="film", help="Shipped model to serve.")
@click.option("--backend", default="onnxruntime", help="Backend of both sides.")
@click.option("--horizon", default=10, help="Number of frames of each forecast.")
@click.option("--rounds", default=5, help="Number of rounds; each side is timed once per round.")
@click.option("--seconds", default=8.0, help="Time of each side in a round (s).")
@click.option("--minutes", default=2.0, help="Time of the load with 32 sessions (min); 0 skips it.")
def main(model: str, backend: str, horizon: int, rounds: int, seconds: float, minutes: float) -> None:
    """Measure the overhead of `e3d serve`."""
    exhibit = EXHIBITS[model]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / f"{model}.e3d"
        with extracted(exhibit.model) as file:
            export(file, bundle)
        with runtime.load(bundle, backend, threads=1) as predictor, serving(bundle, backend) as (address, pid):
            pictures = exhibit.video(Form.of(predictor.config, predictor.card)).frames[0]
            result: dict[str, Any] = {"model": model, "backend": backend, "horizon": horizon, "rounds": rounds}
            for count in (1, 8):
                inside, outside = turns.in_turn(
                    [
                        partial(_embed_round, predictor, pictures, count, horizon, seconds),
                        partial(_view_round, address, pictures, count, horizon, seconds),
                    ],
                    rounds,
                )
                result[f"{count} viewers" if count > 1 else "1 viewer"] = _compared(inside, outside, seconds)
            if minutes:
                result["load"] = load(address, pid, pictures, horizon=horizon, minutes=minutes)
    save(f"serve_{model}_{processor_kind()}", result, threads=1)


def _embed_round(
    predictor: runtime.Predictor, pictures: Pictures, streams: int, horizon: int, seconds: float, _: int
) -> list[list[float]]:
    return embed(predictor, pictures, streams=streams, horizon=horizon, seconds=seconds)


def _view_round(
    address: str, pictures: Pictures, viewers: int, horizon: int, seconds: float, _: int
) -> list[list[float]]:
    times, lost = view(address, pictures, viewers=viewers, horizon=horizon, seconds=seconds)
    assert not lost
    return times


def _compared(
    inside: list[list[list[float]]], outside: list[list[list[float]]], seconds: float
) -> dict[str, float | list[float]]:
    """Return the median latency (ms) and the forecasts per second of both sides, and the ratio of their rates.

    Args:
        inside: times of the embedded runtime (ms), by round and stream.
        outside: latencies of the viewers (ms), by round and viewer.
        seconds: time of each round (s).
    """
    median = [[float(np.median(np.concatenate(one))) for one in side] for side in (inside, outside)]
    rate = [[sum(map(len, one)) / seconds for one in side] for side in (inside, outside)]
    shares = [served / own for own, served in zip(*rate, strict=True)]
    return {
        "runtime_ms": round(float(np.median(median[0])), 2),
        "served_ms": round(float(np.median(median[1])), 2),
        "runtime_forecasts_a_second": round(float(np.median(rate[0])), 1),
        "served_forecasts_a_second": round(float(np.median(rate[1])), 1),
        "share_of_the_rate": round(float(np.median(shares)), 3),
        "range": [round(min(shares), 3), round(max(shares), 3)],
    }


if __name__ == "__main__":
    main()
