"""Evaluation of a model on a data source, with report files."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.data.datasets import GENERATED, check_read, evaluation_data, warn_of_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.splits import Split, check_split
from e3d_deploy.errors import ConfigError
from e3d_deploy.evaluation import Evaluation
from e3d_deploy.evaluation import evaluate as measure
from e3d_deploy.evaluation.conventions import CONVENTIONS, Convention
from e3d_deploy.evaluation.report import write_report
from e3d_deploy.evaluation.samples import show_sample
from e3d_deploy.files import new_folder
from e3d_deploy.paths import check_path, check_source
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.arguments import check_counts
from e3d_deploy.workflows.opening import open_predictor
from e3d_deploy.workflows.places import check_apart


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Results of evaluating a model on a data source."""

    model: str
    """Path of the model."""
    identity: str
    """Hash that identifies the network."""
    data: str
    """Data source."""
    split: Split
    results: Evaluation
    """Measures of the forecasts and of the baselines."""

    @property
    def about(self) -> dict[str, str]:
        """Facts about the evaluation, for the report files."""
        return {"model": self.model, "identity": self.identity, "data": self.data, "split": self.split}

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**self.about, **self.results.to_dict()}


def evaluate(
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
    convention: Literal["both", "openstl", "original"] = "both",
    lpips_weights: str | Path | None = None,
    output: str | Path | None = None,
    samples: int = 4,
    skip_bad: bool = False,
    importing: Mapping[str, Any] | None = None,
    progress: Notify = silent,
) -> EvaluationReport:
    """Compare forecasts with the truth and with two baselines.

    Args:
        model: bundle, opened or as its path; model file or third-party checkpoint.
        data: `moving-mnist`, a file or a folder.
        split: split of the data, if it has splits.
        context_length, horizon: numbers of context frames and of predicted frames; None for the lengths of the model.
        every: use every n-th frame of the source.
        resample: resample the source to this rate (frames per second).
        layout: axes of arrays, such as `NTHW`; None to infer them from the shape.
        backend: name of a backend, or `auto`.
        threads: CPU threads of a step; None leaves the number to the library.
        most: maximum number of clips; None for all clips, or 100 of `moving-mnist`.
        convention: definition of the metrics: that of OpenSTL, that of google/e3d_lstm (`original`), or both.
        lpips_weights: file of LPIPS weights; None does not measure LPIPS.
        output: new folder for report, table, plots and samples.
        samples: number of clips to write to `output` as pictures.
        skip_bad: skip unreadable files with a warning.
        importing: options of `import_checkpoint` for a third-party checkpoint.
        progress: called with lines about the current clip.

    Raises:
        ClipError, ShapeError, SourceLost: the data cannot be read, or do not fit the model.
        ConfigError: an argument is invalid, or the output path is an input or exists.
        BundleError, CheckpointError, BackendUnavailable: the model cannot be opened; see `open_predictor`.
    """
    path, data = check_path("model", model), check_source("data", data)
    selection = Selection(every=every, resample=resample)
    check_split(split)
    check_counts(samples=samples, least=0)
    check_counts(context_length=context_length, horizon=horizon, most=most)
    output = check_inputs(path, data, output, lpips_weights, layout=layout, skip_bad=skip_bad)
    conventions = _conventions(convention, lpips_weights)
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        predictor = stack.enter_context(open_predictor(model, backend, threads=threads, importing=importing or {}))
        context_length, horizon = context_length or predictor.context_length, horizon or predictor.horizon
        clips = evaluation_data(
            data,
            Form.of(predictor.config, predictor.card, layout),
            split=split,
            length=context_length + horizon,
            most=most or (100 if data == GENERATED else None),
            skip_bad=skip_bad,
            selection=selection,
            progress=progress,
        )
        warn_of_data(clips, predictor.card.window, selection)

        def each(number: int, clip: Any, forecast: Any) -> None:
            progress(f"clip {number} of {len(clips)}")
            if folder is not None and number <= samples:
                show_sample(folder, str(number), clip, forecast, context_length)

        results = measure(
            predictor,
            (clips[index].numpy() for index in range(len(clips))),
            context_length=context_length,
            horizon=horizon,
            conventions=conventions,
            each=each,
        )
        found = EvaluationReport(model=str(path), identity=predictor.identity, data=data, split=split, results=results)
        if folder is not None:
            write_report(folder, results, found.about)
    return found


def check_inputs(
    model: Path,
    data: str,
    output: str | Path | None,
    *read: str | Path | None,
    layout: str | None,
    skip_bad: bool,
) -> Path | None:
    """Check the paths of an evaluation before the measurement, and return the output path.

    Raises:
        ConfigError: options for reading files are given, but no file is read; or the output path is an input.
        ModuleNotFoundError: plots are to be written, and matplotlib is missing.
    """
    check_read([data], layout=layout, skip_bad=skip_bad)
    if output is None:
        return None
    output = check_path("output", output)
    check_apart(output, data, model, *read, holds_clips=True)
    import matplotlib.figure  # noqa: F401 (fail before the measurement if it is missing)

    return output


def _conventions(name: str, lpips_weights: str | Path | None) -> list[Convention]:
    """Return the definitions of metrics with a name, and of LPIPS if its weights are given."""
    if name not in ("both", *CONVENTIONS):
        raise ConfigError(f"convention: got {name!r}, expected both, {' or '.join(CONVENTIONS)}")
    found = [one for known, one in CONVENTIONS.items() if name in ("both", known)]
    if lpips_weights is not None:
        from e3d_deploy.evaluation.lpips import lpips_convention

        found.append(lpips_convention(check_path("lpips_weights", lpips_weights)))
    return found
