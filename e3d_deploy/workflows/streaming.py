"""Measurement of the forecast error as a function of the age of a stream's state."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e3d_deploy import plots
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.card import Decay
from e3d_deploy.data.datasets import GENERATED, decay_data, warn_of_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.splits import Split, check_split
from e3d_deploy.errors import ClipError, ConfigError
from e3d_deploy.evaluation.renewals import Comparison, compare_renewals
from e3d_deploy.evaluation.streaming import decay_ages, measure_decay, record_with_model
from e3d_deploy.files import new_folder
from e3d_deploy.paths import check_path, check_source
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.arguments import check_count, check_counts, check_list
from e3d_deploy.workflows.evaluate import check_inputs
from e3d_deploy.workflows.opening import THIRD_PARTY, index_of, open_predictor

RENEWALS = ("none", "refresh:2", "replay")
"""Renewals that are compared by default."""


@dataclass(frozen=True, kw_only=True)
class StreamingReport:
    """Decay of a model, and the errors of several renewals of its state."""

    model: str
    """Path of the model."""
    identity: str
    """Hash that identifies the network."""
    backend: str
    split: Split
    decay: Decay
    """Forecast error for each age of the state."""
    ages_left_out: tuple[int, ...]
    """Ages that were asked for, but need longer clips than the source has."""
    recorded: bool
    """True if the decay was saved in the model file or bundle."""
    renewals: Comparison | None
    """Errors of the renewals; None if they were not compared."""
    renewals_missing: str | None
    """Reason why the renewals were not compared; None if they were."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        about = {"model": self.model, "identity": self.identity, "backend": self.backend, "split": self.split}
        renewals = None if self.renewals is None else self.renewals.report()
        left_out = list(self.ages_left_out)
        return {**about, **self.decay.report(), "ages_left_out": left_out, "recorded": self.recorded,
                "renewals": renewals}  # fmt: skip


def evaluate_streaming(
    model: Bundle | str | Path,
    data: str | Path = GENERATED,
    *,
    split: Split = "test",
    context_length: int | None = None,
    horizon: int | None = None,
    every: int | None = None,
    resample: float | None = None,
    layout: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    most: int | None = None,
    ages: Sequence[int] | None = None,
    renewals: Sequence[str] = RENEWALS,
    record: bool = False,
    output: str | Path | None = None,
    skip_bad: bool = False,
    importing: Mapping[str, Any] | None = None,
    progress: Notify = silent,
) -> StreamingReport:
    """Measure the forecast error as a function of the age of a stream's state.

    Args:
        most: maximum number of windows; None for 100, or 32 of `moving-mnist`.
        ages: ages of the state to measure (frames); None for 12 ages from 1 to 150, and 1 and 6 times the context.
        renewals: renewals of old states to compare, as in `Predictor.stream`.
        record: save the measured decay in the model file or bundle.
        output: new folder for the report and a plot.

    The other arguments are those of `evaluate`.

    Raises:
        ConfigError: an argument is invalid; the output path is an input or exists; or with `record`, the model cannot
            be written, is a third-party checkpoint, or was trained with another context.
        ClipError, ShapeError, SourceLost: the data cannot be read, or do not fit the model.
        BundleError, CheckpointError, BackendUnavailable: the model cannot be opened; see `open_predictor`.
    """
    path, data = check_path("model", model), check_source("data", data)
    selection = Selection(every=every, resample=resample)
    check_split(split)
    check_list("renewals", renewals)
    if ages is not None:
        check_list("ages", ages)
        for age in ages:
            check_count("ages", age)
    check_counts(context_length=context_length, horizon=horizon, most=most)
    output = check_inputs(path, data, output, layout=layout, skip_bad=skip_bad)
    if record:
        check_record(path)
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        predictor = stack.enter_context(open_predictor(model, backend, threads=threads, importing=importing or {}))
        context_length, horizon = context_length or predictor.context_length, horizon or predictor.horizon
        window = predictor.card.window
        if record and window is not None and context_length != window.context_length:
            raise ConfigError(
                f"{path}: --record: got --context {context_length}, expected {window.context_length} as in training; "
                "leave --context or --record out"
            )
        asked = decay_ages(context_length, ages)
        for text in renewals:
            predictor.renewal(text)  # refuses an invalid renewal before the measurement
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
        warn_of_data(windows, window, selection)
        lengths = {"context_length": context_length, "horizon": horizon}
        decay = measure_decay(predictor.backend, windows, ages=fitting, data=data, progress=progress, **lengths)
        compared, missing = None, None
        try:
            compared = compare_renewals(
                predictor, windows, renewals=renewals, longest=fitting[-1], horizon=horizon, progress=progress
            )
        except ClipError as error:  # the clips are too short
            missing = str(error)
        if record:
            record_with_model(path, predictor.identity, decay)
        found = StreamingReport(
            model=str(path),
            identity=predictor.identity,
            backend=predictor.backend.name,
            split=split,
            decay=decay,
            ages_left_out=tuple(age for age in asked if age not in fitting),
            recorded=record,
            renewals=compared,
            renewals_missing=missing,
        )
        if folder is not None:
            (folder / "report.json").write_text(json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
            (folder / "decay.png").write_bytes(plots.decay(decay))
    return found


def check_record(model: Path) -> None:
    """Check, before any work, that the decay can be saved in a model file or bundle.

    Raises:
        ConfigError: the path is a third-party checkpoint, or its folder is not writable.
    """
    if model.suffix in THIRD_PARTY or index_of(model).exists():
        raise ConfigError(
            f"{model}: --record: a third-party checkpoint cannot store the result; run `e3d import` first"
        )
    folder = model if model.is_dir() else model.absolute().parent
    if model.exists() and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{model}: is not writable, so --record cannot store the result; leave --record out, or use a "
            "writable copy of the model"
        )
