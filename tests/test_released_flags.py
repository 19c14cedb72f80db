"""Translation of google/e3d_lstm's command line: each flag, and its two published commands run at a tiny size."""

import json
import sys
from pathlib import Path
from shlex import split

import pytest
import torch

from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.importing import import_checkpoint
from e3d_deploy.released_flags import DEFAULTS, translate
from tests.golden import GOLDEN
from tests.tools import contents, e3d

needs_tensorflow = pytest.mark.skipif(sys.version_info >= (3, 14), reason="TensorFlow has no wheel for this Python")

MNIST = split("""
    --is_training True
    --dataset_name mnist
    --train_data_paths ~/data/moving-mnist-example/moving-mnist-train.npz
    --valid_data_paths ~/data/moving-mnist-example/moving-mnist-valid.npz
    --pretrained_model pretrain_model/moving_mnist_e3d_lstm/model.ckpt-80000
    --save_dir checkpoints/_mnist_e3d_lstm
    --gen_frm_dir results/_mnist_e3d_lstm
    --model_name e3d_lstm
    --allow_gpu_growth True
    --img_channel 1
    --img_width 64
    --input_length 10
    --total_length 20
    --filter_size 5
    --num_hidden 64,64,64,64
    --patch_size 4
    --layer_norm True
    --sampling_stop_iter 50000
    --sampling_start_value 1.0
    --sampling_delta_per_iter 0.00002
    --lr 0.001
    --batch_size 4
    --max_iterations 1
    --display_interval 1
    --test_interval 1
    --snapshot_interval 10000
""")
"""Command of README.md and scripts/e3d_lstm_mm_train.sh in google/e3d_lstm."""
KTH = split("""
    --is_training True
    --dataset_name action
    --train_data_paths ~/data/kth
    --valid_data_paths ~/data/kth
    --pretrained_model pretrain_model/kth_e3d_lstm/model.ckpt-200000
    --save_dir checkpoints/_kth_e3d_lstm
    --gen_frm_dir results/_kth_e3d_lstm
    --model_name e3d_lstm
    --allow_gpu_growth True
    --img_channel 1
    --img_width 128
    --input_length 10
    --total_length 30
    --filter_size 5
    --num_hidden 64,64,64,64
    --patch_size 8
    --layer_norm True
    --reverse_input False
    --sampling_stop_iter 100000
    --sampling_start_value 1.0
    --sampling_delta_per_iter 0.00001
    --lr 0.001
    --batch_size 2
    --max_iterations 1
    --display_interval 1
    --test_interval 1
    --snapshot_interval 5000
""")
"""Command of scripts/e3d_lstm_kth_train.sh in google/e3d_lstm."""

HOME = Path.home()
ALWAYS = {"--recipe": "google", "--semantics": "google", "--norm-eps": "1e-12", "--validation-clips": "0"}
MEMORY = (
    "flags of the released code select its recipe, its memory that stays zero and its epsilon; give "
    "--semantics paper for the memory of the paper"
)
GROWTH = "--allow_gpu_growth is ignored: PyTorch always allocates memory as it needs it"


def parsed(arguments: list[str], command: str = "train") -> tuple[dict[str, str], list[str]]:
    """Return the options with their values, and the switches, of a command line of `e3d`."""
    assert arguments[0] == command
    options, switches, rest = dict[str, str](), list[str](), arguments[1:]
    while rest:
        name = rest.pop(0)
        assert name.startswith("-"), name
        assert name not in options, name
        if rest and not rest[0].startswith("-"):
            options[name] = rest.pop(0)
        else:
            switches.append(name)
    return options, switches


def test_the_published_moving_mnist_command_in_our_options() -> None:
    line, remarks = translate(MNIST)
    assert parsed(line) == (
        ALWAYS
        | {
            "--data": f"{HOME}/data/moving-mnist-example/moving-mnist-train.npz",
            "--valid-data": f"{HOME}/data/moving-mnist-example/moving-mnist-valid.npz",
            "--init": "pretrain_model/moving_mnist_e3d_lstm/model.ckpt-80000",
            "-o": "checkpoints/_mnist_e3d_lstm",
            "--samples": "results/_mnist_e3d_lstm",
            "--sample-count": "10",
            "--channels": "1",
            "--image-size": "64x64",
            "--context": "10",
            "--horizon": "10",
            "--history-length": "20",
            "--kernel-size": "5",
            "--hidden": "64,64,64,64",
            "--patch-size": "4",
            "--sampling-start": "1.0",
            "--sampling-decrease": "0.00002",
            "--sampling-stop-step": "50000",
            "--learning-rate": "0.001",
            "--batch-size": "4",
            "--steps": "1",
            "--log-every": "1",
            "--validate-every": "1",
            "--save-every": "10000",
        },
        ["--resume-or-new", "--layer-norm"],
    )
    assert remarks == [GROWTH, MEMORY]


def test_the_published_kth_command_in_our_options() -> None:
    line, remarks = translate(KTH)
    assert parsed(line) == (
        ALWAYS
        | {
            "--data": f"{HOME}/data/kth",
            "--valid-data": f"{HOME}/data/kth",
            "--init": "pretrain_model/kth_e3d_lstm/model.ckpt-200000",
            "-o": "checkpoints/_kth_e3d_lstm",
            "--samples": "results/_kth_e3d_lstm",
            "--sample-count": "10",
            "--channels": "1",
            "--image-size": "128x128",
            "--context": "10",
            "--horizon": "20",
            "--history-length": "30",
            "--kernel-size": "5",
            "--hidden": "64,64,64,64",
            "--patch-size": "8",
            "--sampling-start": "1.0",
            "--sampling-decrease": "0.00001",
            "--sampling-stop-step": "100000",
            "--learning-rate": "0.001",
            "--batch-size": "2",
            "--steps": "1",
            "--log-every": "1",
            "--validate-every": "1",
            "--save-every": "5000",
        },
        ["--resume-or-new", "--layer-norm"],
    )
    assert remarks == [GROWTH, MEMORY]


NEEDED = split("--save_dir runs/a --train_data_paths train.npz --valid_data_paths valid.npz")
DEFAULT_OPTIONS = ALWAYS | {
    "-o": "runs/a",
    "--data": "train.npz",
    "--valid-data": "valid.npz",
    "--channels": "1",
    "--image-size": "64x64",
    "--context": "10",
    "--horizon": "10",
    "--history-length": "20",
    "--kernel-size": "5",
    "--hidden": "64,64,64,64",
    "--patch-size": "1",
    "--sampling-start": "1.0",
    "--sampling-decrease": "0.00002",
    "--sampling-stop-step": "50000",
    "--learning-rate": "0.001",
    "--batch-size": "8",
    "--steps": "80000",
    "--log-every": "1",
    "--validate-every": "1000",
    "--save-every": "1000",
}
"""Options of `e3d` that correspond to the defaults of the released program."""


def test_settings_that_are_not_given_have_the_released_defaults() -> None:
    line, remarks = translate(NEEDED)
    assert parsed(line) == (DEFAULT_OPTIONS, ["--resume-or-new", "--layer-norm"])
    assert remarks == [MEMORY]


TWICE = {"--steps": "160000", "--log-every": "2", "--validate-every": "2000", "--save-every": "2000"}
FLAGS: list[tuple[str, str, dict[str, str]]] = [
    ("is_training", "True", {}),
    ("dataset_name", "mnist", {}),
    ("dataset_name", "action", {}),
    ("train_data_paths", "one.npz,~/two.npz", {"--data": f"one.npz,{HOME}/two.npz"}),
    ("valid_data_paths", "~/kth", {"--valid-data": f"{HOME}/kth"}),
    ("save_dir", "~/runs", {"-o": f"{HOME}/runs"}),
    ("gen_frm_dir", "~/frames", {"--samples": f"{HOME}/frames", "--sample-count": "10"}),
    ("input_length", "7", {"--context": "7", "--horizon": "13"}),
    ("total_length", "30", {"--horizon": "20", "--history-length": "30"}),
    ("img_width", "128", {"--image-size": "128x128"}),
    ("img_channel", "3", {"--channels": "3"}),
    ("patch_size", "8", {"--patch-size": "8"}),
    ("reverse_input", "True", TWICE),
    ("reverse_input", "False", {}),
    ("model_name", "e3d_lstm", {}),
    ("pretrained_model", "~/model.ckpt-80000", {"--init": f"{HOME}/model.ckpt-80000"}),
    ("num_hidden", "32,48", {"--hidden": "32,48"}),
    ("filter_size", "3", {"--kernel-size": "3"}),
    ("layer_norm", "True", {}),
    ("scheduled_sampling", "True", {}),
    ("scheduled_sampling", "False", {"--sampling-stop-step": "0"}),
    ("sampling_stop_iter", "9", {"--sampling-stop-step": "9"}),
    ("sampling_start_value", "0.5", {"--sampling-start": "0.5"}),
    ("sampling_changing_rate", "1e-5", {"--sampling-decrease": "1e-5"}),
    ("sampling_delta_per_iter", "1e-5", {"--sampling-decrease": "1e-5"}),
    ("lr", "0.1", {"--learning-rate": "0.1"}),
    ("batch_size", "16", {"--batch-size": "16"}),
    ("max_iterations", "5", {"--steps": "5"}),
    ("display_interval", "10", {"--log-every": "10"}),
    ("test_interval", "2000", {"--validate-every": "2000"}),
    ("snapshot_interval", "3000", {"--save-every": "3000"}),
    ("num_save_samples", "3", {}),
    ("n_gpu", "2", {"--devices": "2", "--batch-size": "16"}),  # the released flag counts clips per device
    ("allow_gpu_growth", "False", {}),
]


@pytest.mark.parametrize(("name", "value", "expected"), FLAGS, ids=lambda part: part if isinstance(part, str) else "")
def test_each_flag_by_itself(name: str, value: str, expected: dict[str, str]) -> None:
    for words in ([f"--{name}", value], [f"--{name}={value}"], [f"-{name}", value]):
        line, _ = translate([*NEEDED, *words])
        options, switches = parsed(line)
        assert options == DEFAULT_OPTIONS | expected
        assert switches == [
            "--resume-or-new",
            "--layer-norm",
            *(["--reverse-input"] if (name, value) == ("reverse_input", "True") else []),
        ]


def test_all_released_flags_are_covered() -> None:
    """The flags that run.py defines at commit 3e5bd4b."""
    assert set(DEFAULTS) == {name for name, _, _ in FLAGS} - {"sampling_delta_per_iter"}


def test_number_of_samples_is_passed_on_if_a_folder_is_given() -> None:
    line, _ = translate([*NEEDED, "--gen_frm_dir", "frames", "--num_save_samples", "3"])
    assert parsed(line)[0] == DEFAULT_OPTIONS | {"--samples": "frames", "--sample-count": "3"}


@pytest.mark.parametrize("yes", ["True", "true", "t", "1", "YES"])
@pytest.mark.parametrize("no", ["False", "false", "f", "0", "No"])
def test_booleans_may_be_written_in_several_ways(yes: str, no: str) -> None:
    line, _ = translate([*NEEDED, "--reverse_input", yes, "--layer_norm", no])
    assert parsed(line)[1] == ["--resume-or-new", "--no-layer-norm", "--reverse-input"]


@pytest.mark.parametrize("more", [["--lr", "0.1"], []])
def test_a_boolean_without_a_value_is_true(more: list[str]) -> None:
    line, _ = translate([*NEEDED, "--reverse_input", *more])
    assert "--reverse-input" in parsed(line)[1]


def test_the_last_value_of_a_repeated_flag_wins() -> None:
    line, _ = translate(
        [*NEEDED, "--lr", "1", "--lr=2", "--sampling_delta_per_iter", "3", "--sampling_changing_rate=4"]
    )
    assert parsed(line)[0] == DEFAULT_OPTIONS | {"--learning-rate": "2", "--sampling-decrease": "4"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--is_training maybe", "--is_training: got 'maybe', expected True or False"),
        ("--layer_norm 2", "--layer_norm: got '2', expected True or False"),
        ("--input_length ten", "--input_length: got 'ten', expected a whole number"),
        ("--max_iterations 1.5", "--max_iterations: got '1.5', expected a whole number"),
        ("--n_gpu all", "--n_gpu: got 'all', expected a whole number"),
        ("--model_name predrnn", "--model_name: got predrnn, expected e3d_lstm, the only model"),
        ("--dataset_name penn", "--dataset_name: got penn, expected mnist or action"),
        ("--lr", "--lr: needs a value, such as --lr 0.001"),
        ("--pretrained_model --lr 1", "--pretrained_model: needs a value, such as --pretrained_model PATH"),
        ("--save_dir=", "--save_dir: is missing; give a path"),
        ("--is_training False", "--pretrained_model: is missing; give a path"),
    ],
)
def test_invalid_values_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        translate([*NEEDED, *words.split()])
    assert str(caught.value) == message


@pytest.mark.parametrize("absent", ["save_dir", "train_data_paths", "valid_data_paths"])
def test_a_missing_required_flag_is_named(absent: str) -> None:
    place = NEEDED.index(f"--{absent}")
    with pytest.raises(ConfigError, match=f"--{absent}: is missing; give a path"):
        translate(NEEDED[:place] + NEEDED[place + 2 :])


def test_options_of_e3d_come_last_and_win() -> None:
    ours = split("--semantics paper --steps 7 --no-layer-norm --norm-eps=1e-5")
    line, _ = translate([*ours[:2], *NEEDED, *ours[2:], "--lr", "0.1"])
    assert line[-len(ours) :] == ours
    assert parsed(line[: -len(ours)])[0] == DEFAULT_OPTIONS | {"--learning-rate": "0.1"}


@pytest.mark.parametrize(
    ("ours", "dropped"),
    [
        (["--data", "moving-mnist", "--data=more.npz:2"], "--data"),  # several sources are mixed
        (["--data=more.npz"], "--data"),
        (["--valid-data", "moving-mnist"], "--valid-data"),
        (["-o", "runs/b"], "-o"),
        (["--output=runs/b"], "-o"),
    ],
)
def test_an_option_of_e3d_replaces_a_required_flag(ours: list[str], dropped: str) -> None:
    flags = {"--data": "train_data_paths", "--valid-data": "valid_data_paths", "-o": "save_dir"}
    place = NEEDED.index(f"--{flags[dropped]}")
    for needed in (NEEDED, NEEDED[:place] + NEEDED[place + 2 :]):
        line, _ = translate([*needed, *ours])
        assert line[-len(ours) :] == ours
        expected = {name: value for name, value in DEFAULT_OPTIONS.items() if name != dropped}
        assert parsed(line[: -len(ours)])[0] == expected


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["--help"],
        ["-o", "runs/a", "--data", "clips.npz:2", "--steps", "10", "--no-layer-norm"],
        ["-o", "lr", "--init=save_dir"],
    ],
)
def test_arguments_without_released_flags_are_unchanged(line: list[str]) -> None:
    assert translate(line) == (["train", *line], [])


def test_another_filter_size_is_used_with_a_remark() -> None:
    """The released code uses 5 whatever the flag is."""
    _, remarks = translate([*NEEDED, "--filter_size", "3"])
    assert remarks == [MEMORY, "--filter_size 3 is used here, although the released code always uses 5"]


def test_without_training_it_evaluates_as_the_original_does() -> None:
    line, remarks = translate([*KTH, "--is_training", "False", "--threads", "1"])
    assert line[:2] == ["evaluate", "pretrain_model/kth_e3d_lstm/model.ckpt-200000"]
    assert parsed(line[1:], command=line[1]) == (
        {
            "--data": f"{HOME}/data/kth",
            "--image-size": "128x128",
            "--channels": "1",
            "--patch-size": "8",
            "--history-length": "30",
            "--context": "10",
            "--horizon": "20",
            "--convention": "original",
            "-o": "results/_kth_e3d_lstm",
            "--samples": "10",
            "--threads": "1",
        },
        [],
    )
    assert remarks == [GROWTH]


# Run

PRETRAINED = GOLDEN / "checkpoint_A_released" / "model.ckpt-5"
TINY = {
    "--img_width": "16",
    "--input_length": "3",
    "--total_length": "6",
    "--num_hidden": "4,4",
    "--patch_size": "4",
    "--batch_size": "2",
}


def tiny(command: list[str], folder: Path, data: Path, **changes: str) -> list[str]:
    """Return a published command at a tiny size, on recorded data, without its weights, with outputs below `folder`."""
    values = dict(zip(command[::2], command[1::2], strict=True)) | TINY
    del values["--pretrained_model"]
    values |= {"--train_data_paths": str(data), "--valid_data_paths": str(data)}
    for name in ("--save_dir", "--gen_frm_dir"):
        values[name] = str(folder / values[name])
    values |= {f"--{name}": value for name, value in changes.items()}
    return [word for pair in values.items() for word in pair]


def steps_done(run: Path) -> int:
    return int(torch.load(run / "last.ckpt", weights_only=True)["global_step"])


SAMPLES = [*(f"gt0{t}.png" for t in range(1, 7)), *(f"pd0{t}.png" for t in range(4, 7))]
NETWORK = ModelConfig(
    image_size=(16, 16), patch_size=4, hidden=(4, 4), history_length=6, norm_eps=1e-12, semantics="google"
)


@needs_tensorflow
def test_the_moving_mnist_command_runs_from_published_weights(tmp_path: Path) -> None:
    done = e3d("train", *tiny(MNIST, tmp_path, GOLDEN / "mnist_tiny.npz", pretrained_model=str(PRETRAINED)))
    run = tmp_path / "checkpoints" / "_mnist_e3d_lstm"
    assert done.stdout == f"{run / 'model.safetensors'}\n"
    for remark in (GROWTH, MEMORY):
        assert done.stderr.count(remark) == 1

    model = checkpoint.load(run / "model.safetensors")
    assert model.config == NETWORK
    published = import_checkpoint(PRETRAINED, memory="released", image_size=(16, 16)).model
    moved = [(weight - model.state_dict()[name]).abs().max() for name, weight in published.state_dict().items()]
    assert 0 < max(moved) < 0.00101  # the first step of Adam is at most the learning rate

    settings = json.loads((run / "config.json").read_text())
    assert {**vars(TrainConfig()), **settings["train"]} == TrainConfig.of_recipe(
        "google",
        context_length=3,
        horizon=3,
        steps=1,
        batch_size=2,
        log_every=1,
        validate_every=1,
        save_every=10_000,
        validation_clips=0,
    ).__dict__
    # Six clips in batches of two; the first clip of each batch is written.
    found = sorted(str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.png"))
    assert found == [f"_mnist_e3d_lstm/1/{batch}/{name}" for batch in (1, 2, 3) for name in SAMPLES]


def test_existing_files_are_not_deleted(tmp_path: Path) -> None:
    """The released program deletes save_dir and gen_frm_dir when it starts."""
    run, samples = tmp_path / "checkpoints" / "_mnist_e3d_lstm", tmp_path / "results" / "_mnist_e3d_lstm"
    for folder in (run, samples):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")

    def command(**changes: str) -> str:
        return e3d("train", *tiny(MNIST, tmp_path, GOLDEN / "mnist_tiny.npz", **changes)).stdout.strip()

    assert command() == str(run / "model.safetensors")
    before = contents(tmp_path)
    assert {f"{folder.relative_to(tmp_path)}/notes.txt" for folder in (run, samples)} < before.keys()

    assert command() == str(run.with_name("_mnist_e3d_lstm-2") / "model.safetensors")  # the first run is finished
    assert {name: content for name, content in contents(tmp_path).items() if "lstm-2" not in name} == before

    assert command(lr="0.01") == str(
        run.with_name("_mnist_e3d_lstm-3") / "model.safetensors"
    )  # a run with different settings
    assert command(max_iterations="2") == str(run / "model.safetensors")  # resumes the first run
    assert steps_done(run) == 2
    assert (run / "notes.txt").read_text() == "mine"
    assert [path.name for path in sorted((samples / "2").iterdir())] == ["1", "2", "3"]


def test_the_kth_command_runs(tmp_path: Path) -> None:
    done = e3d("train", *tiny(KTH, tmp_path, GOLDEN / "kth"))
    run = tmp_path / "checkpoints" / "_kth_e3d_lstm"
    assert done.stdout == f"{run / 'model.safetensors'}\n"
    assert [done.stderr.count(remark) for remark in (GROWTH, MEMORY)] == [1, 1]
    assert checkpoint.load(run / "model.safetensors").config == NETWORK
    # Seven windows of the persons of the test split, in batches of two.
    found = sorted(str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.png"))
    assert found == [f"_kth_e3d_lstm/1/{batch}/{name}" for batch in (1, 2, 3, 4) for name in SAMPLES]


def test_reversed_clips_make_two_steps_per_iteration(tmp_path: Path) -> None:
    e3d("train", *tiny(KTH, tmp_path, GOLDEN / "kth", reverse_input="True"))
    run = tmp_path / "checkpoints" / "_kth_e3d_lstm"
    assert steps_done(run) == 2
    assert json.loads((run / "config.json").read_text())["train"]["reverse_input"] is True


def test_options_of_e3d_mix_with_released_flags(tmp_path: Path) -> None:
    flags = tiny(MNIST, tmp_path, GOLDEN / "mnist_tiny.npz")
    e3d("train", "--semantics", "paper", *flags, "-o", tmp_path / "ours", "--data", GOLDEN / "kth", "--steps", "2")
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert settings["model"]["semantics"] == "paper"
    assert settings["data"] == [[str(GOLDEN / "kth"), 1.0]]
    assert settings["train"]["optimizer"] == "released-adam"
    assert steps_done(tmp_path / "ours") == 2
    assert not (tmp_path / "checkpoints").exists()


@needs_tensorflow
def test_without_training_the_command_evaluates(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    flags = tiny(MNIST, tmp_path, GOLDEN / "mnist_tiny.npz", pretrained_model=str(PRETRAINED), is_training="False")
    done = e3d("train", *flags)
    assert "original" in done.stdout
    assert sorted(path.name for path in (tmp_path / "results" / "_mnist_e3d_lstm" / "1").iterdir()) == SAMPLES
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "0.1"], "Error: --save_dir: is missing; give a path"),
        ([*NEEDED, "--model_name", "convlstm"], "Error: --model_name: got convlstm, expected e3d_lstm, the only model"),
    ],
)
def test_refusals_are_exit_2_and_one_line(flags: list[str], message: str) -> None:
    assert e3d("train", *flags, code=2).stderr == f"{message}\n"
