"""`e3d evaluate --streaming`: decay of a stream's state."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands.opening import index_of, open_predictor
from e3d_deploy.commands.output import as_json, table, working

if TYPE_CHECKING:
    from e3d_deploy.card import Decay
    from e3d_deploy.data.splits import Split


def evaluate_streaming(
    model: Path,
    data: str,
    *,
    split: "Split",
    context_length: int | None,
    horizon: int | None,
    backend: str,
    threads: int | None,
    most: int | None,
    ages: Sequence[int] | None,
    record: bool,
    output: Path | None,
    skip_bad: bool,
    json_: bool,
    importing: Mapping[str, Any],
) -> None:
    """Measure forecasts by the age of the state, show them, and record them with the model if asked to."""
    from contextlib import ExitStack

    from e3d_deploy import plots
    from e3d_deploy.data.datasets import GENERATED, aging_data
    from e3d_deploy.evaluation.streaming import ages_of, measure_decay, record_with_model
    from e3d_deploy.files import new_folder

    if output is not None:
        import matplotlib.figure  # noqa: F401 (a missing library shall show now)
    if record:
        check_record(model)
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        predictor = stack.enter_context(open_predictor(model, backend, threads, importing))
        context_length, horizon = context_length or predictor.context_length, horizon or predictor.horizon
        asked = ages_of(context_length, ages)
        progress = stack.enter_context(working(f"measuring how a state of {model} ages on {data}"))
        windows, fitting = aging_data(
            data,
            asked,
            split=split,
            image_size=predictor.config.image_size,
            channels=predictor.config.channels,
            context_length=context_length,
            horizon=horizon,
            most=most or (32 if data == GENERATED else 100),
            skip_bad=skip_bad,
            progress=progress,
        )
        decay = measure_decay(
            predictor.backend,
            windows,
            ages=fitting,
            context_length=context_length,
            horizon=horizon,
            data=data,
            progress=progress,
        )
        if record:
            record_with_model(model, predictor.identity, decay)
        about = {"model": str(model), "identity": predictor.identity, "backend": predictor.backend.name, "split": split}
        left_out = [age for age in asked if age not in fitting]
        report = {**about, **decay.report(), "ages_left_out": left_out, "recorded": record}
        if folder is not None:
            (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
            (folder / "decay.png").write_bytes(plots.decay(decay))
    if json_:
        as_json(report)
    else:
        show_decay(decay)
    if output is not None:
        click.echo(output, err=json_)
    if left_out:
        ages_text = ", ".join(map(str, left_out))
        click.echo(f"left out: ages {ages_text}, for which too few clips of {data} are long enough", err=True)
    click.echo(
        f"{decay.clips} windows of {data} ({split}), {horizon} frames predicted, by {about['backend']}"
        + (f"; recorded in {model}" if record else ""),
        err=True,
    )


def show_decay(decay: "Decay") -> None:
    """Show the error at each age as a table, and the verdict below it."""
    from e3d_deploy.evaluation.report import number

    C = decay.context_length
    rows = [
        (str(age), number(decay.mean(age)), f"{decay.ratio(age):.2f}", number(errors[0]), number(errors[-1]))
        for age, errors in decay.mse.items()
    ]
    copying = decay.copy_last
    mean = sum(copying) / len(copying)
    ratio = f"{mean / decay.mean(C):.2f}" if decay.mean(C) else ""
    rows.append(("copying the last frame", number(mean), ratio, number(copying[0]), number(copying[-1])))
    table(["age of the state (frames)", "MSE a frame", f"× age {C}", "first frame", f"frame {len(copying)}"], rows)
    click.echo()
    click.echo(decay.verdict)


def check_record(model: Path) -> None:
    """Refuse a model into which no decay can be recorded, before the work is done.

    Raises:
        ConfigError: a checkpoint of others, or one that may not be written.
    """
    import os

    from e3d_deploy.errors import ConfigError

    if model.suffix in (".ckpt", ".pth", ".pt") or index_of(model).exists():
        raise ConfigError(f"{model}: --record: a checkpoint of others keeps no record; `e3d import` it first")
    folder = model if model.is_dir() else model.absolute().parent
    if model.exists() and not os.access(folder, os.W_OK):
        raise ConfigError(f"{model}: --record: may not be written; leave --record out, or take a copy")
