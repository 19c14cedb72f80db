"""Overhead of `e3d train` compared with a plain PyTorch loop, and memory saved by `--recompute`.

    python -m benchmarks.training [--steps 5]

Time: optimizer steps of `e3d train` (Lightning, moving average, logs, data) are timed in turn with those of a plain
PyTorch loop on an equal full-size network, by processor time, which other processes disturb less. Memory: one optimizer
step on clips of 20 and of 40 frames, with and without `--recompute`, each in a process of its own. Writes
benchmarks/results/training.json.
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from benchmarks.common import save
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.module import Learner
from e3d_deploy.training.train import Machine, train


class InTurn(Callback):
    """Callback that, after each optimizer step of the Trainer, times one of a plain loop on its own network."""

    def __init__(self, model: ModelConfig, config: TrainConfig) -> None:
        torch.manual_seed(0)
        self.learner = Learner(E3DLSTM(model), config)
        self.learner.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        self.optimizer = self.learner._optimizer()
        self.ours: list[float] = []
        self.waiting: list[float] = []
        self.plain: list[float] = []
        self.ended: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        if self.ended is not None:
            self.waiting.append(time.process_time() - self.ended)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        if self.ended is not None:
            self.ours.append(time.process_time() - self.ended)
        started = time.process_time()
        self.optimizer.zero_grad()
        self.learner.training_step(batch, batch_idx).backward()
        self.optimizer.step()
        self.plain.append(time.process_time() - started)
        self.ended = time.process_time()


def overhead(steps: int, batch_size: int) -> dict[str, Any]:
    """Train for some optimizer steps in turn with a plain loop; return times (s) and their ratios."""
    model = ModelConfig()
    config = TrainConfig(
        steps=steps + 2, batch_size=batch_size, validate_every=10**6, save_every=10**6, validation_clips=1
    )
    turns = InTurn(model, config)
    with tempfile.TemporaryDirectory() as folder:
        train(model, config, Path(folder) / "run", machine=Machine(progress=False), callbacks=[turns])
    ours, plain, waiting = (np.array(values[1:]) for values in (turns.ours, turns.plain[1:], turns.waiting))
    ratios = ours / plain[: len(ours)]
    return {
        "batch_size": batch_size,
        "steps": len(ours),
        "step_s": round(float(np.median(ours)), 2),
        "plain_step_s": round(float(np.median(plain)), 2),
        "ratio": round(float(np.median(ratios)), 3),
        "ratios": [round(float(ratio), 3) for ratio in sorted(ratios)],
        "share_waiting_for_data": round(float(np.median(waiting / ours)), 5),
    }


def peak(length: int, recompute: bool) -> dict[str, Any]:
    """Measure one forward and backward pass; return how much the peak resident memory grew (GB) and its time (s).

    Args:
        length: number of frames of the clip.
    """
    torch.manual_seed(0)
    learner = Learner(E3DLSTM(ModelConfig(history_length=length)), TrainConfig())
    frames = torch.rand(1, length, 1, 64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    predictions = learner.model(frames, length // 2, torch.ones(1, length - 2), recompute=recompute)
    learner.loss(predictions - frames[:, 1:]).backward()
    seconds = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"gb": round((after - before) / 1e6, 3), "seconds": round(seconds, 1)}


@click.command()
@click.option("--steps", default=5, help="Number of optimizer steps.")
@click.option("--batch-size", default=1, help="Batch size.")
@click.option("--lengths", default="20,40", help="Numbers of frames of the clips, separated by commas.")
def main(steps: int, batch_size: int, lengths: str) -> None:
    """Measure the overhead of `e3d train` and the memory that --recompute saves."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {
            length: {
                name: pool.apply(peak, (int(length), recompute))
                for name, recompute in (("plain", False), ("recompute", True))
            }
            for length in lengths.split(",")
        }
    for rows in memory.values():
        rows["ratio"] = round(rows["recompute"]["gb"] / rows["plain"]["gb"], 3)
    save(
        "training",
        {"what": "full size: hidden 4×64, 64×64, patch 4", "overhead": overhead(steps, batch_size), "memory": memory},
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
