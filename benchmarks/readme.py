"""Write the README's numbers from benchmarks/results/ and the demo model's card.

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


def main() -> None:
    text = README.read_text()
    begin, end = "<!-- measured: written by python -m benchmarks.readme -->", "<!-- /measured -->"
    pattern = re.compile(re.escape(begin) + ".*" + re.escape(end), re.DOTALL)
    README.write_text(pattern.sub(lambda _: f"{begin}\n{measured()}\n{end}", text))


if __name__ == "__main__":
    main()
