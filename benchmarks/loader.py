"""Throughput of the data loader: Moving MNIST sequences per second from one process.

    python -m benchmarks.loader [--seconds 10]

There are four rows: the generator; the samples of the training data set; and these samples through one DataLoader
worker in batches of 32, as float32 (like `e3d train`) and as uint8, which sends a quarter of the bytes between the
processes. Each row has sequences per second of elapsed time and of processor time, which includes the worker's. Writes
benchmarks/results/loader.json.

Predictions, written before the first run: 900 (generator) and 800 (samples) sequences per second of processor time;
through one worker 700 as float32 and 800 as uint8. A training of a quarter of an hour on a GPU needs 250 sequences per
second, which is 32 from each of eight workers. So a path for uint8 is worthwhile only if float32 reaches less than 100.
"""

import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import save
from e3d_deploy.data.datasets import MovingMNIST
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist

LENGTH, BATCH = 20, 32


class Bytes(Dataset[Tensor]):
    """Moving MNIST clips, uint8 [T, 1, H, W]."""

    def __init__(self) -> None:
        self.digits = load_digits("train")

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> Tensor:
        clip = moving_mnist(self.digits, np.random.default_rng((0, index)), length=LENGTH)
        return torch.from_numpy(clip).permute(0, 3, 1, 2)


class Floats(MovingMNIST):
    """Samples of `e3d train` with a length, which the default sampler of a DataLoader needs."""

    def __len__(self) -> int:
        return 10**6


def processor_s() -> float:
    """Return the processor time of this process and of its ended children (s)."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def rate(make: Callable[[], Iterator[int]], seconds: float) -> dict[str, Any]:
    """Make sequences for a time (s); return their number per second of elapsed time and of processor time.

    The number and the elapsed time start after the first batch; the processor time includes it.

    Args:
        make: returns an iterator that makes some sequences, yields their number, and continues.
    """
    started_processor = processor_s()
    batches = make()
    next(batches)
    done, started = 0, time.perf_counter()
    while (wall := time.perf_counter() - started) < seconds:
        done += next(batches)
    del batches  # the processor time of a worker is known only after its end
    used = processor_s() - started_processor
    return {"sequences_per_s": round(done / wall, 1), "sequences_per_processor_s": round(done / used, 1)}


def one_by_one(sample: Callable[[int], object]) -> Iterator[int]:
    """Make samples in this process; yield 1 after each."""
    index = 0
    while True:
        sample(index)
        index += 1
        yield 1


def by_worker(data: Dataset[Tensor]) -> Iterator[int]:
    """Load batches with one DataLoader worker; yield the size of each."""
    for batch in DataLoader(data, batch_size=BATCH, num_workers=1):
        yield len(batch)


@click.command()
@click.option("--seconds", default=10.0, help="Time of each row (s).")
def main(seconds: float) -> None:
    """Measure the throughput of the data loader."""
    torch.set_num_threads(1)
    floats, digits = Floats("train", length=LENGTH), load_digits("train")

    def generate(index: int) -> object:
        return moving_mnist(digits, np.random.default_rng((0, index)), length=LENGTH)

    rows = {
        "generator": rate(lambda: one_by_one(generate), seconds),
        "samples": rate(lambda: one_by_one(floats.__getitem__), seconds),
        "worker_float32": rate(lambda: by_worker(floats), seconds),
        "worker_uint8": rate(lambda: by_worker(Bytes()), seconds),
    }
    predicted = {"generator": 900, "samples": 800, "worker_float32": 700, "worker_uint8": 800}
    clip = f"{LENGTH} frames of 64×64"
    save("loader", {"clip": clip, "batch": BATCH, "predicted_per_processor_s": predicted, "rows": rows}, threads=1)


if __name__ == "__main__":
    main()
