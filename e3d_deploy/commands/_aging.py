"""Tables of `e3d evaluate --streaming`: the decay of a stream's state, and renewals."""

from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._output import table

if TYPE_CHECKING:
    from e3d_deploy.card import Decay
    from e3d_deploy.evaluation.renewals import Comparison
    from e3d_deploy.workflows.streaming import StreamingReport


def show_streaming(found: "StreamingReport") -> None:
    """Print the decay and the renewals as tables."""
    show_decay(found.decay)
    if found.renewals is not None:
        show_renewals(found.renewals)


def streaming_remarks(found: "StreamingReport", data: str) -> None:
    """Print what was left out of the measurement, and its conditions, on stderr."""
    if found.renewals_missing:
        click.echo(f"renewals were not compared: {found.renewals_missing}", err=True)
    if found.ages_left_out:
        ages = ", ".join(map(str, found.ages_left_out))
        click.echo(f"skipped: ages {ages}, because too few clips of {data} are long enough", err=True)
    click.echo(
        f"{found.decay.clips} windows from clips of {data} ({found.split}), {len(found.decay.copy_last)} predicted "
        f"frames, backend {found.backend}" + (f"; recorded in {found.model}" if found.recorded else ""),
        err=True,
    )


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
