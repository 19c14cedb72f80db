"""`e3d evaluate --streaming`: measures the decay of a stream's state."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._open import index_of, open_predictor
from e3d_deploy.commands._output import as_json, table, working
from e3d_deploy.progress import Notify

if TYPE_CHECKING:
    from e3d_deploy.card import Decay
    from e3d_deploy.data.rate import Selection
    from e3d_deploy.data.splits import Split
    from e3d_deploy.evaluation.renewals import Comparison
    from e3d_deploy.evaluation.streaming import Windows
    from e3d_deploy.runtime import Predictor


def evaluate_streaming(
    model: Path,
    data: str,
    *,
    split: "Split",
    selection: "Selection",
    layout: str | None,
    context_length: int | None,
    horizon: int | None,
    backend: str,
    threads: int | None,
    most: int | None,
    ages: Sequence[int] | None,
    renewals: Sequence[str],
    record: bool,
    output: Path | None,
    skip_bad: bool,
    json_: bool,
    importing: Mapping[str, Any],
) -> None:
    """Measure the forecast error as a function of the age of the state, and print the result.

    With `record`, the result is also saved in the model file or bundle.
    """
    from contextlib import ExitStack

    from e3d_deploy import plots
    from e3d_deploy.data.datasets import GENERATED, decay_data, warn_of_data
    from e3d_deploy.data.form import Form
    from e3d_deploy.errors import ConfigError
    from e3d_deploy.evaluation.streaming import decay_ages, measure_decay, record_with_model
    from e3d_deploy.files import new_folder

    if output is not None:
        import matplotlib.figure  # noqa: F401 (fail before the measurement if it is missing)
    if record:
        check_record(model)
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        predictor = stack.enter_context(open_predictor(model, backend, threads, importing))
        context_length, horizon = context_length or predictor.context_length, horizon or predictor.horizon
        window = predictor.card.window
        if record and window is not None and context_length != window.context_length:
            raise ConfigError(
                f"{model}: --record: got --context {context_length}, expected {window.context_length} as in training; "
                "leave --context or --record out"
            )
        asked = decay_ages(context_length, ages)
        for text in renewals:
            predictor.renewal(text)  # refuses an invalid renewal before the measurement
        progress = stack.enter_context(working(f"measuring the decay of {model} on {data}"))
        windows, fitting = decay_data(
            data,
            asked,
            Form.of(predictor.config, predictor.card, layout),
            split=split,
            context_length=context_length,
            horizon=horizon,
            most=most or (32 if data == GENERATED else 100),
            skip_bad=skip_bad,
            selection=selection,
            progress=progress,
        )
        warn_of_data(windows, predictor.card.window, selection)
        decay = measure_decay(
            predictor.backend,
            windows,
            ages=fitting,
            context_length=context_length,
            horizon=horizon,
            data=data,
            progress=progress,
        )
        compared = _compared(predictor, windows, renewals, longest=fitting[-1], horizon=horizon, progress=progress)
        if record:
            record_with_model(model, predictor.identity, decay)
        about = {"model": str(model), "identity": predictor.identity, "backend": predictor.backend.name, "split": split}
        left_out = [age for age in asked if age not in fitting]
        report = {**about, **decay.report(), "ages_left_out": left_out, "recorded": record}
        report["renewals"] = None if compared is None else compared.report()
        if folder is not None:
            (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
            (folder / "decay.png").write_bytes(plots.decay(decay))
    if json_:
        as_json(report)
    else:
        show_decay(decay)
        if compared is not None:
            show_renewals(compared)
    if output is not None:
        click.echo(output, err=json_)
    if left_out:
        ages_text = ", ".join(map(str, left_out))
        click.echo(f"skipped: ages {ages_text}, because too few clips of {data} are long enough", err=True)
    click.echo(
        f"{decay.clips} windows from clips of {data} ({split}), {horizon} predicted frames, backend {about['backend']}"
        + (f"; recorded in {model}" if record else ""),
        err=True,
    )


def _compared(
    predictor: "Predictor",
    windows: "Windows",
    renewals: Sequence[str],
    *,
    longest: int,
    horizon: int,
    progress: Notify,
) -> "Comparison | None":
    """Compare renewals; if the clips are too short, print the reason and return None."""
    from e3d_deploy.errors import ClipError
    from e3d_deploy.evaluation.renewals import compare_renewals

    try:
        return compare_renewals(
            predictor, windows, renewals=renewals, longest=longest, horizon=horizon, progress=progress
        )
    except ClipError as error:
        click.echo(f"renewals were not compared: {error}", err=True)
        return None


def show_decay(decay: "Decay") -> None:
    """Print a table of the error at each age, then a sentence that says whether the error grows with the age."""
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
    table(
        [
            "age of the state (frames)",
            "MSE per frame",
            f"relative to age {C}",
            "MSE of frame 1",
            f"MSE of frame {len(copying)}",
        ],
        rows,
    )
    click.echo()
    click.echo(decay.verdict)


def show_renewals(compared: "Comparison") -> None:
    """Print the error and the cost of each renewal as a table."""
    from e3d_deploy.evaluation.renewals import REFERENCE
    from e3d_deploy.evaluation.report import number

    reference = next((one.mean for one in compared.renewals if one.renewal == REFERENCE), 0.0)

    def times(error: float) -> str:
        return f"{error / reference:.2f}" if reference else ""

    rows = [
        (
            one.renewal,
            f"{min(one.ages)} to {max(one.ages)}" if len(set(one.ages)) > 1 else str(one.ages[0]),
            number(one.mean),
            times(one.mean),
            number(one.worst),
            f"{one.steps_per_frame:.2f}",
            str(one.steps_per_forecast),
        )
        for one in compared.renewals
    ]
    rows.append(("copying the last frame", "", number(compared.copy_last), times(compared.copy_last), "", "", ""))
    first, last = compared.positions[0], compared.positions[-1]
    columns = ("age of the state", "MSE per frame", f"relative to {REFERENCE}", "worst MSE", "steps per frame")
    click.echo()
    click.echo(f"renewals, compared by forecasts that start after {first} to {last} frames of a stream:")
    table(["renewal", *columns, "steps per forecast"], rows)


def check_record(model: Path) -> None:
    """Check, before any work, that the decay can be saved in a model file or bundle.

    Raises:
        ConfigError: the path is a third-party checkpoint, or its folder is not writable.
    """
    import os

    from e3d_deploy.errors import ConfigError

    if model.suffix in (".ckpt", ".pth", ".pt") or index_of(model).exists():
        raise ConfigError(
            f"{model}: --record: a third-party checkpoint cannot store the result; run `e3d import` first"
        )
    folder = model if model.is_dir() else model.absolute().parent
    if model.exists() and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{model}: is not writable, so --record cannot store the result; leave --record out, or use a "
            "writable copy of the model"
        )
