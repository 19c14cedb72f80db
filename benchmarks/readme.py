"""Write the numbers in README.md and docs/ from benchmarks/results/ and the cards of the models that ship.

python -m benchmarks.readme
"""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import install, peer_tables
from benchmarks.common import RESULTS, demo_model
from e3d_deploy import checkpoint
from e3d_deploy.demo.exhibits import DIGITS, FILM, Exhibit
from e3d_deploy.libraries import GPU
from e3d_deploy.runtime.backends.specs import BACKENDS
from e3d_deploy.shipped import extracted

README = Path(__file__).parents[1] / "README.md"
COLUMNS = 120
"""Width of the prose in the docs."""


def result(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def measured() -> str:
    """Return the section of the README on quality, speed and memory, as Markdown."""
    return "\n".join([*_quality(), "", *peers(), "", *_whole_forecasts(), "", *_costs()])


def _quality() -> list[str]:
    """Return the quality of the models that ship, a table for each, as lines of Markdown."""
    lines = [
        "**Quality of the two models that ship**, on clips that training never saw. The tables show means over the "
        "predicted frames. MSE and MAE are summed over the pixels of a frame.",
    ]
    for exhibit in (DIGITS, FILM):
        card = json.loads(exhibit.card.read_text())["quality"]
        measures = card["measures"]
        lines += [
            "",
            f"{card['task']}; {card['sequences']:,} clips:",
            "",
            "| prediction | MSE | MAE | PSNR (dB) | SSIM |",
            "|---|---|---|---|---|",
        ]
        for prediction in measures["mse"]:
            cells = [f"{np.mean(measures[name][prediction]):.{places}f}" for name, places in
                     (("mse", 1), ("mae", 1), ("psnr", 2), ("ssim", 3))]  # fmt: skip
            lines.append(f"| {prediction} | {' | '.join(cells)} |")
    return lines


def _whole_forecasts() -> list[str]:
    """Return the time of a whole forecast and of its export, compared with a naive export, as lines of Markdown."""
    full, demo = result("clip_full_1"), result("clip_demo_1")
    linked = f"[{demo_model(demo)}](docs/model.md#the-models-that-ship)"
    where = full["environment"]
    lines = [
        "**One whole forecast**, 10 frames from a context of 10, by the clip graph in ONNX Runtime with one thread, on "
        f"AVX2 ({where['cpu']}, {where['date'][:10]}). Here the naive export is `torch.onnx.export` of the unrolled "
        "network. Each graph was exported once, so the export times depend on the load at that moment:",
        "",
        "| model | naive | e3d_deploy | speed-up (range) | max \\|Δ\\| | export, naive | export, e3d_deploy |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, clip in {"full size": full, linked: demo}.items():
        naive, ours = clip["sides"]["naive"], clip["sides"]["ours"]
        low, high = ours["range"]
        lines.append(
            f"| {name} | {naive['median_ms']:,.0f} ms | {ours['median_ms']:,.0f} ms "
            f"| {ours['speedup_over_naive']:.2f}× ({low:.2f}–{high:.2f}) | {clip['max_abs_difference']:.0e} "
            f"| {clip['made']['naive']['seconds']:.0f} s | {clip['made']['ours']['seconds']:.0f} s |"
        )
    return lines


def _costs() -> list[str]:
    """Return the cost of an export, of long streams and of starts, as lines of Markdown."""
    export, streaming, startup = result("export_full"), result("streaming"), result("startup")
    first = startup["first_frame_seconds"]
    return [
        "**Other costs:**",
        "",
        f"- The export of the full-size model (step, rollout and clip 10→10) takes {export['seconds']:.0f} s with "
        f"{export['environment']['threads']} threads, and at most {export['peak_resident_gb']:.1f} GB of memory.",
        f"- While a stream is pushed {streaming['frames']:,} frames (renewal `none`), the resident memory grows by "
        f"{max(streaming['growth_mb']):.1f} MB. After that, a push takes {streaming['late_over_early']:.2f} times as "
        "long as in a stream whose history has just filled, timed in turn.",
        "- From `import e3d_deploy.runtime` to the first forecast frame of the full-size model, with "
        f"{startup['environment']['threads']} threads: {first['onnxruntime']:.1f} s with "
        f'`backend="onnxruntime"`; {first["auto"]:.1f} s with `backend="auto"` when its choice is stored; '
        f"{startup['first_frame_seconds_when_auto_chooses']:.1f} s the first time, when `auto` compares the backends.",
        f"- `e3d --help` takes {startup['help_seconds']:.2f} s, and `import e3d_deploy.runtime` takes "
        f"{startup['import_runtime_seconds']:.2f} s.",
    ]


def results(pattern: str) -> dict[str, Any]:
    """Return the results whose names match, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{pattern}.json"))}


def peers() -> list[str]:
    """Return our best step compared with the fastest alternative, a column for each processor, as Markdown lines."""
    runs = {
        peer_tables.machine(kind, found[0]): found[0]
        for kind, found in peer_tables.kinds(results("peers_full_1_*")).items()
    }
    return [
        "**One step at full size** with a full history and one thread. All sides are timed in turn in one process. The "
        "table shows the fastest backend of e3d_deploy, and in brackets the name of that backend or of the fastest "
        "alternative in the same precision. Alternatives are PyTorch eager, torch.compile, and the naive export: "
        "`torch.onnx.export` of the same step, run in ONNX Runtime or OpenVINO. In bf16 they use autocast or "
        "OpenVINO's precision hint; in int8, NNCF or ONNX Runtime's quantiser. A dash means: not measured. "
        "[All measurements](docs/benchmark.md#beside-other-ways-to-run-a-step).",
        "",
        *peer_tables.summary(runs),
        *peer_tables.conditions(runs),
    ]


def all_peers() -> str:
    """Return the times of all alternatives and of e3d_deploy, tables for each kind of processor, as Markdown."""
    lines = []
    for kind, found in peer_tables.kinds(results("peers_*")).items():
        runs = {peer_tables.short_title(run): run for run in found}
        lines += [
            f"### {peer_tables.machine(kind, found[0])}",
            "",
            *peer_tables.table(runs),
            *peer_tables.conditions(runs),
            "",
            "The fastest backend of e3d_deploy in each precision, compared with the fastest alternative:",
            "",
            *peer_tables.speedups(runs),
            "",
        ]
        if quality := peer_tables.quality(found[0]):
            lines += [f"Loss of quality in low types, {next(iter(runs))}:", ""]
            lines += [*quality, ""]
    return "\n".join(lines).rstrip()


def batched() -> str:
    """Return the time of eight streams stepped one by one and in one batch, by kind of processor, as Markdown."""
    lines = []
    for kind, found in peer_tables.kinds(results("batched_full_8_1_*")).items():
        lines += [
            f"{peer_tables.machine(kind, found[0])}:",
            "",
            "| backend | precision | 8 steps of 1 stream | 1 step of 8 streams | speed-up (range) |",
            "|---|---|---|---|---|",
        ]
        for row in found[0]["rows"]:
            low, high = row["range"]
            cells = (
                row["backend"],
                row["precision"],
                f"{row['one_by_one_ms']:.0f} ms",
                f"{row['batched_ms']:.0f} ms",
                f"{row['gain']:.2f}× ({low:.2f}–{high:.2f})",
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def recipes() -> str:
    """Return the comparison of the recipes as Markdown."""
    found = result("recipes")
    model = found["model"]
    lines = [
        "The recipes were compared on one network "
        f"({len(model['hidden'])}×{model['hidden'][0]}, patch {model['patch_size']}) with the same initial weights "
        f"and clips: {found['steps']:,} steps of 4 clips, with scheduled sampling in the first half of the steps. The "
        f"errors are means over the predicted frames of {found['clips']} test clips "
        f"({found['environment']['cpu']}, {found['environment']['date'][:10]}). The last column is the MSE of the "
        "weights that are not in the model file: the plain weights for `modern`, the moving average for the others.",
        "",
        "| recipe | MSE | MAE | PSNR (dB) | SSIM | MSE of the other weights |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["runs"].items():
        lines.append(
            f"| {COMPARED.get(name, f'`{name}`')} | {row['mse']:.1f} | {row['mae']:.1f} | {row['psnr']:.2f} "
            f"| {row['ssim']:.3f} | {row['mse of the other weights']:.1f} |"
        )
    return "\n".join(lines)


COMPARED = {"modern, squared errors alone": "`modern` with `--l1-weight 0`"}
"""Labels of runs in the comparison of recipes that are not named after their recipe."""
FINE_TUNED = {
    "none": "after, no burn-in",
    "tenth": "after, burn-in in the last tenth",
    "all": "after, burn-in in all steps",
}
"""Labels of the runs that `benchmarks.burn_in` measures."""


def burn_in() -> str:
    """Return the error by the age of the state, after training with and without a burn-in, as Markdown."""
    found = result("burn_in")
    limit_s = found["training"]["all"]["time_limit_s"]
    lines = [
        "The [2×40 model](glossary.md#measuring) of commit faccf7a was fine-tuned in three simultaneous runs of "
        f"{limit_s / 60:.0f} minutes on a machine that was busy with other work. The tables show the squared error "
        "per frame of the next 10 frames. The age of the state is in frames; the same frames are forecast at all ages "
        f"({found['environment']['cpu']}, {found['environment']['date'][:10]}).",
    ]
    for kind, title in {"digits": "Generated digits, test split", "film": "Pedestrians, test clip"}.items():
        ages = list(found["mse"]["start"][kind])
        lines += [
            "",
            f"{title}, {found['windows'][kind]} windows. Copying the last frame has an error of "
            f"{found['copying'][kind]:.1f}.",
            "",
            f"| fine-tuning | steps | {' | '.join(f'age {age}' for age in ages)} |",
            f"|---|---|{'---|' * len(ages)}",
        ]
        for name, row in found["mse"].items():
            steps = found["training"][name]["steps_done"] if name in found["training"] else "–"
            values = " | ".join(f"{row[kind][age]:.1f}" for age in ages)
            lines.append(f"| {FINE_TUNED.get(name, 'before')} | {steps} | {values} |")
    return "\n".join(lines)


def decay() -> str:
    """Return the error by the age of the state, before and after a burn-in and of the shipped models, as Markdown."""
    found = result("decay")
    lines = [
        "Squared error of the next 10 frames, summed over the pixels of a frame, mean over frames and windows "
        f"({found['environment']['cpu']}, {found['environment']['date'][:10]}). The ages are in frames; all ages of a "
        "column forecast the same frames.",
    ]
    for kind, title in {"digits": "generated digits", "film": "film of pedestrians"}.items():
        ages = list(found[f"after-{kind}"]["ages"])
        columns = {}
        for when in ("before", "after"):
            report = found[f"{when}-{kind}"]
            errors = [*(report["ages"][age]["mse"] for age in ages), report["copy_last"]["mse"]]
            columns[f"{when}, {report['windows']} windows"] = [f"{error:.1f}" for error in errors]
        columns |= _recorded({"digits": DIGITS, "film": FILM}[kind], list(map(int, ages)))
        lines += ["", f"| age, {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for age, *errors in zip([*ages, "copy last"], *columns.values(), strict=True):
            lines.append(f"| {age} | {' | '.join(errors)} |")
    long = found["after-long"]
    lines += [
        "",
        f"After a burn-in the error at age 1,000 is {long['ages']['1000']['ratio']:.2f} times the error at age 10 "
        f"({long['windows']} windows of digits).",
    ]
    return "\n".join(lines)


def _recorded(exhibit: Exhibit, ages: Sequence[int]) -> dict[str, list[str]]:
    """Return the column of a model that ships, from its file: title, errors by age, and error of copy last."""
    with extracted(exhibit.model) as path:
        decay, (height, width) = checkpoint.read_card(path).decay, checkpoint.load(path).config.image_size
    assert decay is not None
    errors = [f"{decay.mean(age):.1f}" if age in decay.mse else "–" for age in ages]
    title = f"model that ships, {height}×{width}, {decay.clips} windows"
    return {title: [*errors, f"{np.mean(decay.copy_last):.1f}"]}


def renewals() -> str:
    """Return the error of each renewal over one cycle as Markdown."""
    found = result("decay")
    lines = [
        "MSE per frame, mean over one cycle of `refresh:2`. The number in parentheses is the MSE at the worst "
        "age of the cycle:",
        "",
        "| video and weights | frames seen | `none` | `refresh:2` | `replay` | copy last |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("digits", "film"):
        for when in ("before", "after"):
            report = found[f"{when}-{kind}"]["renewals"]
            cells = [
                f"{one['mse']:.1f} ({one['worst_mse']:.1f})" if (one := report["by_renewal"].get(name)) else "–"
                for name in ("none", "refresh:2", "replay")
            ]
            first, last = report["frames_seen"]
            lines.append(
                f"| {kind}, {when} a burn-in | {first} to {last} | {' | '.join(cells)} | "
                f"{report['copy_last']['mse']:.1f} |"
            )
    return "\n".join(lines)


def renewal_costs() -> str:
    """Return the cost of renewals as Markdown, with a column for each backend, model and kind of graph."""
    files = sorted(RESULTS.glob("renewal_*.json"))
    first = json.loads(files[0].read_text())["environment"]
    lines = [
        "Ratios of processor time for C = 10 over whole cycles, including the restarts of states; one thread, measured "
        f"in turn ({first['cpu']}, AVX2, {first['date'][:10]}). The 8 streams began at different frames:",
        "",
    ]
    columns = {}
    for file in files:
        _, size, backend = file.stem.split("_", 2)
        found = json.loads(file.read_text())
        model = demo_model(found) if size == "demo" else "full size"
        for kind, graphs in {"batch 1": "graphs for one stream", "batch any": "graphs for any number"}.items():
            row, two = found[kind], found[kind]["step of two over step of one"]
            one, many = row["one stream"], row["8 streams"]["refresh:2"]
            columns[f"{backend}, {model}, {graphs}"] = [
                f"{one['refresh:2']['times_none']:.2f}",
                "–" if two is None else f"{two:.2f}",
                f"{many['throughput_of_none']:.2f}",
                f"{many['rows_gathered_per_frame']:.2f}",
                f"{one['replay']['times_none']:.3f}",
            ]
    lines += [f"| ratio | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title, *cells in zip(COSTS_OF_RENEWALS, *columns.values(), strict=True):
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


COSTS_OF_RENEWALS = (
    "time of a push: `refresh:2` / `none`",
    "time of a step: two states / one state",
    "frames/s of 8 streams: `refresh:2` / `none`",
    "rows copied per frame and stream, 8 streams",
    "time of a push: `replay` / `none`",
)
"""Rows of the table that `renewal_costs` writes."""


def memory() -> str:
    """Return the memory of a training step, and its time compared with a plain loop, as Markdown."""
    found = result("training")
    lines = [
        "| frames in the clip | memory | memory with `--recompute` | ratio | time | time with `--recompute` |",
        "|---|---|---|---|---|---|",
    ]
    for length, rows in found["memory"].items():
        plain, again = rows["plain"], rows["recompute"]
        lines.append(
            f"| {length} | {plain['gb']:.2f} GB | {again['gb']:.2f} GB | {rows['ratio']:.2f} "
            f"| {plain['seconds']:.0f} s | {again['seconds']:.0f} s |"
        )
    one = found["overhead"]
    lines += [
        "",
        f"A step of `e3d train` at full size with batch size {one['batch_size']} takes {one['ratio']:.2f} times the "
        f"processor time of a plain loop on the same network ({one['steps']} steps of both, measured in turn; median "
        f"of the ratios; {one['step_s']:.1f} s, and {one['plain_step_s']:.1f} s for the loop). "
        f"{100 * one['share_waiting_for_data']:.2f} % of the step is spent waiting for data "
        f"({found['environment']['cpu']}, one thread, {found['environment']['date'][:10]}).",
    ]
    return "\n".join(lines)


def precision() -> str:
    """Return the loss, size and speed of each precision, as Markdown."""
    found, full, other = result("precision"), result("precision_full"), result("precision_google")
    machine, clips = found["environment"], found["clips"]["measured"]
    lines = [
        f"Loss of the {demo_model(found)} in rollouts of 10 frames from a context of 10, emulated. Each value is that "
        f"of the worst of {clips['clips']} clips of {clips['frames'] // clips['clips']} frames ({clips['source']}). "
        "The size is that of the step graph with its weights.",
        "",
        *_drifts(found),
    ]
    whole = found["policies"]["fp8"]["drift_without_exclusion"]
    native = found["as it runs here"]
    eight, emulated = (native["onnxruntime"][f"int8, weights of 8 bits{end}"] for end in ("", ", emulated"))
    lines += [
        "",
        f"- With every layer in fp8, the loss of SSIM is {whole['dssim']:.3f}.",
        "- The processor of this measurement has AVX2 but no VNNI. On this processor ONNX Runtime in int8 loses "
        f"{native['onnxruntime']['int8']['dssim']:.4f} in SSIM with 7-bit weights, and {eight['dssim']:.4f} with 8-bit "
        f"weights. With 8-bit weights, rounding causes a loss of {emulated['dssim']:.4f}; overflow causes the rest.",
        f"- OpenVINO {found['openvino']} loses {native['openvino']['int8']['dssim']:.4f} in SSIM in int8. Its "
        f"predictions differ from PyTorch's by at most {native['openvino']['bf16']['difference']:.0e} in bf16 and "
        f"{native['openvino']['fp16']['difference']:.0e} in fp16.",
        "",
        "The next table is for a network of two layers of 24 channels with the semantics `google`, whose memory stays "
        "zero. The network was trained for only 60 steps, so its forecasts are blurred, and SSIM shows little of the "
        "loss:",
        "",
        *_drifts(other),
        "",
        f"`--precision auto` uses the first policy that stays within its budget: {_first(found)} for the "
        f"{demo_model(found)}, {_first(other)} for the network of 24 channels.",
        "",
        "Time of a step with one thread. All rows were timed in turn "
        f"({machine['cpu']}, AVX2, {machine['date'][:10]}). The factor is the speed relative to float32 in the same "
        "library, as median and range of the repetitions:",
        "",
        f"| library | precision | {demo_model(found)} | full size (4 layers of 64 channels, patch side 4) |",
        "|---|---|---|---|",
    ]
    for library, sides in found["step_ms"].items():
        for policy, side in sides.items():
            lines.append(f"| {library} | {policy} | {_time(side)} | {_time(full['step_ms'][library][policy])} |")
    return "\n".join(lines)


def _drifts(found: dict[str, Any]) -> list[str]:
    """Return the table of the drift of each policy."""
    lines = [
        "| precision | size | largest difference | loss of SSIM | loss of PSNR, dB | layers kept in float32 |",
        "|---|---|---|---|---|---|",
    ]
    for policy, row in found["policies"].items():
        drift = row["drift"]
        lines.append(
            f"| {policy} | {row['bytes'] / 1e6:.1f} MB | {drift['difference']:.0e} | {drift['dssim']:.1e} "
            f"| {drift['dpsnr']:.4f} | {', '.join(row['exclude']) or '–'} |"
        )
    return lines


def _first(found: dict[str, Any]) -> str:
    return next(policy for policy, row in found["policies"].items() if row["fits"])


def rewrites() -> str:
    """Return the gain of each variant as Markdown, with a table for each kind of processor and model."""
    lines = [
        "The tables are for one step with a full ring and one thread. All variants were timed in turn in one process. "
        "The row `plain` shows the time of the step. The remaining rows show the speed relative to `plain` in the same "
        "library, as median and range of the repetitions; above 1× the variant is faster.",
        "",
        "- *openvino bf16* is OpenVINO with the precision hint bfloat16 and the settings of the backend `openvino`. In "
        "*one kernel*, attention is a single kernel instead.",
        "- *RTX plan* is the size of the TensorRT-RTX plan, and *RTX build* is the time of its build. No plan was run.",
        "- `unfolded` is `plain` with one more convolution: that of a memory that stays zero, which all variants omit.",
    ]
    for kind, found in peer_tables.kinds(results("rewrites_*")).items():
        for run in found:
            model = peer_tables.title(run)
            lines += ["", f"**{model[0].upper()}{model[1:]}**, {peer_tables.machine(kind, run)}:", "", *_gains(run)]
    return "\n".join(lines)


def _gains(run: dict[str, Any]) -> list[str]:
    """Return the table of one run of `benchmarks.rewrites`."""
    libraries, plans = list(run["sides"]), run.get("plans")
    lines = [
        f"| variant | {' | '.join(libraries)} | nodes |{'' if plans is None else ' RTX plan | RTX build |'}",
        f"|---|{'---|' * (len(libraries) + (1 if plans is None else 3))}",
    ]
    for variant, graph in run["graphs"].items():
        cells = [_gain(run["sides"][library].get(variant)) for library in libraries]
        cells.append(f"{graph['nodes']:,}")
        if plans is not None:
            plan = plans.get(variant)
            cells.append(f"{plan['plan_bytes'] / 1e6:.1f} MB" if plan else "–")
            cells.append(f"{np.median(plan['seconds']):.0f} s" if plan else "–")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def _gain(side: dict[str, Any] | None) -> str:
    """Return the time of `plain`, or the speed of another variant relative to it."""
    if side is None:
        return "–"
    if "range" not in side:
        return f"{side['median_ms']:.1f} ms"
    low, high = side["range"]
    return f"{side['speedup_over_plain']:.2f}× ({low:.2f}–{high:.2f})"


BUILDS = {
    "naive": "torch.onnx.export of the unrolled network",
    "ours, for gpu, forecast alone": "variant `tensorrt`, without state outputs",
    "ours, for gpu": "variant `tensorrt`",
    "ours": "2D convolutions and split norms, as in `plain`",
}
"""Names of the clip graphs that `benchmarks.clip --builds` builds."""


def engines() -> str:
    """Return the time and size of builds with TensorRT-RTX, as Markdown."""
    found, clip = result("engines"), result("clip_builds_full")
    one, there = found["environment"], clip["environment"]
    precisions = list(dict.fromkeys(plan["precision"] for plan in found["plans"]))
    rows: dict[str, dict[str, str]] = {}
    for plan in found["plans"]:
        model = demo_model(found) if plan["model"] == "demo" else plan["model"]
        cells = rows.setdefault(f"{model}, {plan['graph']}", {})
        cells[plan["precision"]] = f"{plan['build_seconds']:.0f} s, {plan['plan_bytes'] / 1e6:.1f} MB"
    lines = [
        f"Build time and size of portable plans, for the {demo_model(found)} with 10 frames of context and 10 of "
        "forecast, and for the step at full size (4 layers of 64 channels, patch side 4). They were measured with "
        f"TensorRT-RTX {found['builder']} on {one['cpu']}, {one['cores']} cores, without a GPU, on {one['date'][:10]}:",
        "",
        f"| model and graph | {' | '.join(precisions)} |",
        "|---" * (len(precisions) + 1) + "|",
        *(
            f"| {name} | {' | '.join(cells.get(precision, '–') for precision in precisions)} |"
            for name, cells in rows.items()
        ),
        "",
        "The next table is for clip graphs at full size, with 10 frames of context and 10 of forecast, which were "
        f"built in turn on {there['date'][:10]}. At the end of the measurement the load average was "
        f"{there['load_1_minute']:.1f} on {there['cores']} cores, so the times are rough:",
        "",
        "| clip graph | nodes | number of builds | time of each build | size of the plan |",
        "|---|---|---|---|---|",
    ]
    for name, build in clip["builds"].items():
        seconds = ", ".join(f"{value:.0f} s" for value in build["seconds"])
        lines.append(
            f"| {BUILDS[name]} | {clip['made'][name]['nodes']:,} | {clip['rounds'][name]} | {seconds} "
            f"| {build['plan_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(lines)


def _time(side: dict[str, Any]) -> str:
    text = f"{side['median_ms']:.1f} ms"
    if "range" in side:
        text += f", {side['speedup_over_fp32']:.2f}× ({side['range'][0]:.2f}–{side['range'][1]:.2f})"
    return text


def backends_table() -> str:
    """Return the two tables of all backends as Markdown, from their entries."""
    lines = ["| backend | device class | runs | ran on hardware |", "|---|---|---|---|"]
    lines += [f"| `{spec.name}` | {spec.device} | {spec.summary} | {spec.tested_on} |" for spec in BACKENDS.values()]
    lines += [
        "",
        f"Backends of the device class gpu need {GPU}. Each backend runs bundles of these precisions:",
        "",
        "| backend | precisions | install |",
        "|---|---|---|",
    ]
    for spec in BACKENDS.values():
        more = spec.hardware.removesuffix(GPU).removesuffix(", ")
        install = f"`{spec.install}`" + (f"; {more}" if more else "")
        lines.append(f"| `{spec.name}` | {', '.join(spec.ordered_policies)} | {install} |")
    return "\n".join(lines)


def throughput() -> str:
    """Return the rates of a Triton server and of the runtime in the program, by model, as Markdown."""
    runs = {"full size": result("triton_full_onnxruntime_8_1"), "demo": result("triton_demo_onnxruntime_8_1")}
    where = runs["full size"]["environment"]
    lines = [
        "| model | renewal | in a program | with Triton | share of the rate (range) | by elapsed time (range) |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        elapsed, processor = run["sides"], run["processor"]["sides"]
        length, streams = map(int, re.findall("[0-9]+", run["what"])[:2])
        times = [f"{processor[side]['median_ms'] / length / streams:.1f} ms" for side in ("in_process", "triton")]
        shares = [_share(sides["triton"]) for sides in (processor, elapsed)]
        lines.append(f"| {' | '.join([name, run['renewal'], *times, *shares])} |")
    loads = " and ".join(f"{run['load_1_minute']:.1f}" for run in runs.values())
    return "\n".join(
        [
            *lines,
            "",
            f"Measured on {where['cpu']} with {where['cores']} cores on {where['date'][:10]}, with ONNX Runtime and "
            f"{where['threads']} thread (load average {loads}). The range is that of the rounds.",
        ]
    )


def _share(side: dict[str, Any]) -> str:
    low, high = side["range"]
    return f"{side['speedup_over_in_process']:.2f} ({low:.2f}–{high:.2f})"


PLACES = {
    README: {"measured": measured},
    README.parent / "docs" / "training.md": {"recipes": recipes, "burn_in": burn_in, "memory": memory},
    README.parent / "docs" / "precision.md": {"precision": precision},
    README.parent / "docs" / "graphs.md": {"rewrites": rewrites},
    README.parent / "docs" / "benchmark.md": {"peers": all_peers, "batched": batched},
    README.parent / "docs" / "engines.md": {"builds": engines},
    README.parent / "docs" / "install.md": {"sizes": install.table},
    README.parent / "docs" / "runtime.md": {"backends": backends_table},
    README.parent / "docs" / "triton.md": {"throughput": throughput},
    README.parent / "docs" / "streams.md": {"decay": decay, "renewals": renewals, "renewal_costs": renewal_costs},
}
"""Generated sections of each file, with the functions that write them; two comments with its name enclose a section."""


def section(name: str, text: str) -> str:
    """Return a generated section between its two comments, with prose wrapped."""
    lines = "\n".join(line if line.startswith("|") else _wrapped(line) for line in text.splitlines())
    return f"<!-- {name}: written by python -m benchmarks.readme -->\n{lines}\n<!-- /{name} -->"


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    for file, sections in PLACES.items():
        text = file.read_text()
        for name, write in sections.items():
            pattern = re.compile(f"<!-- {name}: .*<!-- /{name} -->", re.DOTALL)
            text = pattern.sub(lambda _, name=name, write=write: section(name, write()), text)  # type: ignore[misc]
        file.write_text(text)


if __name__ == "__main__":
    main()
