"""Throughput of a Triton server with eight streams, compared with the runtime inside the program.

    python -m benchmarks.triton [--size full|demo] [--backend onnxruntime] [--streams 8]

Two sides process the same pictures of several streams, in turn:

- `in_process`: `predictor.streams()` in this process, with the pictures pushed to its queues;
- `triton`: the flavour `python` of a model repository, in a server on this machine. This process sends the pictures
  over one gRPC stream, and receives the prediction after each picture. It shares the processor with the server.

Both use the backend, the number of threads and the default renewal of the bundle. Times are elapsed times and processor
times, which other processes disturb less; the processor time of `triton` is that of client and server together. The
server needs `deploy/triton/serve --install`. Writes benchmarks/results/triton_SIZE_BACKEND_STREAMS_THREADS.json.

Prediction, written before the first measurement: the server reaches at least 0.9 of the rate in the process at full
size, where a step of eight streams takes most of a second, and 0.8 with the demo model.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import FULL, compare, model_of, save, size_option
from e3d_deploy import runtime
from e3d_deploy.export.bundle import export
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.triton.config import Serving
from e3d_deploy.triton.repository import write_repository
from tests.triton.client import Client, connected
from tests.triton.server import serving

MODEL = "model"
Pictures = NDArray[np.uint8]


@contextmanager
def served(bundle: Path, folder: Path, settings: Serving) -> Iterator[tuple[Client, int]]:
    """Serve a bundle; yield a client of the server, and the process group of the server."""
    write_repository([Bundle.open(bundle)], folder / "models", name=MODEL, serving=settings)
    with serving(folder / "models") as addresses, connected(addresses.grpc, MODEL) as client:
        yield client, addresses.process.pid


def processor_time(group: int) -> float:
    """Return the processor time of this process and of all processes in a group (s)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # The process has ended.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


class Side:
    """Sends pictures of all streams to the server, in sequences that continue from call to call."""

    def __init__(self, client: Client, pictures: Pictures) -> None:
        self.client, self.pictures, self.started = client, pictures, False
        self.wall = self.processor = 0.0

    def __call__(self) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        for t, together in enumerate(self.pictures):
            for number, picture in enumerate(together):
                start = not self.started and t == 0
                self.client.send(f"{t} {number}", number + 1, picture, horizon=None, start=start)
        self.started = True
        self.client.receive(self.pictures.shape[0] * self.pictures.shape[1])
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor


def in_process(slots: list[runtime.SlotStream], pictures: Pictures) -> None:
    for together in pictures:
        for slot, picture in zip(slots, together, strict=True):
            slot.push(picture)
    for slot in slots:
        slot.wait()


def random_pictures(predictor: Predictor, length: int, streams: int) -> Pictures:
    """Return pictures of all streams, [length, streams, H, W, C]."""
    shape = (length, streams, *predictor.config.image_size, predictor.config.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@click.command()
@size_option("full")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle of the model of --size, for any batch.")
@click.option("--backend", default="onnxruntime", show_default=True, help="Backend to measure.")
@click.option("--streams", default=8, show_default=True, help="Number of streams.")
@click.option("--threads", default=1, show_default=True, help="Number of threads of a step.")
@click.option("--rounds", default=7, show_default=True, help="Number of rounds; each side is timed once per round.")
@click.option("--length", default=2, show_default=True, help="Pictures per stream in each timed call.")
def main(size: str, bundle: Path | None, backend: str, streams: int, threads: int, rounds: int, length: int) -> None:
    """Measure the throughput of a Triton server and of the runtime in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if bundle is None:
            source = FULL if size == "full" else model_of(size, folder)
            bundle = export(source, folder / f"{size}.e3d", batch=None)
        settings = Serving(backend=backend, threads=threads, max_batch=streams, idle_s=3600)
        with (
            runtime.load(bundle, backend, threads=threads) as predictor,
            predictor.streams(max_streams=streams, max_wait_ms=1000, queue_length=length) as pool,
            served(bundle, folder, settings) as (client, group),
        ):
            pictures = random_pictures(predictor, length, streams)
            server = Side(client, pictures)
            slots = [pool.open() for _ in range(streams)]
            sides = {"in_process": partial(in_process, slots, pictures), "triton": server}
            results: dict[str, Any] = compare(sides, rounds=rounds, calls=1)
            processor = compare(sides, rounds=rounds, calls=1, clock=partial(processor_time, group))
            renewal = slots[0].renewal
    save(
        f"triton_{size}_{backend}_{streams}_{threads}",
        {
            "what": f"{length} pictures for each of {streams} streams, {size} model, {backend}",
            "renewal": renewal,
            "sides": results,
            "share": results["triton"]["speedup_over_in_process"],
            "processor": {"sides": processor, "share": processor["triton"]["speedup_over_in_process"]},
            "client_processor_share": round(server.processor / server.wall, 3),
            "load_1_minute": round(os.getloadavg()[0], 1),
        },
        threads=threads,
    )


if __name__ == "__main__":
    main()
