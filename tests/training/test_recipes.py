"""The recipes: google is compared with recorded training, the others with their definitions."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import LightningModule as Module
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from e3d_deploy.config import RECIPES, ModelConfig, Semantics, TrainConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.model import E3DLSTM, to_frames
from e3d_deploy.training import sampling
from e3d_deploy.training.batches import StepBatches
from e3d_deploy.training.callbacks import Averaging, lightning_quiet
from e3d_deploy.training.module import Learner
from tests.golden import GOLDEN, Arrays, channels_first, model_parameters, read

FIRST_LOSS = 1e-6  # relative; measured 1.1e-7
LOSS = 3e-5  # relative, over all iterations; measured 9.4e-6
LARGEST, MEAN = 1e-4, 1e-6  # parameters after the last iteration; measured 1.1e-5 and 9.3e-8


class Losses(Callback):
    def __init__(self) -> None:
        self.per_step: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Module, outputs: Any, *_: Any) -> None:
        self.per_step.append(outputs["loss"].item())


def replay(arrays: Arrays, settings: dict[str, Any], semantics: Semantics, monkeypatch: Any) -> tuple[Any, ...]:
    """Repeat a recorded training with our recipe; return the losses per step, the network and the moving average."""
    config = ModelConfig(
        image_size=(16, 16), patch_size=4, hidden=settings["hidden"], norm_eps=1e-12, semantics=semantics
    )
    model = E3DLSTM(config)
    model.load_state_dict(model_parameters(arrays, layers=2, prefix="init"))
    reverse = settings.get("reverse_input", False)
    steps = settings["iterations"] * (2 if reverse else 1)
    context_length = settings["input_length"]
    recipe = TrainConfig.of_recipe(
        "google",
        context_length=context_length,
        horizon=settings["total_length"] - context_length,
        batch_size=settings["batch"],
        steps=steps,
        reverse_input=reverse,
    )
    flags = [torch.tensor(flag) for flag in arrays["flag_per_step"].repeat(2 if reverse else 1, axis=0)]
    monkeypatch.setattr(sampling, "draw", lambda *_: flags.pop(0))
    frames = to_frames(channels_first(arrays["x"]).flatten(0, 1), 4)
    clips = TensorDataset(torch.cat([frames, frames[: recipe.batch_size]]))  # the loader reads one batch ahead
    losses, averaging = Losses(), Averaging(recipe.ema_decay, warmup=recipe.ema_warmup, used=recipe.average)
    with lightning_quiet():
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[averaging, losses],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        batches = StepBatches(recipe, lambda: trainer.global_step)
        loader = DataLoader(clips, batch_sampler=batches, collate_fn=lambda items: default_collate(items)[0])
        trainer.fit(Learner(model, recipe, batches.first_clip), loader)
    return [loss / recipe.batch_size for loss in losses.per_step], model, averaging.average


def differences(model: E3DLSTM, arrays: Arrays, prefix: str) -> Tensor:
    expected = model_parameters(arrays, layers=2, prefix=prefix)
    return torch.cat([(weight - expected[name]).abs().flatten() for name, weight in model.state_dict().items()])


@pytest.mark.parametrize(
    ("name", "semantics"),
    [
        ("A_released", "google"),
        ("A_paper", "paper"),
        ("A_default_init_released", "google"),
        ("A_default_init_paper", "paper"),
        ("A_reverse_paper", "paper"),
    ],
)
def test_trace_equals_the_released_one(name: str, semantics: Semantics, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, settings = read(GOLDEN / f"trace_{name}.npz")
    losses, model, average = replay(arrays, settings, semantics, monkeypatch)
    if settings.get("reverse_input"):  # the loss was recorded as the mean of both directions
        losses = np.reshape(losses, (-1, 2)).mean(axis=1).tolist()
    else:
        assert losses[0] == pytest.approx(arrays["loss"][0], rel=FIRST_LOSS)
    assert losses == pytest.approx(arrays["loss"].tolist(), rel=LOSS)
    found = {"final": differences(model, arrays, "final")}
    if any(key.startswith("ema_post/") for key in arrays):
        found["ema_post"] = differences(average, arrays, "ema_post")
    for prefix, difference in found.items():
        assert difference.max() < LARGEST, prefix
        assert difference.mean() < MEAN, prefix


def test_sampling_equals_the_released_one() -> None:
    arrays, settings = read(GOLDEN / "schedule_sampling.npz")
    horizon = settings["total_length"] - settings["input_length"]
    generator = np.random.RandomState(settings["seed"])
    for call, (eta, flags) in enumerate(zip(arrays["eta"], arrays["flag_per_step"], strict=True)):
        chance = sampling.probability(
            call + 1, start=settings["start"], decrease=settings["changing_rate"], stop_step=settings["stop_iter"]
        )
        assert chance == pytest.approx(eta)
        drawn = sampling.draw((settings["batch"], horizon - 1), chance, generator)
        assert torch.equal(drawn, torch.tensor(flags).float())


def test_reverse_sampling_shows_more_of_the_context_and_less_after_it() -> None:
    """OpenSTL's chances: 0.5 and 0.5 up to step 25,000, then 1 − ½ e^(−s/5,000) and linearly to 0 at step 50,000."""
    options = {"start_step": 25_000, "stop_step": 50_000, "decay": 5000.0}
    assert sampling.reverse_probabilities(24_999, **options) == (0.5, 0.5)
    within, after = sampling.reverse_probabilities(37_500, **options)
    assert within == pytest.approx(1 - 0.5 * np.exp(-2.5))
    assert after == pytest.approx(0.25)
    assert sampling.reverse_probabilities(50_000, **options) == (1.0, 0.0)


def learner(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> Learner:
    monkeypatch.setattr(Learner, "global_step", step)
    return Learner(E3DLSTM(ModelConfig(image_size=(16, 16), hidden=(2,), kernel_size=3)), config)


def test_reverse_sampling_replaces_frames_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.of_recipe("openstl", context_length=5, horizon=3, batch_size=4000)
    (within, after), truth = learner(config, 0, monkeypatch).draw_truth(4000, 0)
    assert (within, after) == (0.5, 0.5)
    assert truth.shape == (4000, 6)
    assert 0.48 < truth[:, :4].mean() < 0.52  # measured 0.498
    assert 0.48 < truth[:, 4:].mean() < 0.52  # measured 0.498
    _, late = learner(config, 60_000, monkeypatch).draw_truth(4000, 0)
    assert late.tolist() == [[1, 1, 1, 1, 0, 0]] * 4000


def test_parts_of_a_batch_use_their_rows_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(batch_size=6, sampling_start=0.5, sampling_stop_step=100, steps=100)
    alone = learner(config, 7, monkeypatch)
    _, whole = alone.draw_truth(6, 0)
    parts = [alone.draw_truth(2, first)[1] for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique(dim=0)) > 1


def test_losses_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    squares, absolutes = difference.square(), difference.abs()
    mean = learner(TrainConfig.of_recipe("openstl"), 0, monkeypatch).loss(difference)
    assert mean.item() == pytest.approx((squares.mean() + absolutes.mean()).item())
    whole = learner(TrainConfig.of_recipe("google", batch_size=2), 0, monkeypatch).loss(difference)
    assert whole.item() == pytest.approx((squares.sum() / 2 + absolutes.sum()).item())
    half = learner(TrainConfig.of_recipe("google", batch_size=4), 0, monkeypatch).loss(difference)
    assert half.item() == pytest.approx(2 * whole.item())  # two processes average their losses


def test_one_cycle_equals_that_of_openstl(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.of_recipe("openstl", steps=100)
    made: Any = learner(config, 0, monkeypatch).configure_optimizers()
    rates = []
    for _ in range(100):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(1e-4 / 25)
    assert max(rates) == pytest.approx(1e-4, rel=1e-3)
    assert int(np.argmax(rates)) in (29, 30)
    assert rates[-1] < 1e-6


def test_decay_spares_norms_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = learner(TrainConfig(weight_decay=0.1), 0, monkeypatch)
    made: Any = alone.configure_optimizers()
    decayed, spared = made["optimizer"].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0)
    names = {id(weight): name for name, weight in alone.named_parameters()}
    assert all(names[id(weight)].endswith("weight") and "norm" not in names[id(weight)] for weight in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_complete(recipe: str) -> None:
    assert TrainConfig.of_recipe(recipe, steps=7).steps == 7


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="recipe: got 'best', expected one of modern, google, openstl"):
        TrainConfig.of_recipe("best")


# Clips of a step


def clips(config: TrainConfig, steps: int, **options: Any) -> list[list[int]]:
    return list(islice(StepBatches(config, **{"position": lambda: 0, **options}), steps * config.accumulate))


def test_steps_use_the_clips_in_order() -> None:
    assert clips(TrainConfig(batch_size=3), 2) == [[0, 1, 2], [3, 4, 5]]


def test_a_resumed_run_continues_with_the_next_clips() -> None:
    assert clips(TrainConfig(batch_size=3), 1, position=lambda: 5) == [[15, 16, 17]]


def test_parts_and_processes_share_the_clips_of_a_step() -> None:
    config = TrainConfig(batch_size=8, accumulate=2)
    shares = [clips(config, 2, rank=rank, processes=2) for rank in (0, 1)]
    assert shares == [[[0, 1], [4, 5], [8, 9], [12, 13]], [[2, 3], [6, 7], [10, 11], [14, 15]]]
    first = [StepBatches(config, lambda: 0, rank=rank, processes=2).first_clip(3) for rank in (0, 1)]
    assert first == [4, 6]


def test_reversed_steps_use_the_same_clips_twice() -> None:
    config = TrainConfig(batch_size=2, reverse_input=True)
    assert clips(config, 4) == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert clips(config, 2, position=lambda: 3) == [[2, 3], [4, 5]]
