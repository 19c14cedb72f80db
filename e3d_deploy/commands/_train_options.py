"""Options of `e3d train` and their groups in the help."""

import dataclasses
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import click

from e3d_deploy.commands._help import option
from e3d_deploy.commands._options import LAYOUT, MAX_FRAMES, PATH, Count, Finite, numbers
from e3d_deploy.config import PRESETS, RECIPES, Semantics, TrainConfig

HINTS = get_type_hints(TrainConfig)
DEFAULTS = {"recipe": "modern", "preset": "full"}
"""Default values of the options that set several settings at once."""
GROUPS = {
    "Run": ("output", "recipe", "preset", "initial", "resume", "resume_or_new", "time_limit"),
    "Data": ("data", "valid", "image_size", "channels", "fit", "skip_bad"),
    "Network": ("hidden", "patch_size"),
    "Length and batch": ("context_length", "horizon", "steps", "batch_size", "learning_rate"),
    "Speed and memory": ("precision", "accumulate", "recompute", "devices", "workers"),
    "Output and log": ("validate_every", "save_every", "parts", "tensorboard"),
}
MORE_GROUPS = {
    "More on data": ("digits", "layout", "seed"),
    "More on the network": (
        "kernel_size",
        "window_length",
        "history_length",
        "layer_norm",
        "norm_eps",
        "semantics",
        "stride",
    ),
    "Loss and optimizer": (
        "loss",
        "l1_weight",
        "optimizer",
        "beta1",
        "beta2",
        "weight_decay",
        "gradient_clip",
        "reverse_input",
    ),
    "Learning rate schedule": ("schedule", "schedule_by", "warmup_steps"),
    "Scheduled sampling": (
        "sampling",
        "sampling_start",
        "sampling_decrease",
        "sampling_stop_step",
        "sampling_hold_steps",
        "sampling_decay_steps",
    ),
    "Averaging of the weights": ("average", "ema_decay", "ema_warmup"),
    "Burn-in and decay of the state": ("burn_in", "burn_in_steps", "measure_decay"),
    "More on validation and output": ("validation_clips", "log_every", "samples", "sample_count", "parts_every"),
    "More on speed": ("compile", "cuda_graph", "nodes"),
}


def setting(
    field: str, text: str, *, flag: str = "", most: int | None = None, default_text: str | None = None
) -> Callable[[Any], Any]:
    """Return an option for a field of TrainConfig. If the option is not given, the recipe decides the value.

    Args:
        field: name of the field.
        text: help of the option.
        flag: name of the option, if it differs from the field.
        most: maximum value that the option accepts.
        default_text: default in words, for a field whose default is None.
    """
    default = next(one.default for one in dataclasses.fields(TrainConfig) if one.name == field)
    name = "--" + (flag or field).replace("_", "-")
    if isinstance(default, bool):
        shown = f"{'' if default else 'no-'}{name[2:]}"
        return option(f"{name}/--no-{name[2:]}", field, default=None, help=text, show_default=shown)
    hint = HINTS[field]
    number = float if float in (hint, *get_args(hint)) else int
    kind = click.Choice(get_args(hint)) if isinstance(default, str) else number if most is None else Count(most)
    return option(
        name,
        field,
        type=kind,
        default=None,
        metavar="NUMBER" if kind is float else None,
        help=text,
        show_default=default_text if default is None else str(default),
    )


def size(preset: str) -> str:
    """Describe a preset for the help."""
    if not (values := PRESETS[preset]):
        return "the defaults"
    hidden = ",".join(map(str, values["hidden"]))
    return f"hidden {hidden}, patch {values['patch_size']}, {values['steps']} steps of {values['batch_size']} clips"


OPTIONS = (
    option("-o", "--output", type=PATH, required=True, help="Run folder; receives model.safetensors."),
    option(
        "--data",
        multiple=True,
        default=["moving-mnist"],
        metavar="SOURCE[:SHARE]",
        help="moving-mnist, a file or a folder; repeat to mix several by SHARE.",
    ),
    option("--valid-data", "valid", metavar="SOURCE", help="Validation data.", show_default="held-out clips"),
    option("--skip-bad", is_flag=True, help="Skip unreadable files with a warning."),
    option(
        "--digits",
        type=PATH,
        help="Digit images (.npz) for the Moving MNIST training clips.",
        show_default="digits of the package",
    ),
    option("--init", "initial", type=PATH, help="Model file or checkpoint to start from."),
    option("--resume", is_flag=True, help="Resume the run in the run folder."),
    option(
        "--resume-or-new",
        is_flag=True,
        help="Resume the run that was started with these options, or start one in the first free folder: NAME, NAME-2 "
        "and so on.",
    ),
    option("--recipe", type=click.Choice(list(RECIPES)), default=DEFAULTS["recipe"], help="Set of training settings."),
    option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="Size of network and run. " + "; ".join(f"{name}: {size(name)}" for name in PRESETS) + ".",
    ),
    option("--image-size", default="64x64", callback=numbers, metavar="HxW", help="Frame height x width (pixels)."),
    option("--channels", default=1, help="Channels of a frame: 1 gray, 3 RGB."),
    option("--patch-size", default=4, help="Patch side (pixels)."),
    option("--hidden", default="64,64,64,64", callback=numbers, metavar="N,N,…", help="Hidden channels of each layer."),
    option("--kernel-size", default=5, help="Kernel size of the convolutions (patches)."),
    option("--window-length", default=2, help="Window of the 3D convolutions (frames)."),
    option("--history-length", default=20, help="Number of past cell states that recall attends to."),
    option("--norm-eps", default=1e-5, metavar="NUMBER", help="Constant added to the variance in the norms."),
    option(
        "--semantics",
        type=click.Choice(get_args(Semantics)),
        default="paper",
        help="E3D-LSTM implementation to follow.",
    ),
    option("--stride", default=1, help="Stride of the convolutions; values above 1 require --semantics openstl."),
    option("--layer-norm/--no-layer-norm", default=True, help="Normalise the gates."),
    setting("context_length", "Context frames.", flag="context", most=MAX_FRAMES),
    setting("horizon", "Frames to predict.", most=MAX_FRAMES),
    setting("steps", "Optimizer steps."),
    setting("batch_size", "Clips per optimizer step."),
    setting("accumulate", "Micro-batches per optimizer step."),
    setting("loss", "Reduction of the loss: mean, or sum over the batch."),
    setting("l1_weight", "Weight of the absolute differences in the loss."),
    setting("optimizer", "Optimizer."),
    setting("beta1", "Decay of the mean gradient per optimizer step."),
    setting("beta2", "Decay of the mean squared gradient per optimizer step."),
    setting("weight_decay", "Weight decay (adamw and muon only)."),
    setting("learning_rate", "Peak learning rate."),
    setting("schedule", "Learning rate schedule."),
    setting(
        "schedule_by",
        "Progress that the schedules follow. With time, --time-limit is required and --steps is a maximum.",
    ),
    setting("warmup_steps", "Warm-up steps (cosine only)."),
    setting("sampling", "Scheduled sampling method."),
    setting("sampling_start", "Probability of a true frame at optimizer step 0 (scheduled only)."),
    setting(
        "sampling_decrease",
        "Decrease of the probability of a true frame per optimizer step (scheduled only).",
        default_text="reaches 0 at --sampling-stop-step",
    ),
    setting(
        "sampling_stop_step",
        "First optimizer step at which the network sees no true frame after the context.",
        default_text="half of --steps",
    ),
    setting(
        "sampling_hold_steps",
        "Optimizer steps before the probabilities of true frames change (reverse only).",
        default_text="half of --sampling-stop-step",
    ),
    setting("sampling_decay_steps", "Time constant of the change within the context (optimizer steps, reverse only)."),
    setting("reverse_input", "After each optimizer step, make a second one on the same clips in reverse order."),
    setting("ema_decay", "Decay of the moving average of the weights per optimizer step."),
    setting("ema_warmup", "Start the moving average with a smaller decay."),
    setting("average", "Validate and save the moving average of the weights."),
    setting("gradient_clip", "Maximum norm of the gradients; 0 disables clipping."),
    setting("precision", "Precision; auto: bf16 if the GPU supports it."),
    setting("recompute", "Save memory by recomputing activations."),
    setting("compile", "Compile the cells with torch.compile."),
    setting("cuda_graph", "Replay each training pass as a CUDA graph (one GPU, no --accumulate)."),
    setting("validate_every", "Optimizer steps between validations."),
    setting("validation_clips", "Clips per validation; 0 uses all."),
    setting("save_every", "Optimizer steps between saved states."),
    setting("log_every", "Optimizer steps between lines of the log."),
    setting("burn_in", "Maximum burn-in frames before the context; 0 disables burn-in."),
    setting(
        "burn_in_steps",
        "Number of last optimizer steps with burn-in; requires a --burn-in above 0.",
        default_text="a tenth of --steps",
    ),
    setting("fit", "Way to fit pictures of a different aspect ratio."),
    LAYOUT,
    setting("seed", "Seed of weights, data, sampling and burn-in."),
    option(
        "--devices",
        type=click.IntRange(min=1),
        help="Processes, one per device.",
        show_default="1, or the number set by torchrun",
    ),
    option("--nodes", type=click.IntRange(min=1), default=1, help="Machines that train together."),
    option(
        "--workers",
        type=click.IntRange(min=0),
        help="Data loading processes per device.",
        show_default="0, or up to 8 with a GPU",
    ),
    option(
        "--time-limit",
        metavar="MINUTES",
        type=Finite(min=0, min_open=True),
        help="Save and stop after this time (minutes).",
    ),
    option(
        "--decay/--no-decay",
        "measure_decay",
        default=True,
        help="Measure the decay of the state at the end (takes at most about 5 % of the run).",
    ),
    option("--parts", type=PATH, help="Folder for float16 weights in files of at most 16 MiB."),
    option(
        "--parts-every",
        metavar="MINUTES",
        type=Finite(min=0, min_open=True),
        help="Minutes between saved sets of parts; requires --parts.",
        show_default="1",
    ),
    option("--tensorboard", is_flag=True, help="Also log for TensorBoard."),
    option("--samples", type=PATH, help="Folder for pictures of validations, as google/e3d_lstm writes them."),
    option(
        "--sample-count",
        type=click.IntRange(min=0),
        default=10,
        help="Batches per validation whose pictures are written; requires --samples.",
    ),
)
"""Decorators that add the options."""


def train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `e3d train` to a command."""
    for add in reversed(OPTIONS):
        command = add(command)
    return command
