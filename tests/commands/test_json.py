"""With `--json`, stdout is one JSON document, or empty if the command has no result."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from e3d_deploy import checkpoint
from e3d_deploy.cli import main
from e3d_deploy.commands import _output
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.write import write_clips
from e3d_deploy.export.engines.cache import EngineCache
from e3d_deploy.model import E3DLSTM
from tests.tools import e3d

SHORT = "--threads 1 --seconds 0.001 --repeats 5 --no-memory"
EXAMPLES = {
    "benchmark": [
        f"{{bundle}} --backends onnxruntime --streams 1 --latency-goal 60s --picture {{new}}/times.png {SHORT}"
    ],
    "cache ls": ["--cache {cache}"],
    "data inspect": ["{clips} --image-size 16x24 --length 7 --picture {new}/sheet.png"],
    "diff": ["{bundle} {model}"],
    "doctor": ["", "--bundle {bundle} --threads 1"],
    "evaluate": [
        "{model} --data {clips} --context 4 --horizon 3 --most 1 --samples 1 -o {new}/report",
        "{bundle} --data {clips} --most 1 --streaming --ages 4,5 --renewals none --backend onnxruntime -o {new}/decay",
    ],
    "inspect": ["{bundle}", "{model}"],
    "profile": ["{bundle} --steps 1 --no-roofline --threads 1"],
    "stream": ["{bundle} {video} --horizon 2 --threads 1 -o {new}/stream"],
    "verify": ["{bundle} --threads 1 --picture {new}/drift.png"],
}
"""Arguments of calls with a result, by command; at least one for every command with `--json`."""
WITHOUT_RESULT = {
    "benchmark": ("{new} --backends onnxruntime", 5),
    "cache ls": ("--cache {new}/absent", 2),
    "data inspect": ("{new}/absent", 2),
    "diff": ("{bundle} {new}", 5),
    "doctor": ("--bundle {new}", 5),
    "evaluate": ("{model} --data {new}/absent", 2),
    "inspect": ("{new}", 5),
    "profile": ("{bundle} --backend nothing", 2),
    "stream": ("{bundle} {new}/absent.mp4", 2),
    "verify": ("{new}", 5),
}
"""Arguments of a call that ends with an error, and its exit code, by command."""


def with_json(group: click.Group, before: str = "") -> Iterator[str]:
    """Yield the commands of a group that have the option, each as the words that a user types."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from with_json(command, f"{before}{name} ")
        elif any("--json" in option.opts for option in command.params):
            yield f"{before}{name}"


@pytest.fixture
def places(exported: Path, bundle_path: Path, tmp_path: Path) -> dict[str, Path]:
    """Return the inputs of the examples, and an empty folder for their outputs."""
    clips = np.random.default_rng(0).integers(0, 256, (2, 9, 16, 24, 1), np.uint8)
    np.savez(tmp_path / "clips.npz", frames=clips)
    other = tmp_path / "other.safetensors"
    checkpoint.save(E3DLSTM(ModelConfig(image_size=(16, 24), hidden=(4,), kernel_size=3)), other)
    video = tmp_path / "video.gif"
    write_clips(video, np.moveaxis(clips[:1], -1, 2) / np.float32(255), frames_per_second=10.0, zoom=1)
    (tmp_path / "new").mkdir()
    return {
        "bundle": bundle_path,
        "model": exported / "tiny.safetensors",
        "clips": tmp_path / "clips.npz",
        "other": other,
        "video": video,
        "cache": EngineCache(tmp_path / "cache").folder,
        "new": tmp_path / "new",
    }


def parts(command: str, arguments: str, places: dict[str, Path]) -> list[str]:
    return [*command.split(), *(part.format(**places) for part in arguments.split()), "--json"]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_every_command_with_the_option_has_examples() -> None:
    commands = set(with_json(main))
    assert commands
    assert commands == set(EXAMPLES) == set(WITHOUT_RESULT)


@pytest.mark.parametrize(
    ("command", "arguments"), [(command, one) for command, several in EXAMPLES.items() for one in several]
)
def test_stdout_is_one_document(
    command: str, arguments: str, places: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    result = e3d(*parts(command, arguments, places))
    found = json.loads(result.stdout, parse_constant=refuse)
    assert isinstance(found, dict)
    assert found
    assert capfd.readouterr().out == ""  # text that a library writes to the descriptor


@pytest.mark.parametrize("command", WITHOUT_RESULT)
def test_stdout_is_empty_without_a_result(command: str, places: dict[str, Path]) -> None:
    arguments, code = WITHOUT_RESULT[command]
    result = e3d(*parts(command, arguments, places), code=code)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("command", EXAMPLES)
def test_stdout_is_empty_when_the_command_is_used_wrongly(command: str) -> None:
    result = e3d(*command.split(), "--json", "--no-such-option", code=2)
    assert result.stdout == ""
    assert "--no-such-option" in result.stderr


def test_a_failed_check_is_a_result(places: dict[str, Path]) -> None:
    result = e3d("diff", places["bundle"], places["other"], "--exit-code", "--json", code=3)
    assert json.loads(result.stdout)["differs_in"]
    assert result.stderr.splitlines()[-1].startswith("FAIL ")


def test_a_number_that_is_not_finite_becomes_null(capsys: pytest.CaptureFixture[str]) -> None:
    _output.as_json({"loss": float("nan"), "rows": [{"psnr": float("inf")}, (1.5, -float("inf"))]})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [{"psnr": None}, [1.5, None]]}
