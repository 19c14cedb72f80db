"""Write the numbers in README.md and docs/ from benchmarks/results/ and the demo model's card.

python -m benchmarks.readme
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS
from e3d_deploy.demo.tour import CARD

README = Path(__file__).parents[1] / "README.md"


def result(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def measured() -> str:
    """The section as Markdown."""
    card = json.loads(CARD.read_text())["quality"]
    lines = [
        f"The demo model on {card['sequences']:,} generated clips ({card['task']}), digits that training never saw; "
        "mean over the predicted frames, MSE and MAE summed over the pixels of a frame:",
        "",
        "| | MSE | MAE | PSNR, dB | SSIM |",
        "|---|---|---|---|---|",
    ]
    measures = card["measures"]
    for who in measures["mse"]:
        cells = [f"{np.mean(measures[name][who]):.{digits}f}" for name, digits in
                 (("mse", 1), ("mae", 1), ("psnr", 2), ("ssim", 3))]  # fmt: skip
        lines.append(f"| {who} | {' | '.join(cells)} |")
    steps = {"full size (4×64, patch 4)": result("step_full_1"), "demo model": result("step_demo_1")}
    export, streaming, startup = result("export_full"), result("streaming"), result("startup")
    machine = export["environment"]
    lines += [
        "",
        f"On {machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}; float32, one step with a full ring, "
        "one thread, the sides in turn in one process; naive is torch.onnx.export of the same step:",
        "",
        "| step | PyTorch eager | naive in ONNX Runtime | e3d_deploy in ONNX Runtime | over naive | max \\|Δ\\| |",
        "|---|---|---|---|---|---|",
    ]
    for name, step in steps.items():
        sides = step["sides"]
        lines.append(
            f"| {name} | {sides['torch_eager']['median_ms']:.1f} ms | {sides['naive']['median_ms']:.1f} ms "
            f"| {sides['ours']['median_ms']:.1f} ms | {sides['ours']['speedup_over_naive']:.2f}× "
            f"| {step['max_abs_difference_from_torch']['ours']:.0e} |"
        )
    lines += [
        "",
        f"Exporting the full-size model, step and clip 10→10: {export['seconds']:.0f} s and "
        f"{export['peak_resident_gb']:.1f} GB. Over {streaming['frames']:,} frames of a stream, resident memory grows "
        f"by {streaming['growth_mb']:.1f} MB and a step costs {streaming['late_over_early']:.2f} times what it cost at "
        f"frame 30. `e3d --help` takes {startup['help_seconds']:.2f} s, `import e3d_deploy.runtime` "
        f"{startup['import_runtime_seconds']:.2f} s.",
    ]
    return "\n".join(lines)


def recipes() -> str:
    """The recipes side by side, as Markdown."""
    found = result("recipes")
    model = found["model"]
    lines = [
        f"The same network ({len(model['hidden'])}×{model['hidden'][0]}, patch {model['patch_size']}), start and "
        f"clips, {found['steps']:,} steps of 4 clips, scheduled sampling over the first half in all; "
        f"{found['clips']} test clips, mean over the predicted frames "
        f"({found['environment']['cpu']}, {found['environment']['date'][:10]}):",
        "",
        "| recipe | MSE | MAE | PSNR, dB | SSIM | MSE of the weights not saved |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["runs"].items():
        lines.append(
            f"| {name} | {row['mse']:.1f} | {row['mae']:.1f} | {row['psnr']:.2f} | {row['ssim']:.3f} "
            f"| {row['mse of the other weights']:.1f} |"
        )
    return "\n".join(lines)


def memory() -> str:
    """Memory of a training step and what the Trainer costs, as Markdown."""
    found = result("training")
    lines = [
        "| frames of the clip | plain | `--recompute` | ratio | seconds, plain and recomputed |",
        "|---|---|---|---|---|",
    ]
    for length, rows in found["memory"].items():
        plain, again = rows["plain"], rows["recompute"]
        lines.append(
            f"| {length} | {plain['gb']:.2f} GB | {again['gb']:.2f} GB | {rows['ratio']:.2f} "
            f"| {plain['seconds']:.0f} and {again['seconds']:.0f} |"
        )
    one = found["overhead"]
    lines += [
        "",
        f"A step of `e3d train` at full size, batch {one['batch_size']}, takes {one['ratio']:.2f} times what a plain "
        f"loop on the same network takes ({one['step_s']:.1f} s against {one['plain_step_s']:.1f} s, {one['steps']} "
        f"steps in turn), and waits for data {100 * one['share_waiting_for_data']:.2f} % of the time "
        f"({found['environment']['cpu']}, one thread, {found['environment']['date'][:10]}).",
    ]
    return "\n".join(lines)


def precision() -> str:
    """What each precision costs and gains, as Markdown."""
    found, full = result("precision"), result("precision_full")
    machine, clips = found["environment"], found["clips"]["measured"]
    lines = [
        f"The demo model on {clips['clips']} clips of {clips['frames'] // clips['clips']} frames "
        f"({clips['source']}), rollouts 10→10, emulated; the worst clip counts. Weights are those of the step graph, "
        "with its nodes:",
        "",
        "| precision | graph and weights | max \\|Δ\\| | SSIM lost | PSNR lost, dB | stays in float32 |",
        "|---|---|---|---|---|---|",
    ]
    for policy, row in found["policies"].items():
        drift = row["drift"]
        lines.append(
            f"| {policy} | {row['bytes'] / 1e6:.1f} MB | {drift['difference']:.0e} | {drift['dssim']:.1e} "
            f"| {drift['dpsnr']:.4f} | {', '.join(row['exclude']) or '–'} |"
        )
    whole = found["policies"]["fp8"]["drift_without_exclusion"]
    native = found["as it runs here"]
    eight, emulated = (native["onnxruntime"][f"int8, weights of 8 bits{end}"] for end in ("", ", emulated"))
    lines += [
        "",
        f"With every layer in fp8 {whole['dssim']:.3f} of the SSIM is lost. On this processor, which has AVX2 and no "
        f"VNNI, ONNX Runtime in int8 loses {native['onnxruntime']['int8']['dssim']:.4f}, and with weights of 8 bits "
        f"in the place of 7 {eight['dssim']:.4f}, of which {emulated['dssim']:.4f} is the rounding and the rest "
        f"overflow. OpenVINO {found['openvino']} loses {native['openvino']['int8']['dssim']:.4f} in int8, and is off "
        f"by {native['openvino']['bf16']['difference']:.0e} in bf16 and {native['openvino']['fp16']['difference']:.0e} "
        "in fp16.",
        "",
        f"Times of a step, one thread, in turn ({machine['cpu']}, AVX2, {machine['date'][:10]}), and how often as fast "
        "as float32 in the same library, with the range over the rounds:",
        "",
        "| | precision | demo model | full size (4×64, patch 4) |",
        "|---|---|---|---|",
    ]
    for library, sides in found["step_ms"].items():
        for policy, side in sides.items():
            lines.append(f"| {library} | {policy} | {_time(side)} | {_time(full['step_ms'][library][policy])} |")
    return "\n".join(lines)


def _time(side: dict[str, Any]) -> str:
    text = f"{side['median_ms']:.1f} ms"
    if "range" in side:
        text += f", {side['speedup_over_fp32']:.2f}× ({side['range'][0]:.2f}–{side['range'][1]:.2f})"
    return text


PLACES = {
    README: {"measured": measured},
    README.parent / "docs" / "training.md": {"recipes": recipes, "memory": memory},
    README.parent / "docs" / "precision.md": {"precision": precision},
}
"""Which section of which file comes from where; a section stands between two comments with its name."""


def section(name: str, text: str) -> str:
    return f"<!-- {name}: written by python -m benchmarks.readme -->\n{text}\n<!-- /{name} -->"


def main() -> None:
    for file, sections in PLACES.items():
        text = file.read_text()
        for name, write in sections.items():
            pattern = re.compile(f"<!-- {name}: .*<!-- /{name} -->", re.DOTALL)
            text = pattern.sub(lambda _, name=name, write=write: section(name, write()), text)  # type: ignore[misc]
        file.write_text(text)


if __name__ == "__main__":
    main()
