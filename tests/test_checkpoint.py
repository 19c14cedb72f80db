"""Model files: save and load, and errors for other files."""

import errno
import json
import os
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.files import write_file
from e3d_deploy.model import E3DLSTM
from tests.test_config import NewerModelConfig


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_loaded_model_is_the_saved_one(tiny_model: E3DLSTM, clip: Tensor, path: Path) -> None:
    checkpoint.save(tiny_model, path)
    loaded = checkpoint.load(path)
    assert loaded.config == tiny_model.config
    weights = tiny_model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert torch.equal(loaded(clip, horizon=4), tiny_model(clip, horizon=4))


def test_loaded_model_is_ready_to_predict(tiny_config: ModelConfig, path: Path) -> None:
    checkpoint.save(E3DLSTM(tiny_config).train(), path)
    loaded = checkpoint.load(path)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_half_precision_is_saved_as_float32(tiny_model: E3DLSTM, path: Path) -> None:
    checkpoint.save(tiny_model.half(), path)
    assert {weight.dtype for weight in checkpoint.load(path).state_dict().values()} == {torch.float32}


def test_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors: no such file; give a model made by `e3d train`"):
        checkpoint.load(path)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; give a model made by"):
        checkpoint.load(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a folder; give .*model\.safetensors"):
        checkpoint.load(tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(CheckpointError, match="is a folder; it is a bundle; give the model file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"To be or not to be, that is the question.", bytes(100)])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a safetensors file .* or import a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_file_is_refused(tiny_model: E3DLSTM, path: Path, share: float) -> None:
    checkpoint.save(tiny_model, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(path)


def card(config: dict[str, object], number: int = checkpoint.FORMAT) -> dict[str, str]:
    """Return the metadata of a model file."""
    return {checkpoint.KEY: json.dumps({"format": number, "config": config})}


def test_foreign_weights_are_refused(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not made by e3d_deploy"):
        checkpoint.load(path)


def test_other_format_is_refused(tiny_model: E3DLSTM, path: Path) -> None:
    save_file(tiny_model.state_dict(), path, card(tiny_model.config.to_dict(), number=9))
    with pytest.raises(CheckpointError, match="has format 9, but this version reads format 1; update e3d_deploy"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 1, "config": []}',
        '{"format": 1, "config": null}',
        '{"format": 1, "config": {"heads": 4}}',
        '{"format": 1, "config": {"kernel_size": 2}}',
        '{"format": 1, "config": {"hidden": [4.5]}}',
    ],
)
def test_unreadable_config_is_refused(tiny_model: E3DLSTM, path: Path, text: str) -> None:
    save_file(tiny_model.state_dict(), path, {checkpoint.KEY: text})
    with pytest.raises(CheckpointError, match="its config cannot be read"):
        checkpoint.load(path)


def test_a_model_of_a_newer_version_opens_unless_it_needs_that_version(tiny_model: E3DLSTM, path: Path) -> None:
    older = checkpoint.content(tiny_model)
    tiny_model.config = NewerModelConfig(**vars(tiny_model.config))
    assert checkpoint.content(tiny_model) == older
    tiny_model.config = replace(tiny_model.config, heads=8)  # type: ignore[call-arg]
    path.write_bytes(checkpoint.content(tiny_model))
    for read in (checkpoint.load, checkpoint.read_card):
        with pytest.raises(CheckpointError, match="field heads, written by a newer e3d_deploy; update e3d_deploy"):
            read(path)


@pytest.mark.parametrize(
    "changes", [{"hidden": (4, 5)}, {"hidden": (4,)}, {"hidden": (4, 6, 6)}, {"layer_norm": False}]
)
def test_weights_that_do_not_fit_the_config_are_refused(
    tiny_model: E3DLSTM, path: Path, changes: dict[str, object]
) -> None:
    save_file(tiny_model.state_dict(), path, card(replace(tiny_model.config, **changes).to_dict()))
    with pytest.raises(CheckpointError, match="its weights do not fit its config") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert re.search(r"cells\.\d\.\w+", str(caught.value))


def test_a_failed_save_leaves_the_old_file_unchanged(
    tiny_model: E3DLSTM, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tiny_model, path)
    before = path.read_bytes()

    def fail(partial: Path, content: bytes) -> None:
        with partial.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(tiny_model, path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_threads_can_write_the_same_file_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, others = Path.write_bytes, []

    def write_while_another_does(partial: Path, content: bytes) -> int:
        written = write(partial, content)
        if not others:
            others.append(threading.Thread(target=write_file, args=(tmp_path / "file", b"other")))
            others[0].start()
            others[0].join()
        return written

    monkeypatch.setattr(Path, "write_bytes", write_while_another_does)
    write_file(tmp_path / "file", b"mine")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_is_synced_before_it_is_renamed_and_has_the_usual_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "file").exists()))
    write_file(tmp_path / "file", b"content")
    assert synced == [False]
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


class Bomb:
    """Object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_pickles_are_refused_and_never_run(path: Path, tmp_path: Path, write) -> None:
    mark = tmp_path / "exploded"
    write(Bomb(mark), path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(path)
    assert not mark.exists()


def test_model_files_can_be_read_by_others(tiny_model: E3DLSTM, path: Path) -> None:
    """Files have the mode that the umask sets, and not the mode of temporary files, which only their owner can read."""
    mask = os.umask(0o022)
    try:
        checkpoint.save(tiny_model, path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644


def test_weights_of_another_type_are_refused(tiny_model: E3DLSTM, path: Path) -> None:
    save_file(tiny_model.double().state_dict(), path, card(tiny_model.config.to_dict()))
    with pytest.raises(CheckpointError, match=r"is torch\.float64, expected float32, float16 or bfloat16"):
        checkpoint.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_weights_are_widened_exactly(tiny_model: E3DLSTM, path: Path, dtype: torch.dtype) -> None:
    checkpoint.save(tiny_model, path, dtype=dtype)
    assert {weight.dtype for weight in load_file(path).values()} == {dtype}
    loaded = checkpoint.load(path).state_dict()
    for name, weight in tiny_model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.to(dtype).float()), name


def test_a_model_can_be_opened_over_memory(tiny_model: E3DLSTM, path: Path) -> None:
    checkpoint.save(tiny_model, path)
    content = np.fromfile(path, np.uint8)
    loaded = checkpoint.load_content(content, path)
    first, last = content.ctypes.data, content.ctypes.data + len(content)
    for name, weight in checkpoint.load(path).state_dict().items():
        found = loaded.state_dict()[name]
        assert torch.equal(found, weight), name
        assert first <= found.data_ptr() < last, name  # no copy


def test_low_weights_in_memory_are_widened(tiny_model: E3DLSTM, path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        checkpoint.save(tiny_model, path, dtype=dtype)
        loaded = checkpoint.load_content(np.fromfile(path, np.uint8), path).state_dict()
        for name, weight in checkpoint.load(path).state_dict().items():
            assert torch.equal(loaded[name], weight), name


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_content_that_is_not_a_model_file_is_refused(tiny_model: E3DLSTM, path: Path, length: int) -> None:
    checkpoint.save(tiny_model, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        checkpoint.load_content(np.fromfile(path, np.uint8)[:length], path)


def test_equal_models_make_equal_bytes(tiny_model: E3DLSTM, path: Path) -> None:
    checkpoint.save(tiny_model, path)
    once = path.read_bytes()
    for _ in range(5):
        checkpoint.save(checkpoint.load(path), path)
        assert path.read_bytes() == once


def test_a_weight_of_another_network_and_a_missing_folder_are_named(tiny_model: E3DLSTM, path: Path) -> None:
    weights = {**tiny_model.state_dict(), "extra.weight": torch.zeros(1)}
    save_file(weights, path, card(tiny_model.config.to_dict()))
    with pytest.raises(CheckpointError, match=r"the file has the unknown weight extra\.weight; copy it again"):
        checkpoint.load(path)
    with pytest.raises(ConfigError, match="its folder does not exist; create it first"):
        checkpoint.save(tiny_model, path.parent / "no" / "model.safetensors")
