"""Results of `benchmarks.peers` held against each other: the best of each precision, and tables of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.common import demo_model
from e3d_deploy.policies import BUDGETS

Row = Mapping[str, Any]
Result = Mapping[str, Any]

PRECISIONS = ("fp32", "bf16", "int8")
TITLES = {
    "amx": "AVX-512 and AMX",
    "avx512-bf16": "AVX-512 with bfloat16",
    "avx512": "AVX-512",
    "avx2": "AVX2",
}
"""Kinds of processor by their names in files, in words."""


def is_ours(row: Row) -> bool:
    return bool(row["side"].startswith("ours in "))


def best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return by precision our fastest row and how often as fast it is as the fastest peer.

    A precision in which nothing of ours was timed is absent, and a ratio is None if there is nothing to compare with.
    `over_peer_in_budget` leaves out peers that lose more than our budget of that precision allows. In int8,
    `over_our_bf16` compares with our fastest row in bf16.
    """
    found = {}
    for precision in PRECISIONS:
        here = [row for row in rows if row["precision"] == precision]
        ours = _fastest(row for row in here if is_ours(row))
        if ours is None:
            continue
        peer = _fastest(row for row in here if not is_ours(row))
        found[precision] = {
            "ours": ours["side"],
            "peer": peer["side"] if peer else None,
            "over_eager": ours["speedup_over_eager"],
            "over_peer": _over(ours, peer),
            "over_peer_in_budget": _over(ours, _fastest(row for row in here if not is_ours(row) and fits(row))),
        }
        if precision == "int8":
            bf16 = _fastest(row for row in rows if is_ours(row) and row["precision"] == "bf16")
            found[precision]["over_our_bf16"] = _over(ours, bf16)
    return found


def fits(row: Row) -> bool:
    """Return True if the SSIM and PSNR that a row loses are within our budget of its precision; fp32 always is."""
    limits = BUDGETS[row["precision"]]
    lost = {"dssim": limits.dssim, "dpsnr": limits.dpsnr}
    return all(limit is None or (row.get(name) is not None and row[name] <= limit) for name, limit in lost.items())


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: float(row["median_ms"]), default=None)


def _over(row: Row, other: Row | None) -> float | None:
    return round(row["speedup_over_eager"] / other["speedup_over_eager"], 3) if other else None


def table(runs: Mapping[str, Result]) -> list[str]:
    """Return runs side by side: the time of PyTorch eager, and how often as fast every other side is."""
    lines = [f"| | {' | '.join(runs)} |", f"|---|{'---|' * len(runs)}"]
    rows = {(row["side"], row["precision"]): row for run in runs.values() for row in run["rows"]}
    # A side that only some runs have stands with the others of its precision, peers first.
    order = sorted(rows, key=lambda key: (PRECISIONS.index(key[1]), is_ours(rows[key])))
    for side, precision in order:
        cells = [_cell(run["rows"], side, precision) for run in runs.values()]
        lines.append(f"| {side}, {precision} | {' | '.join(cells)} |")
    return lines


def _cell(rows: Sequence[Row], side: str, precision: str) -> str:
    row = next((one for one in rows if (one["side"], one["precision"]) == (side, precision)), None)
    if row is None:
        return "–"
    if row is rows[0]:
        return f"{row['median_ms']:.0f} ms"
    return f"{row['speedup_over_eager']:.2f}× ({row['max_abs_difference']:.0e})"


def kinds(results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """Return results by kind of processor, which ends their names; full size, the paper's, one thread first."""
    found: dict[str, list[Result]] = {}
    for name, result in results.items():
        found.setdefault(name.rpartition("_")[2], []).append(result)
    known = list(TITLES)[::-1]
    order = sorted(found, key=lambda kind: (known.index(kind) if kind in known else len(known), kind))
    return {
        kind: sorted(found[kind], key=lambda one: (one["size"] != "full", one["semantics"] != "paper", one["threads"]))
        for kind in order
    }


def title(result: Result) -> str:
    """Return the model and the threads of a run."""
    words = ["full size" if result["size"] == "full" else demo_model(result)]
    if result["semantics"] != "paper":
        words.append(f"`{result['semantics']}`")
    if result["threads"] != 1:
        words.append(f"{result['threads']} threads")
    # Results without the field are of a time in which only the demo model had trained weights.
    if result.get("weights", "random" if result["size"] == "full" else "trained") == "random":
        words.append("random weights")
    return ", ".join(words)


def machine(kind: str, result: Result) -> str:
    """Return the kind of a processor, its name and the date of a run on it."""
    where = result["environment"]
    return f"{TITLES.get(kind, kind)} ({where['cpu']}, {where['date'][:10]})"


def summary(runs: Mapping[str, Result]) -> list[str]:
    """Return the best peer and our best of each precision, a column for each run."""
    columns = {name: best(run["rows"]) for name, run in runs.items()}
    eager = " | ".join(f"{run['rows'][0]['median_ms']:.0f} ms" for run in runs.values())
    lines = [f"| | {' | '.join(runs)} |", f"|---|{'---|' * len(runs)}", f"| PyTorch eager, fp32 | {eager} |"]
    for precision in PRECISIONS:
        found = [column.get(precision) for column in columns.values()]
        if not any(found):
            continue
        ours = [f"{one['over_eager']:.2f}× ({one['ours'].removeprefix('ours in ')})" if one else "–" for one in found]
        peers = [f"{_times(one['over_peer'])}{_named(one['peer'])}" if one else "–" for one in found]
        lines += [
            f"| ours, {precision}, over eager | {' | '.join(ours)} |",
            f"| ours over the best peer, {precision} | {' | '.join(peers)} |",
        ]
        if precision == "int8":
            kept = [_times(one["over_peer_in_budget"]) if one else "–" for one in found]
            lines.append(f"| … that keeps our budget of int8 | {' | '.join(kept)} |")
    return lines


def _named(side: str | None) -> str:
    return f" ({side})" if side else ""


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def sentence(result: Result) -> str:
    """Return in words how our best of each precision compares with the best peer."""
    parts = []
    for precision, one in best(result["rows"]).items():
        ours = one["ours"].removeprefix("ours in ")
        text = f"{precision} {_times(one['over_peer'])} ({ours} over {one['peer'] or 'none'})"
        if one["over_peer_in_budget"] not in (None, one["over_peer"]):
            text += f", {_times(one['over_peer_in_budget'])} the best that keeps our budget"
        if one.get("over_our_bf16"):
            text += f", {_times(one['over_our_bf16'])} our bf16"
        parts.append(text)
    return "; ".join(parts) + "."


def quality(result: Result) -> list[str]:
    """Return what the sides of a run lose in reduced precision, as a table; nothing if none was reduced."""
    rows = [row for row in result["rows"] if row["precision"] != "fp32"]
    lines = ["| | max \\|Δ\\| | SSIM lost | PSNR lost, dB | keeps our budget |", "|---|---|---|---|---|"]
    for row in rows:
        lost = ("–" if row.get(name) is None else f"{row[name]:.4f}" for name in ("dssim", "dpsnr"))
        label = f"{row['side']}, {row['precision']}"
        lines.append(f"| {label} | {row['max_abs_difference']:.0e} | {' | '.join(lost)} | {_yes(fits(row))} |")
    return lines if rows else []


def _yes(true: bool) -> str:
    return "yes" if true else "no"
