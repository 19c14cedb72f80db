"""Throughput of `e3d stream` on four files, compared with bare loops over the same files.

    python -m benchmarks.stream_files [--bundle film.e3d] [--rounds 5]

A bare loop has one thread per file, which decodes with PyAV, scales like `e3d stream`, and pushes into
`predictor.streams()`, without any checks, measurements or counters. There are two bare loops. One makes a forecast
after each picture, like `e3d stream`. The other only pushes, and is compared with `e3d stream --horizon 1`, whose
forecast needs no further step. `e3d stream` runs in this process with --json.

The sides run in random order in each round, and each side loads the bundle itself. Frames per second are measured by
elapsed time, from the first picture to the last. Processor time, which other processes disturb less, is that of a whole
call, including the loading. The bare loop with forecasts runs twice per round; the difference shows the noise.

Predictions are in benchmarks/NOTES.md. Writes benchmarks/results/stream_files.json.
"""

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.common import save
from e3d_deploy import runtime
from e3d_deploy.cli import main as e3d
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.write import write_clips
from e3d_deploy.demo.exhibits import FILM
from e3d_deploy.export.bundle import export
from e3d_deploy.shipped import extracted

FILES, LENGTH, HORIZON = 4, 40, 10
STORED = Form(image_size=(144, 192), channels=1)
"""Form of the files, equal to that of the film."""


def films(folder: Path) -> list[Path]:
    """Write `FILES` videos of `LENGTH` frames, each from another part of the film; return their paths."""
    film = np.moveaxis(read_clips(Path(str(PEDESTRIANS)), STORED).frames[0], -1, 1).astype(np.float32) / 255
    paths = [folder / f"{number}.mp4" for number in range(FILES)]
    for number, path in enumerate(paths):
        part = np.roll(film, -7 * number, axis=0)[:LENGTH]
        write_clips(path, part[None], frames_per_second=10)
    return paths


def pictures(path: Path, form: Form) -> Iterator[NDArray[np.uint8]]:
    """Decode a file with PyAV, without any checks; yield its pictures."""
    height, width = form.image_size
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            yield frame.reformat(width, height, "gray", interpolation="AREA").to_ndarray().reshape(form.shape)


def bare(bundle: Path, paths: Sequence[Path], backend: str, threads: int, horizon: int | None) -> float:
    """Run a bare loop, which forecasts unless `horizon` is None; return its pictures per second."""
    with (
        runtime.load(bundle, backend, threads=threads) as predictor,
        predictor.streams(max_streams=len(paths)) as streams,
    ):
        form = Form.of(predictor.config, predictor.card)

        def follow(path: Path) -> None:
            with streams.open() as slot:
                for picture in pictures(path, form):
                    slot.push(picture)
                    if horizon is not None:
                        slot.forecast(horizon)
                slot.wait()

        workers = [threading.Thread(target=follow, args=[path]) for path in paths]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return len(paths) * LENGTH / (time.perf_counter() - started)


def command(bundle: Path, paths: Sequence[Path], backend: str, threads: int, horizon: int) -> float:
    """Run `e3d stream --json`; return the pictures per second that it reports."""
    options = ["--backend", backend, "--threads", threads, "--horizon", horizon, "--json"]
    done = CliRunner().invoke(e3d, ["stream", *map(str, (bundle, *paths, *options))], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["frames"] == len(paths) * LENGTH
    rate: float = found["frames_per_second"]
    return rate


def ratios(values: dict[str, list[float]], side: str, base: str) -> dict[str, float]:
    """Return the values of a side divided by those of `base` in the same round: median and range."""
    shares = np.array(values[side]) / np.array(values[base])
    return {
        name: round(float(value), 3)
        for name, value in (("median", np.median(shares)), ("least", shares.min()), ("most", shares.max()))
    }


PAIRS = {
    "stream_over_bare": ("stream", "bare"),
    "bare_again_over_bare": ("bare again", "bare"),
    "horizon_1_over_pushes_alone": ("stream, horizon 1", "bare, pushes alone"),
}
"""Names of the ratios in the result, each with its side and the side that it is divided by."""


@click.command()
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle; by default the shipped model of film is exported."
)
@click.option("--backend", default="onnxruntime", show_default=True, help="Backend to measure.")
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--rounds", default=5, show_default=True, help="Number of rounds; each side is timed once per round.")
def main(bundle: Path | None, backend: str, threads: int, rounds: int) -> None:
    """Compare `e3d stream` on four files with bare loops over the same files."""
    with tempfile.TemporaryDirectory() as name, extracted(FILM.model) as model:
        bundle = bundle or export(model, Path(name) / "film.e3d", context_length=10, horizon=HORIZON)
        given: Any = (bundle, films(Path(name)), backend, threads)
        sides: dict[str, Callable[[], float]] = {
            "bare": lambda: bare(*given, HORIZON),
            "bare again": lambda: bare(*given, HORIZON),
            "stream": lambda: command(*given, HORIZON),
            "bare, pushes alone": lambda: bare(*given, None),
            "stream, horizon 1": lambda: command(*given, 1),
        }
        sides["bare, pushes alone"](), sides["stream, horizon 1"]()  # warm up
        order = random.Random(0)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        processor_s: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side in order.sample(list(sides), len(sides)):
                started_s = time.process_time()
                rates[side].append(sides[side]())
                processor_s[side].append(time.process_time() - started_s)
    save(
        "stream_files",
        {
            "what": f"{FILES} files of {LENGTH} frames, {backend}",
            "horizon": HORIZON,
            "frames_per_second": {side: round(float(np.median(found)), 2) for side, found in rates.items()},
            "processor_s": {side: round(float(np.median(found)), 2) for side, found in processor_s.items()},
            "share_of_frames_per_second": {name: ratios(rates, *pair) for name, pair in PAIRS.items()},
            "share_of_processor_time": {name: ratios(processor_s, *pair) for name, pair in PAIRS.items()},
        },
        threads=threads,
    )


if __name__ == "__main__":
    main()
