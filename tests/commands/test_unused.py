"""Options without an effect are refused, or reported, before any work."""

from pathlib import Path

import numpy as np
import pytest

from tests.tools import e3d


def refused(*arguments: object) -> str:
    """Return the error of a refused command."""
    return e3d(*arguments, code=2).stderr.splitlines()[-1]


@pytest.mark.parametrize("more", [[], ["--streaming"]])
@pytest.mark.parametrize("option", [["--layout", "NTHW"], ["--skip-bad"]])
def test_options_for_files_are_refused_if_clips_are_generated(
    option: list[str], more: list[str], exported: Path
) -> None:
    error = f"Error: moving-mnist: is generated, so no file is read; omit {option[0]}, or give --data SOURCE"
    assert refused("evaluate", exported / "tiny.e3d", *option, *more) == error


def test_options_for_files_are_refused_if_a_run_reads_no_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = refused("train", "-o", run, "--layout", "NTHW", "--skip-bad", "--valid-data", "moving-mnist")
    assert "is generated, so no file is read; omit --layout and --skip-bad, or give --data SOURCE" in words
    assert not run.exists()


@pytest.mark.parametrize("where", [["--data", "moving-mnist", "--data"], ["--valid-data"]])
def test_options_for_files_apply_to_one_of_several_sources(where: list[str], tmp_path: Path) -> None:
    """The option is used for the file, whose size then does not match."""
    np.save(tmp_path / "clips.npy", np.zeros((2, 20, 8, 8), np.uint8))
    words = refused("train", "-o", tmp_path / "run", *where, tmp_path / "clips.npy", "--layout", "NTHW")
    assert "clips.npy: got [2, 20, 8, 8], expected NTHW with H 64, W 64 and C 1" in words


@pytest.mark.parametrize("output", [[], ["-o", "out.npz"]])
def test_a_zoom_is_refused_if_no_picture_is_written(
    output: list[str], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ["stream", *(["predict"] if output else [])]:
        words = refused(command, exported / "tiny.e3d", exported / "clip.npy", *output, "--zoom", 4)
        assert words.startswith("Error: --zoom enlarges videos and pictures, and has no effect with")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["predict", "stream", "evaluate"])
def test_threads_are_refused_with_a_backend_without_threads(command: str, exported: Path, tmp_path: Path) -> None:
    more = {"predict": [exported / "clip.npy", "-o", tmp_path / "a.npz"], "stream": [exported / "clip.npy"]}
    options = [*more.get(command, []), "--backend", "tensorrt", "--threads", 1]
    words = refused(command, exported / "tiny.e3d", *options)
    assert words == "Error: threads: tensorrt runs on the GPU and has no setting for threads; leave --threads out"


def test_options_that_require_another_option_are_refused_without_it(exported: Path, tmp_path: Path) -> None:
    assert "--samples requires -o FOLDER" in refused("evaluate", exported / "tiny.e3d", "--samples", 4)
    assert "--threads requires --bundle" in refused("doctor", "--threads", 1)
    cache = ["--cache", "none", "--cache-limit-gb", 1]
    assert "--cache-limit-gb has no effect with --cache none" in refused("build", exported / "tiny.e3d", *cache)
    packed = e3d("pack", exported / "tiny.e3d", "-o", tmp_path / "a.e3d.zip", "--with-engines")
    assert "--with-engines: " in packed.stderr
    assert "has no engines" in packed.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--optimizer", "adam", "--weight-decay", 0.1],
            "--weight-decay requires --optimizer adamw or muon, and this run has adam",
        ),
        (["--recipe", "openstl", "--weight-decay", 0.1], "--weight-decay requires --optimizer adamw"),
        (["--schedule", "constant", "--warmup-steps", 5], "--warmup-steps requires --schedule cosine"),
        (["--sampling", "reverse", "--sampling-start", 0.5], "--sampling-start requires --sampling scheduled"),
        (["--sampling", "reverse", "--sampling-decrease", 0.5], "--sampling-decrease requires --sampling scheduled"),
        (["--sampling-hold-steps", 5], "--sampling-hold-steps requires --sampling reverse"),
        (["--sampling-decay-steps", 5], "--sampling-decay-steps requires --sampling reverse"),
        (["--recipe", "google", "--burn-in-steps", 5], "--burn-in-steps requires burn-in, and this run has none"),
        (["--sample-count", 3], "--sample-count requires --samples FOLDER"),
    ],
)
def test_settings_that_a_run_would_not_use_are_refused(options: list[object], error: str, tmp_path: Path) -> None:
    assert error in refused("train", "-o", tmp_path / "run", "--data", tmp_path / "none", *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "openstl", "--sampling-hold-steps", 5, "--sampling-decay-steps", 5],
        ["--recipe", "google", "--sampling", "reverse", "--sampling-decrease", 2e-5],
        ["--burn-in-steps", 5, "--weight-decay", 0.1, "--warmup-steps", 5, "--sampling-start", 0.5],
    ],
)
def test_settings_that_a_run_uses_or_already_has_are_accepted(options: list[object], tmp_path: Path) -> None:
    """The settings are checked before the data, which do not exist."""
    assert "no such file or folder" in refused("train", "-o", tmp_path / "run", "--data", tmp_path / "none", *options)
