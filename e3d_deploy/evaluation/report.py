"""Report files of an evaluation: report.json, table.md, and plots of the error over the horizon."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e3d_deploy import plots
from e3d_deploy.evaluation.conventions import Convention
from e3d_deploy.evaluation.measuring import Evaluation


def write_report(folder: Path, found: Evaluation, about: Mapping[str, Any]) -> None:
    """Write report.json, table.md and one error_NAME.png per convention into an existing folder.

    Args:
        about: facts about the evaluation, such as the model and the data; written at the top of the JSON and the table.
    """
    (folder / "report.json").write_text(json.dumps({**about, **found.to_dict()}, indent=2, allow_nan=False) + "\n")
    # File names need not be valid UTF-8, and the encoding of the locale may lack characters of the text.
    (folder / "table.md").write_text(_markdown(found, about), encoding="utf-8", errors="surrogateescape")
    for convention in found.conventions:
        lines = {
            measure: {who: found.frames[convention.name, measure, who] for who in found.forecasters}
            for measure in convention.measures
        }
        (folder / f"error_{convention.name}.png").write_bytes(plots.horizons(lines))


def number(value: float) -> str:
    """Format a measure for reading: two decimals from 10 on, otherwise four."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _markdown(found: Evaluation, about: Mapping[str, Any]) -> str:
    facts = {**about, **{name: value for name, value in found.to_dict().items() if name != "conventions"}}
    parts = ["# Evaluation", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for convention in found.conventions:
        parts += [f"## {convention.name}", convention.meaning, _table(found, convention)]
        parts.append("\n".join(f"- `{name}`: {measure.meaning}." for name, measure in convention.measures.items()))
    return "\n\n".join(parts) + "\n"


def _table(found: Evaluation, convention: Convention) -> str:
    columns = ["", *convention.measures]
    lines = [columns, ["---", *("---:" for _ in convention.measures)]]
    lines += [[label, *map(number, values)] for label, values in found.rows(convention)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
