"""The LightningModule: loss, optimiser, what is logged."""

import math

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from e3d_deploy.config import TrainConfig
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training import sampling


class Learner(LightningModule):
    """A network that learns to predict every next frame of a clip, float32 [B, T, C, H, W]."""

    def __init__(self, model: E3DLSTM, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def training_step(self, frames: Tensor, batch_idx: int) -> Tensor:
        step, horizon = self.global_step, self.config.horizon
        chance = sampling.probability(step, start=self.config.sampling_start, stop_step=self.config.sampling_stop_step)
        # Drawn from the step, not from a running state, so that a resumed run draws the same.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        truth = sampling.draw((len(frames), horizon - 1), chance, generator).to(frames)
        difference = self.model(frames, horizon, truth) - frames[:, 1:]
        squared = difference.square().sum() / len(frames)
        loss: Tensor = squared / 2 + self.config.l1_weight * difference.abs().sum() / len(frames)
        self.log("train_mse", squared / difference.shape[1], prog_bar=True, on_step=False, on_epoch=True)
        self.log("sampling", chance, prog_bar=True)
        return loss

    def validation_step(self, frames: Tensor, batch_idx: int) -> None:
        context_length = self.config.context_length
        predictions = self.model(frames[:, :context_length], self.config.horizon)[:, -self.config.horizon :]
        difference = predictions.clamp(0, 1) - frames[:, context_length:]
        self.log("valid_mse", difference.square().sum((2, 3, 4)).mean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # The moments' decays are the original's (0.95, 0.9995) for 80,000 steps; its second one would
        # average over most of a run of a few thousand.
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.99))

        def share(step: int) -> float:
            done = min(1.0, step / self.config.steps)
            return min(1.0, (step + 1) / (self.config.warmup_steps + 1)) * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
