"""The LightningModule of a training run: loss, optimizer, schedules and logged values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from e3d_deploy.config import TrainConfig
from e3d_deploy.model import E3DLSTM, State
from e3d_deploy.step import flatten_convolutions
from e3d_deploy.training import muon, sampling
from e3d_deploy.training.copying import copying_errors
from e3d_deploy.training.pace import Pace, cosine, one_cycle
from e3d_deploy.training.passes import CapturedPasses
from e3d_deploy.training.released_adam import ReleasedAdam


class Learner(LightningModule):
    """LightningModule that trains a network to predict each next frame of clips, float32 [B, T, C, H, W].

    Args:
        first_clip: returns the index of the first clip of a batch among the clips of its optimizer step, given the
            number of the batch. The draws of scheduled sampling have the same index.
        pace: progress of the run; None for a new `Pace`.
    """

    def __init__(
        self,
        model: E3DLSTM,
        config: TrainConfig,
        first_clip: Callable[[int], int] = lambda _: 0,
        pace: Pace | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.first_clip = model, config, first_clip
        self.pace = pace or Pace(config)
        self.captured: CapturedPasses | None = None

    def on_fit_start(self) -> None:
        if self.config.cuda_graph:
            for cell in self.model.cells:
                flatten_convolutions(cell, self.model.config)
            self.captured = CapturedPasses(self.model, self.config.horizon, recompute=self.config.recompute)
        # The cells are not compiled earlier, because the moving average copies the network, and a copy of a compiled
        # cell would still compute with the weights of the original.
        if self.config.compile:
            compile_cells(self.model)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx % self.config.accumulate:
            return
        optimizer = self.trainer.optimizers[0]
        if self.pace.by_time:
            # All processes must use the same share; with different shares, their weights would diverge.
            self.pace.agreed_share = self.trainer.strategy.broadcast(self.pace.share(self.global_step))
            self._follow_time(optimizer)
        self.log("learning_rate", optimizer.param_groups[0]["lr"])
        self.log("elapsed_s", self.pace.elapsed_s)

    def training_step(self, frames: Tensor, batch_idx: int) -> Tensor:
        config = self.config
        if config.reverse_input and self.global_step % 2 == 1:
            frames = frames.flip(1)
        burn_in = frames.shape[1] - config.clip_length
        state = self.carry(frames[:, :burn_in]) if burn_in else None
        frames = frames[:, burn_in:]
        chances, truth = self.draw_truth(len(frames), self.first_clip(batch_idx))
        truth = truth.to(frames)
        if self.captured is not None:
            predictions = self.captured(frames, truth, state)
        else:
            predictions = self.model(frames, config.horizon, truth, state=state, recompute=config.recompute)
        difference = predictions.float() - frames[:, 1:]
        loss = self.loss(difference)
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("train_mse", difference.detach().square().sum((2, 3, 4)).mean())
        self.log("sampling", chances[-1])
        if config.burn_in:
            self.log("burn_in", float(burn_in))
        return loss

    @torch.no_grad()
    def carry(self, frames: Tensor) -> State:
        """Return the state after the frames of a burn-in, [B, n, C, H, W], without gradients."""
        state = self.model.initial_state(len(frames))
        for frame in frames.unbind(1):
            _, state = self.model.step(frame, state)
        # The state is cast to float32 like the initial state, even with bf16, so that cells are not compiled again.
        hidden = tuple(one.float() for one in state.hidden)
        return state._replace(hidden=hidden, memory=state.memory.float())

    def loss(self, difference: Tensor) -> Tensor:
        """Return the loss from prediction − truth of each frame, [B, T − 1, C, H, W]."""
        squares, absolutes = difference.square(), difference.abs()
        if self.config.loss == "mean":
            mean: Tensor = squares.mean() + self.config.l1_weight * absolutes.mean()
            return mean
        # Gradients are averaged over processes and accumulated batches. The factor is the number of the averaged
        # gradients, so their average is the gradient of the sum over the whole batch.
        whole = self.config.batch_size / len(difference)
        total: Tensor = whole * (squares.sum() / 2 + self.config.l1_weight * absolutes.sum())
        return total

    def draw_truth(self, count: int, first: int) -> tuple[tuple[float, ...], Tensor]:
        """Return the chances and the draws of scheduled sampling for clips `first` to `first + count − 1` of this step.

        The draws are made for the whole batch from the seed and the step, not from a running generator. A resumed run
        therefore repeats the draws, and each process and accumulated batch gets the draws of its own clips.

        Returns:
            The chances that the true frame is shown; and the draws, float32 [count, T − 2], 1 for the true frame.
        """
        config = self.config
        passes = 2 if config.reverse_input else 1
        generator = np.random.default_rng((config.seed, self.global_step // passes))
        step, stop = self.pace.schedule_step(self.global_step) // passes, config.sampling_stop
        if config.sampling == "reverse":
            hold = stop // 2 if config.sampling_hold_steps is None else config.sampling_hold_steps
            chances: tuple[float, ...] = sampling.reverse_probabilities(
                step, start_step=hold, stop_step=stop, decay=config.sampling_decay_steps
            )
            lengths: tuple[int, ...] = (config.context_length - 1, config.horizon - 1)
            drawn = [
                sampling.draw((config.batch_size, length), chance, generator)
                for length, chance in zip(lengths, chances, strict=True)
            ]
            return chances, torch.cat(drawn, dim=1)[first : first + count]
        decrease = config.sampling_decrease
        if decrease is None:
            decrease = config.sampling_start / stop if stop else 0.0
        chance = sampling.probability(step + 1, start=config.sampling_start, decrease=decrease, stop_step=stop)
        rows = sampling.draw((config.batch_size, config.horizon - 1), chance, generator)[first : first + count]
        return (chance,), sampling.after_context(rows, config.context_length)

    def validation_step(self, frames: Tensor, batch_idx: int) -> Tensor:
        """Log the errors of a validation batch; return the predictions after the context, [B, horizon, C, H, W]."""
        context_length = self.config.context_length
        predictions: Tensor = self.model(frames[:, :context_length], self.config.horizon)[:, -self.config.horizon :]
        difference = predictions.float().clamp(0, 1) - frames[:, context_length:]
        self.log("valid_mse", difference.square().sum((2, 3, 4)).mean(), prog_bar=True, sync_dist=True)
        self.log("valid_copy_mse", copying_errors(frames, context_length).mean(), sync_dist=True)
        return predictions

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer()
        if self.pace.by_time:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def _optimizer(self) -> Optimizer:
        config = self.config
        common: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
        if config.optimizer == "released-adam":
            return ReleasedAdam(self.parameters(), **common)
        if config.optimizer == "muon":
            return muon.Muon(muon.groups(self.model, weight_decay=config.weight_decay), **common)
        if all(weight.is_cuda for weight in self.parameters()):
            common["fused"] = True  # one kernel for all weights; not on a CPU, where fused steps round differently
        if config.optimizer == "adam":
            return Adam(self.parameters(), **common)
        # Weight decay spares norms and biases: a scale near zero does not make the network simpler.
        weights = [weight for name, weight in self.named_parameters() if weight.ndim > 1 and "norm" not in name]
        others = [weight for name, weight in self.named_parameters() if weight.ndim <= 1 or "norm" in name]
        groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return AdamW(groups, **common)

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        config = self.config
        if config.schedule == "onecycle":
            return OneCycleLR(
                optimizer, max_lr=config.learning_rate, total_steps=max(config.steps, 2), final_div_factor=1e4
            )

        def share(step: int) -> float:
            if config.schedule == "constant":
                return 1.0
            return self._warmed_up(step) * cosine(min(1.0, step / config.steps))

        return LambdaLR(optimizer, share)

    def _warmed_up(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.config.warmup_steps + 1))

    def _follow_time(self, optimizer: Optimizer) -> None:
        """Set the learning rate, and with one cycle also the first beta, for the agreed share of the run."""
        config, factor = self.config, 1.0
        if config.schedule == "cosine":
            factor = self._warmed_up(self.global_step) * cosine(self.pace.agreed_share)
        elif config.schedule == "onecycle":
            factor, beta1 = one_cycle(self.pace.agreed_share)
            for group in optimizer.param_groups:
                group["betas"] = (beta1, config.beta2)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients.

        This replaces Lightning's method, which refuses bf16 with a fused optimizer, although only float16 needs
        unscaling.
        """
        if gradient_clip_val:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, gradient_clip_val)


def compile_cells(model: E3DLSTM) -> None:
    """Compile the cells of a network for training; calls without gradients use the uncompiled cells.

    Calls without gradients come from validations and previews. Their batches have different sizes, and each size would
    be compiled again.
    """

    def in_training(plain: Callable[..., Any]) -> Callable[..., Any]:
        # Layers differ in size. PyTorch would switch to dynamic sizes at the second layer, and dynamic sizes are slow.
        compiled = torch.compile(plain, dynamic=False)

        def compute(*tensors: Tensor) -> Any:
            if not torch.is_grad_enabled():
                return plain(*tensors)
            # All inputs are made to require a gradient. An initial state does not require one, so PyTorch would compile
            # a second variant of the cell for it.
            return compiled(*(one if one.requires_grad else one.detach().requires_grad_() for one in tensors))

        return compute

    for cell in model.cells:
        for part in ("gates", "states"):
            setattr(cell, part, in_training(getattr(cell, part)))
