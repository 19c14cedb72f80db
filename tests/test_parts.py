"""Joining of models that are split into parts; damaged and missing parts, and parts of several runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from e3d_deploy import checkpoint, parts
from e3d_deploy.cli import main
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.tensors import KEY

MAX_BYTES = 20_000


@pytest.fixture
def folder(tiny_model: E3DLSTM, tmp_path: Path) -> Path:
    """Return the parts of two sets of one run: `a` after 10 steps, `b` after 20 steps."""
    folder = tmp_path / "parts"
    folder.mkdir()
    save(tiny_model, folder, "model-a", step=10)
    save(changed(tiny_model), folder, "model-b", step=20)
    return folder


def save(model: E3DLSTM, folder: Path, name: str, *, step: int, run: str = "run") -> list[Path]:
    return parts.save_parts(model, folder, name, run=run, step=step, max_bytes=MAX_BYTES)


def changed(model: E3DLSTM) -> E3DLSTM:
    other = E3DLSTM(model.config)
    other.load_state_dict({name: weight + 1 for name, weight in model.state_dict().items()})
    return other


def joined(folder: Path) -> parts.JoinedModel:
    return parts.join(parts.find_parts([folder]))


def rewrite(path: Path, **fields: object) -> None:
    """Change the metadata of a part."""
    with safe_open(path, "numpy") as file:
        card = json.loads(file.metadata()[KEY])
    save_file(load_file(path), path, {KEY: json.dumps({**card, **fields})})


def test_parts_join_to_the_float16_model(tiny_model: E3DLSTM, folder: Path, tmp_path: Path) -> None:
    written = sorted(folder.glob("model-a*"))
    count = len(written)
    assert count > 2
    assert written[0].name == f"model-a.part-1-of-{count}.safetensors"
    assert all(path.stat().st_size <= MAX_BYTES for path in written)
    found = parts.join(written)
    checkpoint.save(tiny_model, tmp_path / "whole.safetensors", dtype=torch.float16)
    assert found.content == (tmp_path / "whole.safetensors").read_bytes()
    assert (found.step, found.left_out) == (10, ())


def test_the_full_size_network_fits_into_two_parts(tmp_path: Path) -> None:
    paths = parts.save_parts(E3DLSTM(ModelConfig()), tmp_path, "model-a", run="run", step=1)
    assert [path.name for path in paths] == [f"model-a.part-{number}-of-2.safetensors" for number in (1, 2)]
    assert max(path.stat().st_size for path in paths) <= 16 * 2**20


def test_the_newest_complete_set_is_used(folder: Path) -> None:
    assert (joined(folder).step, joined(folder).left_out) == (20, ("step 10 is older",))


def test_a_set_that_was_being_replaced_is_not_used(tiny_model: E3DLSTM, folder: Path, tmp_path: Path) -> None:
    """The machine stopped while it wrote a set."""
    newer = save(tiny_model, tmp_path, "model-a", step=30)
    newer[0].replace(folder / newer[0].name)
    found = joined(folder)
    assert found.step == 20
    assert found.left_out[0].startswith("step 30 lacks model-a.part-2-of-")
    assert joined(folder).content == parts.join(sorted(folder.glob("model-b*"))).content


def test_a_missing_part_is_named(folder: Path) -> None:
    for path in folder.glob("*part-2*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no model is complete: step 20 lacks model-b\.part-2-of-\d\.saf"):
        joined(folder)


def test_parts_of_two_runs_are_refused_by_name(tiny_model: E3DLSTM, folder: Path) -> None:
    other = save(tiny_model, folder, "model-b", step=20, run="other")[0]
    with pytest.raises(CheckpointError, match=rf"{other.name}: belongs to a different run than model-a\.part-1"):
        joined(folder)


def test_a_part_given_twice_is_refused_by_name(folder: Path) -> None:
    (folder / "copy.part-1-of-9.safetensors").write_bytes(next(folder.glob("model-a.part-1-*")).read_bytes())
    with pytest.raises(CheckpointError, match=r"model-a\.part-1-of-\d\.safetensors: is the same part as .*copy\.part"):
        joined(folder)


def test_a_damaged_part_is_named_and_the_older_set_is_used(folder: Path) -> None:
    part = next(folder.glob("model-b.part-2-*"))
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    for damaged, words in ((content, "is damaged"), (content[:1000], "not a safetensors file"), (b"", "not a safet")):
        part.write_bytes(damaged)
        found = joined(folder)
        assert found.step == 10
        assert f"{part.name}: {words}" in found.left_out[0]
        assert "fetch it again" in found.left_out[0]
    older = next(folder.glob("model-a.part-1-*"))
    older.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"no model is complete: .*{part.name}: not .*; fetch these parts again"):
        joined(folder)


def test_a_damaged_part_of_the_older_set_does_not_matter(folder: Path) -> None:
    next(folder.glob("model-a.part-1-*")).write_bytes(b"")
    assert joined(folder).step == 20


def test_wrong_metadata_is_refused(folder: Path) -> None:
    part = next(folder.glob("model-b.part-1-*"))
    for fields, words in (
        ({"part_format": 2}, "a part of a different format, but this version joins format 1; update e3d_deploy"),
        ({"part_format": 1, "colour": "red"}, "not a part of a model"),
    ):
        rewrite(part, **fields)
        assert joined(folder).step == 10
        assert words in joined(folder).left_out[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"step": "10"},
        {"step": True},
        {"run": 1},
        {"sha256": None},
        {"number": 0},
        {"number": 1.0},
        {"step": -5},
        {"count": 10**9},
    ],
)
def test_metadata_with_invalid_values_is_refused(folder: Path, fields: dict[str, object]) -> None:
    part = next(folder.glob("model-b.part-1-*"))
    rewrite(part, **fields)
    with pytest.raises(CheckpointError, match=rf"{part.name}: not a part of a model"):
        parts.read_metadata(part)


@pytest.mark.parametrize(
    "header",
    [
        {"bytes": {"dtype": "U8", "shape": [10**30], "data_offsets": [0, 10**30]}},
        {"__metadata__": {KEY: "[" * 100_000}},
    ],
)
def test_huge_numbers_and_deep_nesting_are_refused(tmp_path: Path, header: dict[str, object]) -> None:
    path, text = tmp_path / "model-a.part-1-of-1.safetensors", json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match=path.name):
        parts.join([path])


def test_parts_with_different_counts_belong_to_two_sets(folder: Path) -> None:
    part = next(folder.glob("model-b.part-1-*"))
    rewrite(part, count=20)
    found = joined(folder)
    assert found.step == 10
    assert [remark[:12] for remark in found.left_out] == ["step 20 lack", "step 20 lack"]


def test_three_missing_parts_are_named(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    written = parts.save_parts(tiny_model, tmp_path, "model-a", run="run", step=1, max_bytes=6000)
    assert len(written) > 5
    with pytest.raises(CheckpointError, match=rf"lacks (\S+, ){{2}}\S+ and {len(written) - 4} more; fetch these"):
        parts.join(written[:1])


def test_a_part_given_by_two_paths_is_used_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    found = parts.find_parts([folder, Path("parts"), next(Path("parts").glob("*part-1*"))])
    assert found == sorted(folder.iterdir())


def test_a_weight_beyond_float16_is_refused_by_name(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    weights = changed(tiny_model)
    name, weight = next(iter(weights.named_parameters()))
    weight.data.view(-1)[0] = -70_000
    with pytest.raises(CheckpointError, match=rf"{name}: got a weight of 70000, expected at most 65504; write this"):
        save(weights, tmp_path, "model-a", step=1)
    assert not list(tmp_path.iterdir())
    checkpoint.save(weights, tmp_path / "whole.safetensors")


def test_complete_model_files_are_not_parts(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    checkpoint.save(tiny_model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a part of a model"):
        parts.join([tmp_path / "model.safetensors"])


def test_a_size_without_room_for_bytes_is_refused(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_bytes: got 100"):
        parts.save_parts(tiny_model, tmp_path, "model-a", run="run", step=1, max_bytes=100)
    with pytest.raises(ConfigError, match=r"max_bytes: 4100 needs \d+ parts, expected at most 64; allow more bytes"):
        parts.save_parts(tiny_model, tmp_path, "model-a", run="run", step=1, max_bytes=4100)


def command(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["join", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stderr


def test_join_writes_a_model_that_loads_and_says_which_step(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    said = command(folder, "-o", output)
    assert "step 20, " in said
    assert "skipped: step 10 is older" in said
    assert checkpoint.load(output).state_dict().keys()
    assert "already exists; give --overwrite" in command(folder, "-o", output, code=2)
    command(*folder.glob("model-a*"), "-o", output, "--overwrite")
    part = next(folder.glob("model-a*"))
    before = part.read_bytes()
    assert "is an input and would be overwritten" in command(folder, "-o", part, "--overwrite", code=2)
    assert part.read_bytes() == before
    assert "its folder does not exist" in command(folder, "-o", tmp_path / "no" / "model.safetensors", code=2)
    (tmp_path / "empty").mkdir()
    assert "empty: got a folder, expected the path of a model file" in command(
        folder, "-o", tmp_path / "empty", "--overwrite", code=2
    )
    assert "has no *.part-*" in command(tmp_path / "empty", "-o", output, "--overwrite", code=5)
    assert "no such file or folder" in command(tmp_path / "absent", "-o", output, "--overwrite", code=2)
    next(folder.glob("model-a.part-1-*")).unlink()
    next(folder.glob("model-b.part-1-*")).unlink()
    assert "no model is complete" in command(folder, "-o", output, "--overwrite", code=5)


def test_join_needs_no_pytorch(folder: Path) -> None:
    code = f"""
import sys
for name in ("torch", "safetensors", "onnx"):
    sys.modules[name] = None
from pathlib import Path
from e3d_deploy import parts
print(parts.join(parts.find_parts([Path({str(folder)!r})])).step)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "20\n"
