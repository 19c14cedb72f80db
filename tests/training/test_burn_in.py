"""Training with a burn-in: the number of frames, their choice, and the state and gradients."""

import logging
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from e3d_deploy.config import RECIPES, ModelConfig, TrainConfig
from e3d_deploy.data.datasets import Extendable, FixedWindows, Key, Mixture, MovingMNIST, Shuffled, Windows
from e3d_deploy.data.datasets import training_data as open_training_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.sources import Source
from e3d_deploy.errors import ConfigError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.batches import StepBatches, draw_burn_in
from e3d_deploy.training.module import Learner, compile_cells
from e3d_deploy.training.pace import Pace
from tests.tools import Clock

CARRIED = 1e-6  # absolute; measured 0
COMPILED = 1e-5  # absolute, of gradients up to 0.05; measured 7.5e-9
LENGTH = 5
MODEL = ModelConfig(image_size=(32, 32), patch_size=8, hidden=(4, 4), kernel_size=3)
CONFIG = TrainConfig(context_length=3, horizon=2, steps=100, batch_size=2, sampling_stop_step=0)


# Settings


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({}, 90),
        ({"steps": 19}, 18),
        ({"steps": 9}, None),
        ({"burn_in": 0}, None),
        ({"burn_in_steps": 0}, None),
        ({"burn_in_steps": 30}, 70),
        ({"burn_in_steps": 1000}, 0),
    ],
    ids=str,
)
def test_the_last_steps_have_a_burn_in(changes: dict[str, Any], start: int | None) -> None:
    assert replace(CONFIG, **changes).burn_in_start == start


@pytest.mark.parametrize("name", ["burn_in", "burn_in_steps"])
def test_negative_numbers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got -1, expected 0 or more"):
        TrainConfig(**{name: -1})  # type: ignore[arg-type]


def test_the_recipes_of_the_originals_have_no_burn_in() -> None:
    starts = {name: TrainConfig.of_recipe(name).burn_in_start for name in RECIPES}
    assert starts == {"modern": 72_000, "google": None, "openstl": None}


# Number of frames


def test_half_of_the_draws_are_zero_and_the_mean_is_a_quarter() -> None:
    drawn = [draw_burn_in(TrainConfig(burn_in=80), number) for number in range(4000)]
    assert 0.47 < drawn.count(0) / 4000 < 0.53  # measured 0.505
    assert 19 < np.mean(drawn) < 21  # measured 19.9
    assert set(drawn) == set(range(81))
    assert {draw_burn_in(TrainConfig(burn_in=1), number) for number in range(50)} == {0, 1}


def test_a_draw_depends_only_on_seed_and_step() -> None:
    first, again, other = ([draw_burn_in(TrainConfig(seed=seed), number) for number in range(20)] for seed in (0, 0, 1))
    assert first == again != other


def batches(config: TrainConfig, steps: int, **options: Any) -> list[list[Key]]:
    given = {"position": lambda: 0, "spare": lambda _: 1000, **options}
    return list(islice(StepBatches(config, **given), steps * config.accumulate))


def lengths(config: TrainConfig, steps: int, **options: Any) -> list[int]:
    """Return the number of burn-in frames of each batch."""
    first = [batch[0] for batch in batches(config, steps, **options)]
    return [key[1] if isinstance(key, tuple) else 0 for key in first]


def test_only_the_last_steps_take_frames_before_their_clips() -> None:
    found = batches(CONFIG, 100)
    plain = batches(replace(CONFIG, burn_in=0), 100)
    assert found[:90] == plain[:90]
    drawn = [draw_burn_in(CONFIG, number) for number in range(90, 100)]
    assert max(drawn) > 0
    assert found[90:] == [
        [(number, before) for number in batch] if before else batch
        for batch, before in zip(plain[90:], drawn, strict=True)
    ]


def test_a_resumed_run_repeats_the_draws_of_an_uninterrupted_run() -> None:
    config = replace(CONFIG, burn_in_steps=100)
    whole = batches(config, 20)
    assert batches(config, 13, position=lambda: 7) == whole[7:]


def test_processes_and_parts_of_a_step_take_the_same_number_of_frames() -> None:
    config = replace(CONFIG, burn_in_steps=100, batch_size=8, accumulate=2)

    def spare(number: int) -> int:
        return number % 8 + 3  # the minimum is in the share of the first process

    found = [lengths(config, 20, spare=spare, rank=rank, processes=2) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0][::2] == found[0][1::2]
    assert set(found[0]) >= {0, 3}
    assert max(found[0]) == 3


def test_clips_played_backwards_use_the_burn_in_of_the_step_before() -> None:
    found = batches(replace(CONFIG, burn_in_steps=100, reverse_input=True), 20)
    assert found[::2] == found[1::2]
    assert any(isinstance(batch[0], tuple) for batch in found)


def test_by_time_the_last_tenth_of_the_time_has_a_burn_in() -> None:
    clock = Clock()
    config = replace(CONFIG, schedule_by="time", steps=1000, burn_in=1)
    pace = Pace(config, limit_s=100, clock=clock)
    pace.end_step()
    found = StepBatches(config, lambda: 0, spare=lambda _: 1000, schedule_step=pace.schedule_step)
    seen = []
    for step, batch in enumerate(islice(found, 100)):
        seen.append(isinstance(batch[0], tuple))
        clock.now += 1
        pace.agreed_share = pace.share(step + 1)
    assert not any(seen[:90])
    assert seen[90:] == [draw_burn_in(config, number) == 1 for number in range(90, 100)]
    assert any(seen[90:])


def test_a_run_resumed_by_time_keeps_its_share_before_its_first_step() -> None:
    config = replace(CONFIG, schedule_by="time", steps=1000)
    pace = Pace(config, limit_s=100, clock=Clock())
    pace.load_state_dict({"elapsed_s": 95, "share": 0.95})
    assert pace.schedule_step(40) == 950
    longer = Pace(config, limit_s=200, clock=Clock())
    longer.load_state_dict({"elapsed_s": 95, "share": 0.95})
    assert longer.schedule_step(40) == 475


# Choice of frames


def film(length: int) -> np.ndarray[Any, Any]:
    """Return a clip in which each frame contains its number, [length, 2, 2, 1]."""
    return np.tile(np.arange(length, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 1))


def numbers(sample: Tensor) -> list[int]:
    return (255 * sample[:, 0, 0, 0]).round().int().tolist()


def test_a_burn_in_consists_of_the_frames_before_the_window() -> None:
    data = Windows([film(60)], length=LENGTH)
    for index in range(30):
        window, longer = numbers(data[index]), numbers(data[index, 12])
        assert longer == list(range(longer[0], longer[0] + 12 + LENGTH))
        if window[0] >= 12:
            assert longer[12:] == window
        else:  # the window is moved just far enough to have these frames
            assert longer[0] == 0
        assert data.spare(index) == 55
    assert numbers(data[3, 55]) == list(range(60))


def test_a_window_of_a_short_clip_has_fewer_spare_frames() -> None:
    data = Windows([film(60), film(7)], length=LENGTH)
    assert {data.spare(index) for index in range(300)} == {55, 2}


def test_generated_clips_are_longer() -> None:
    data = MovingMNIST("train", length=LENGTH, image_size=(32, 32))
    assert data[3, 9].shape == (14, 1, 32, 32)
    assert torch.equal(data[3, 9][:LENGTH], data[3])


def fixed(stretches: list[list[int]] | None) -> FixedWindows:
    windows = np.array([[0, 0], [0, 9], [1, 4]])
    pieces = None if stretches is None else np.array(stretches)
    source = Source("", "kth", [film(20), film(12)], windows, True, stretches=pieces)
    return FixedWindows(source, length=LENGTH)


def test_windows_that_a_format_fixes_are_not_moved() -> None:
    data = fixed(None)
    assert [data.spare(index) for index in range(3)] == [0, 9, 4]
    assert numbers(data[1, 3]) == list(range(6, 14))
    shuffled = Shuffled(data, seed=0)
    for index in range(6):
        spare = shuffled.spare(index)
        assert numbers(shuffled[index, spare])[spare:] == numbers(shuffled[index])


def test_a_burn_in_does_not_span_a_gap() -> None:
    pieces = fixed([[0, 0, 7], [0, 7, 13], [1, 0, 12]])
    assert [pieces.spare(index) for index in range(3)] == [0, 2, 4]
    assert numbers(pieces[1, 2]) == list(range(7, 14))


def test_a_mixture_uses_the_source_of_each_sample() -> None:
    parts: list[Extendable] = [Windows([film(60)], length=LENGTH), Windows([film(5)], length=LENGTH)]
    data = Mixture(parts, [1, 1])
    spares = [data.spare(index) for index in range(40)]
    assert set(spares) == {55, 0}
    for index, spare in enumerate(spares):
        assert numbers(data[index, spare]) == numbers(parts[spare == 0][index, spare])


def training_data(path: Path, **options: Any) -> Extendable:
    return open_training_data([(str(path), 1.0)], Form(image_size=(2, 2), channels=1), length=LENGTH, seed=0, **options)


@pytest.mark.parametrize(("length", "burn_in", "told"), [(5, True, True), (5, False, False), (6, True, False)])
def test_a_source_without_spare_frames_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int, burn_in: bool, told: bool
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "valid").mkdir()
    for number in range(2):
        np.save(tmp_path / "train" / f"{number}.npy", film(length))
    training_data(tmp_path, burn_in=burn_in)
    message = (
        f"{tmp_path}: has no frame before its windows of 5 frames, so optimizer steps with one of its windows "
        "train without a burn-in; give longer clips, or --burn-in 0"
    )
    assert [text for text in caplog.messages if "burn-in" in text] == [message] * told


# Gradients and state


def learner(config: TrainConfig = CONFIG) -> tuple[Learner, dict[str, float]]:
    """Return a Learner without a Trainer, and a dictionary of the values that it logs."""
    torch.manual_seed(0)
    alone, logged = Learner(E3DLSTM(MODEL), config), dict[str, float]()

    def log(name: str, value: Any, **_: Any) -> None:
        logged[name] = torch.as_tensor(value).item()

    alone.log = log  # type: ignore[method-assign, assignment]
    return alone, logged


def frames(length: int) -> Tensor:
    return torch.rand(2, length, 1, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_state_flows_through_a_burn_in_and_gradients_do_not(recompute: bool) -> None:
    alone, logged = learner(replace(CONFIG, recompute=recompute))
    clip = frames(7 + LENGTH).requires_grad_()
    loss = alone.training_step(clip, 0)
    loss.backward()
    assert logged["burn_in"] == 7
    assert clip.grad is not None
    assert not clip.grad[:, :7].any()
    assert clip.grad[:, 7:].any()
    assert all(weight.grad is not None and weight.grad.any() for weight in alone.parameters())

    state = alone.model.initial_state(2)
    for t in range(7):
        _, state = alone.model.step(clip[:, t], state)
    predictions = alone.model(clip[:, 7:10], 2, state=state)
    expected = alone.loss(predictions - clip[:, 8:])
    assert abs(loss - expected) < CARRIED
    young, _ = learner()
    assert abs(young.training_step(clip[:, 7:], 0) - loss) > 100 * CARRIED


def test_a_burn_in_in_bf16_leaves_the_gradients_of_all_weights() -> None:
    """Autocast caches cast weights, and weights cast without gradients would get none later."""
    alone, _ = learner()
    with torch.autocast("cpu", torch.bfloat16):
        alone.training_step(frames(4 + LENGTH), 0).backward()
        state = alone.carry(frames(4))
    assert all(weight.grad is not None and weight.grad.any() for weight in alone.parameters())
    tensors = [*state.hidden, *state.cell, state.memory, state.window]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_compiled_cells_have_the_same_gradients_after_a_burn_in() -> None:
    plain, compiled = learner()[0], learner()[0]
    compile_cells(compiled.model)
    compiled.training_step(frames(LENGTH), 0)
    before = counters["stats"]["unique_graphs"]
    for alone in (plain, compiled):
        alone.training_step(frames(2 + LENGTH), 0).backward()
    assert counters["stats"]["unique_graphs"] == before > 0  # the burn-in did not compile anything
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).abs().max() < COMPILED


def test_a_clip_played_backwards_burns_in_on_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, (backwards, _) = frames(4 + LENGTH), learner(replace(CONFIG, reverse_input=True))
    monkeypatch.setattr(Learner, "global_step", 1)
    found = backwards.training_step(clip, 0)
    monkeypatch.setattr(Learner, "global_step", 0)
    alone, _ = learner()
    assert found.item() == alone.training_step(clip.flip(1), 0).item()
    assert found.item() != alone.training_step(clip, 0).item()


def test_a_run_without_a_burn_in_does_not_log_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        alone, logged = learner(replace(CONFIG, burn_in=0))
        alone.training_step(frames(LENGTH), 0)
    assert "burn_in" not in logged
