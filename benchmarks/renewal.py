"""Cost of each renewal, for one stream and for several streams, compared with the renewal `none`.

    python -m benchmarks.renewal [--size demo|full] [--backend onnxruntime] [--streams 8] [--threads 1]

The renewals are timed in turn by processor time, which other processes disturb less. One stream pushes whole cycles of
its renewal, so that every call contains the same number of beginnings and ends of states. Several streams, which began
at different frames, get one frame each per round; the number of rows gathered per frame is the number of states that
were copied because the streams were stepped in other groups than before. `replay` is measured with one stream only. A
step of two states is compared with a step of one state. Writes benchmarks/results/renewal_SIZE_BACKEND.json.
"""

import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import compare, model_of, save, size_option
from benchmarks.scheduler import bundle_of
from e3d_deploy.export.bundle import export
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.aged import Aged, advance, aged_stream
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.batching import Batcher
from e3d_deploy.runtime.renewal import Renewal

CONTEXT = 10


def frames_of(text: str) -> int:
    """Return the number of frames in a call: the fewest whole cycles of a renewal that have at least 7 frames."""
    cycle = Renewal.parse(text, CONTEXT).cycle
    return cycle * -(-7 // cycle)


def one_stream(predictor: Predictor, texts: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Time a frame of one stream with each renewal; return times, and costs as multiples of `none`."""
    seen = cycle(np.random.default_rng(0).integers(0, 256, (50, *predictor.config.image_size, 1), np.uint8))
    frames = {text: frames_of(text) for text in texts}

    def pushes(text: str) -> Callable[[], None]:
        stream = predictor.stream(renewal=text)
        for _ in range(2 * predictor.config.history_length):
            stream.push(next(seen))

        def call() -> None:
            for _ in range(frames[text]):
                stream.push(next(seen))

        return call

    found = compare({text: pushes(text) for text in texts}, rounds=rounds, calls=1, clock=time.process_time)
    return {
        text: {
            "ms_per_frame": round(one["median_ms"] / frames[text], 4),
            "times_none": 1.0 if text == "none" else round(frames["none"] / frames[text] / one["speedup_over_none"], 3),
            "steps_per_frame": round(Renewal.parse(text, CONTEXT).steps_per_frame, 3),
        }
        for text, one in found.items()
    }


def several(predictor: Predictor, texts: tuple[str, ...], streams: int, rounds: int) -> dict[str, Any]:
    """Time rounds of several streams that began at different frames, with each renewal.

    Returns:
        For each renewal the time of a round (ms), the throughput as a multiple of that of `none`, and the rows gathered
        per frame.
    """
    batchers: dict[str, Batcher] = {}
    videos: dict[str, list[Aged]] = {}
    seen = cycle(np.random.default_rng(0).random((50, 1, 1, *predictor.config.image_size), np.float32))
    frames = {text: frames_of(text) for text in texts}
    for text in texts:
        renewal, batcher = Renewal.parse(text, CONTEXT), Batcher(predictor.backend, predictor.config)
        old = renewal.cycle * (2 * predictor.config.history_length + renewal.warm_up)
        batchers[text] = batcher
        videos[text] = [aged_stream(batcher, predictor.states, renewal, old + number) for number in range(streams)]

    def rounds_of(text: str) -> Callable[[], None]:
        def call() -> None:
            for _ in range(frames[text]):
                videos[text] = advance(batchers[text], videos[text], [next(seen)] * streams)

        return call

    found = compare({text: rounds_of(text) for text in texts}, rounds=rounds, calls=1, clock=time.process_time)
    result = {}
    for text in texts:
        before = batchers[text].gathered
        rounds_of(text)()
        result[text] = {
            "ms_per_round": round(found[text]["median_ms"] / frames[text], 3),
            "throughput_of_none": 1.0
            if text == "none"
            else round(found[text]["speedup_over_none"] * frames[text] / frames["none"], 3),
            "rows_gathered_per_frame": round((batchers[text].gathered - before) / frames[text] / streams, 3),
        }
    return result


def step_of_two(bundle: Bundle, backend: str, threads: int, rounds: int) -> float | None:
    """Return the time of a step of two states as a multiple of a step of one; None if the backend cannot step two."""
    opened = open_backend(bundle, backend, threads=threads)
    if 2 not in opened.sizes:
        return None
    batcher, frames = Batcher(opened, bundle.config), bundle.reference()["frames"][:1]
    states: dict[int, Any] = {}
    for size in (1, 2):
        members = aged_stream(batcher, bundle.states, Renewal(), 50).places * size
        states[size] = opened.gather([(one.batch.state, one.row) for one in members])

    def step(size: int) -> Callable[[], None]:
        seen = np.repeat(frames, size, axis=0)

        def call() -> None:
            _, states[size] = opened.step(seen, states[size])

        return call

    found = compare({"one": step(1), "two": step(2)}, rounds=rounds, calls=8, clock=time.process_time)
    opened.close()
    return round(1 / found["two"]["speedup_over_one"], 3)


@click.command()
@size_option("demo")
@click.option("--backend", default="onnxruntime", show_default=True, help="Backend to measure.")
@click.option("--streams", default=8, show_default=True, help="Number of streams.")
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--rounds", default=15, show_default=True, help="Number of rounds; a third of them with several streams.")
@click.option(
    "--renewals",
    default="none,refresh:2,refresh:3,refresh:10,replay",
    show_default=True,
    help="Renewals to compare, separated by commas.",
)
def main(size: str, backend: str, streams: int, threads: int, rounds: int, renewals: str) -> None:
    """Measure the cost of each renewal."""
    texts = tuple(renewals.split(","))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        any_batch = Bundle.open(bundle_of(size, folder))
        source = model_of(size, folder)
        bundles = {"batch 1": Bundle.open(export(source, folder / "one.e3d", batch=1)), "batch any": any_batch}
        result: dict[str, Any] = {}
        for kind, bundle in bundles.items():
            opened = open_backend(bundle, backend, threads=threads)
            with Predictor(bundle.config, opened, identity=kind, context_length=CONTEXT) as predictor:
                keep = tuple(text for text in texts if text != "replay")
                result[kind] = {
                    "one stream": one_stream(predictor, texts, rounds),
                    f"{streams} streams": several(predictor, keep, streams, max(3, rounds // 3)),
                }
            result[kind]["step of two over step of one"] = step_of_two(bundle, backend, threads, 2 * rounds)
    what = f"pushes with each renewal, C = {CONTEXT}, {size} model, {backend}; processor time"
    save(f"renewal_{size}_{backend.replace('-', '_')}", {"what": what, **result}, threads=threads)


if __name__ == "__main__":
    main()
