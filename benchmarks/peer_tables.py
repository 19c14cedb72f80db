"""Comparison of the results of `benchmarks.peers`: the fastest sides of each precision, and tables in Markdown."""

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
"""Descriptions of the kinds of processor, by their names in files."""
WORDS = {
    "ours in ": "e3d_deploy with ",
    "naive in ": "naive export in ",
    ", hint": ", precision hint",
    ", left alone": ", default settings",
    ", its quantiser": ", static quantiser",
}
"""Parts of the names of sides in result files, with their words in tables."""


def is_ours(row: Row) -> bool:
    """Return True if a row measures e3d_deploy, and False if it measures an alternative."""
    return bool(row["side"].startswith("ours in "))


def label(side: str) -> str:
    """Return the name of a side as tables show it."""
    for name, words in WORDS.items():
        side = side.replace(name, words)
    return side


def best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return our fastest row of each precision and its speed-up over the fastest alternative.

    A precision in which nothing of ours was timed is absent, and a ratio is None if there is nothing to compare with.
    `over_peer_in_budget` ignores alternatives that lose more quality than our budget of the precision allows. In int8,
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
    """Return True if a row loses no more SSIM and PSNR than our budget of its precision allows, or is in fp32."""
    limits = BUDGETS[row["precision"]]
    lost = {"dssim": limits.dssim, "dpsnr": limits.dpsnr}
    return all(limit is None or (row.get(name) is not None and row[name] <= limit) for name, limit in lost.items())


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: float(row["median_ms"]), default=None)


def _over(row: Row, other: Row | None) -> float | None:
    return round(row["speedup_over_eager"] / other["speedup_over_eager"], 3) if other else None


def table(runs: Mapping[str, Result]) -> list[str]:
    """Return a table of runs, one per column: the time of PyTorch eager, and the speed-up of each other side."""
    lines = [f"| way to run a step | {' | '.join(runs)} |", f"|---|{'---|' * len(runs)}"]
    rows = {(row["side"], row["precision"]): row for run in runs.values() for row in run["rows"]}
    # Ordered by precision, alternatives first, because some runs lack some sides.
    order = sorted(rows, key=lambda key: (PRECISIONS.index(key[1]), is_ours(rows[key])))
    for side, precision in order:
        cells = [_cell(run["rows"], side, precision) for run in runs.values()]
        lines.append(f"| {label(side)}, {precision} | {' | '.join(cells)} |")
    return lines


def _cell(rows: Sequence[Row], side: str, precision: str) -> str:
    row = next((one for one in rows if (one["side"], one["precision"]) == (side, precision)), None)
    if row is None:
        return "–"
    if row is rows[0]:
        return f"{row['median_ms']:.0f} ms"
    return f"{row['speedup_over_eager']:.2f}× ({row['max_abs_difference']:.0e})"


def conditions(runs: Mapping[str, Result]) -> list[str]:
    """Return rows of a table of runs: the weights, the load of the machine, and the clock."""
    found = {
        "weights": [_weights(run) for run in runs.values()],
        "load of the machine": [f"{run['environment']['load_1_minute']:.1f}" for run in runs.values()],
        "clock": ["processor time" if run.get("clock") == "processor" else "elapsed time" for run in runs.values()],
    }
    return [f"| *{name}* | {' | '.join(cells)} |" for name, cells in found.items()]


def kinds(results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """Return results by kind of processor, which is the last part of their names.

    Runs at full size, with the paper's semantics and with one thread come first.
    """
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
    """Return a short description of the model, the number of threads and the weights of a run."""
    return short_title(result) + (", random weights" if _weights(result) == "random" else "")


def short_title(result: Result) -> str:
    """Return a short description of the model and the number of threads of a run."""
    words = ["full size" if result["size"] == "full" else demo_model(result)]
    if result["semantics"] != "paper":
        words.append(f"`{result['semantics']}`")
    if result["threads"] != 1:
        words.append(f"{result['threads']} threads")
    return ", ".join(words)


def _weights(result: Result) -> str:
    # Results without the field were made when only the demo model had trained weights.
    return str(result.get("weights", "random" if result["size"] == "full" else "trained"))


def machine(kind: str, result: Result) -> str:
    """Return the kind of a processor, its name, and the date of a run on it."""
    where = result["environment"]
    return f"{TITLES.get(kind, kind)} ({where['cpu']}, {where['date'][:10]})"


def summary(runs: Mapping[str, Result]) -> list[str]:
    """Return a table of runs, one per column: our speed-up over PyTorch eager and the fastest alternative."""
    columns = {name: best(run["rows"]) for name, run in runs.items()}
    eager = " | ".join(f"{run['rows'][0]['median_ms']:.0f} ms" for run in runs.values())
    lines = [
        f"| one step | {' | '.join(runs)} |",
        f"|---|{'---|' * len(runs)}",
        f"| PyTorch eager in fp32: time | {eager} |",
    ]
    for precision in PRECISIONS:
        found = [column.get(precision) for column in columns.values()]
        if not any(found):
            continue
        ours = [f"{one['over_eager']:.2f}× ({one['ours'].removeprefix('ours in ')})" if one else "–" for one in found]
        others = [f"{_times(one['over_peer'])}{_named(one['peer'])}" if one else "–" for one in found]
        lines += [
            f"| {precision}: speed-up over PyTorch eager in fp32 | {' | '.join(ours)} |",
            f"| {precision}: speed-up over the fastest alternative | {' | '.join(others)} |",
        ]
        if precision == "int8":
            cells = [_over_those_in_budget(one) if one else "–" for one in found]
            lines.append(f"| int8: speed-up over the fastest alternative within our budget | {' | '.join(cells)} |")
    return lines


def _over_those_in_budget(one: Mapping[str, Any]) -> str:
    if one["peer"] and one["over_peer_in_budget"] is None:
        return "no alternative is within it"
    return _times(one["over_peer_in_budget"])


def _named(side: str | None) -> str:
    return f" ({label(side)})" if side else ""


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def speedups(runs: Mapping[str, Result]) -> list[str]:
    """Return a table that compares our fastest side of each run and precision with the fastest alternative."""
    lines = ["| model | precision | e3d_deploy with | compared with | speed-up |", "|---|---|---|---|---|"]
    for name, run in runs.items():
        found = best(run["rows"])
        for precision, one in found.items():
            pairs = [(label(one["peer"] or "no alternative was timed"), one["over_peer"])]
            if one["over_peer_in_budget"] not in (None, one["over_peer"]):
                pairs.append(("fastest alternative within our budget", one["over_peer_in_budget"]))
            if one.get("over_our_bf16"):
                pairs.append((f"{label(found['bf16']['ours'])}, bf16", one["over_our_bf16"]))
            ours = one["ours"].removeprefix("ours in ")
            lines += [f"| {name} | {precision} | {ours} | {other} | {_times(ratio)} |" for other, ratio in pairs]
    return lines


def quality(result: Result) -> list[str]:
    """Return a table of the quality that each side of a run in a low type loses; empty if there is no such side."""
    rows = [row for row in result["rows"] if row["precision"] != "fp32"]
    lines = [
        "| way to run a step | max \\|Δ\\| | SSIM lost | PSNR lost (dB) | within our budget |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lost = ("–" if row.get(name) is None else f"{row[name]:.4f}" for name in ("dssim", "dpsnr"))
        name = f"{label(row['side'])}, {row['precision']}"
        lines.append(f"| {name} | {row['max_abs_difference']:.0e} | {' | '.join(lost)} | {_yes(fits(row))} |")
    return lines if rows else []


def _yes(true: bool) -> str:
    return "yes" if true else "no"
