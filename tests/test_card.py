"""Card of a model, in the model file and in the bundle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from e3d_deploy import checkpoint
from e3d_deploy.card import Card, Decay, Window
from e3d_deploy.errors import BundleError, CheckpointError, ConfigError
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle


def decay(**errors: float) -> Decay:
    """Return a decay for C = 3 and a horizon of 1. An argument such as a18=1.2 sets the error at age 18."""
    mse = {3: (1.0,)} | {int(age[1:]): (error,) for age, error in errors.items()}
    return Decay(context_length=3, data="clips.npz", clips=32, mse=mse, copy_last=(2.0,))


CARD = Card(
    window=Window(context_length=3, horizon=1, interval_ms=40.0, interval_range_ms=(33.3, 40.0)),
    decay=decay(a1=1.5, a18=1.01),
    notes={"later": [1]},
)


def test_card_survives_json() -> None:
    assert Card.from_dict(json.loads(json.dumps(CARD.to_dict()))) == CARD
    assert Card.from_dict({}) == Card()


def test_ages_are_ascending_after_json() -> None:
    card = Card(decay=decay(a18=1.0, a2=1.0))
    found = Card.from_dict(json.loads(json.dumps(card.to_dict()))).decay
    assert found is not None
    assert list(found.mse) == [2, 3, 18]


def test_model_file_carries_its_card(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(tiny_model, path)
    assert checkpoint.read_card(path) == Card()
    checkpoint.write_card(path, CARD)
    assert checkpoint.read_card(path) == CARD
    weights = checkpoint.load(path).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in tiny_model.state_dict().items())
    checkpoint.save(tiny_model, path, card=CARD)
    assert checkpoint.read_card(path) == CARD


def test_writing_a_card_replaces_a_link_and_not_the_file_behind_it(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    stored = tmp_path / "blobs" / "361fc28e"
    stored.parent.mkdir()
    checkpoint.save(tiny_model, stored)
    before = stored.read_bytes()
    path = tmp_path / "model.safetensors"
    path.symlink_to("blobs/361fc28e")
    checkpoint.write_card(path, CARD)
    assert stored.read_bytes() == before
    assert not path.is_symlink()
    assert checkpoint.read_card(path) == CARD


def test_damaged_card_in_a_model_file_is_refused(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(tiny_model, path, card=Card(notes={"window": {"context_length": 3}}))
    with pytest.raises(CheckpointError, match=r"model.safetensors: card: an entry is damaged"):
        checkpoint.read_card(path)


@pytest.mark.usefixtures("kept_steps")
def test_bundle_contains_the_card_but_its_digest_does_not_depend_on_it(exported: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(exported / "tiny.safetensors", tmp_path))
    checkpoint.write_card(path, CARD)
    lengths = {"context_length": 4, "horizon": 3, "batch": 1, "reference": exported / "clip.npy"}
    plain, carded = Bundle.open(exported / "tiny.e3d"), Bundle.open(export(path, tmp_path / "carded.e3d", **lengths))
    assert (plain.card, carded.card) == (Card(), CARD)
    assert plain.digest == carded.digest


def test_bundle_without_a_card_is_opened_and_a_damaged_one_refused(bundle_path: Path) -> None:
    path = bundle_path
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("card", None)
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert Bundle.open(path).card == Card()
    for damaged in ([1], {"window": {"context_length": 0, "horizon": 1}}, {"decay": {}}):
        (path / "manifest.json").write_text(json.dumps({**manifest, "card": damaged}))
        with pytest.raises(BundleError, match=r"manifest.json: .*card.*; export the model again"):
            Bundle.open(path)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (decay(a1=9.0, a18=1.03), True),
        (decay(a18=1.04), False),
        (decay(a4=1.04, a18=1.0), False),
        (decay(a17=1.0), False),
    ],
)
def test_a_state_is_ageless_if_ages_are_high_enough_and_none_is_worse(found: Decay, expected: bool) -> None:
    assert found.ageless is expected


@pytest.mark.parametrize(
    "build",
    [
        lambda: Window(context_length=0, horizon=1),
        lambda: Window(context_length=1, horizon=1, interval_ms=0.0),
        lambda: Decay(context_length=3, data="", clips=1, mse={4: (1.0,)}, copy_last=(1.0,)),
        lambda: decay(a4=float("nan")),
        lambda: Decay(context_length=3, data="", clips=1, mse={3: (1.0, 2.0)}, copy_last=(1.0,)),
        lambda: Decay(context_length=3, data="", clips=1, mse={3: (1.0,)}, copy_last=(float("nan"),)),
        lambda: Decay(context_length=3, data="", clips=1, mse={3: ()}, copy_last=()),
        lambda: Card.from_dict([1]),  # type: ignore[arg-type]
    ],
)
def test_invalid_values_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()


def test_facts_of_a_later_version_do_not_make_a_card_unreadable() -> None:
    entries = CARD.to_dict()
    later = {name: {**entry, "later": 1} if isinstance(entry, dict) else entry for name, entry in entries.items()}
    assert Card.from_dict(later) == CARD


MEASURED = {"context_length": 3, "data": "", "clips": 1, "mse": {"3": [1.0, 2.0]}, "copy_last": [1.0, 2.0]}


@pytest.mark.parametrize(
    "entries",
    [
        [],
        None,
        "card",
        {"window": {"context_length": 10**30, "horizon": 1}},
        {"window": {"context_length": 1, "horizon": 1, "interval_ms": 10**400}},
        {"window": {"context_length": 1, "horizon": 1, "interval_range_ms": [1.0]}},
        {"window": {"context_length": 1, "horizon": 1, "interval_range_ms": [None, 1.0]}},
        {"decay": {**MEASURED, "mse": {"3": []}, "copy_last": []}},
        {"decay": {**MEASURED, "mse": {"3": [1e308, 1e308]}}},
        {"decay": {**MEASURED, "mse": {"3": [10**400, 1.0]}}},
        {"decay": {**MEASURED, "mse": {"3": [-1.0, 1.0]}}},
        {"decay": {**MEASURED, "mse": {"3": [1.0, 2.0], "-5": [1.0, 2.0]}}},
        {"decay": {**MEASURED, "copy_last": [float("nan"), 1.0]}},
        {"decay": {**MEASURED, "context_length": 3.0}},
        {"decay": {**MEASURED, "context_length": -1, "mse": {"-1": [1.0, 2.0]}}},
        {"decay": {**MEASURED, "clips": "many"}},
    ],
)
def test_damaged_entries_are_refused_by_name(entries: Any) -> None:
    """No damaged entry may cause an error later, for example in the report or in the frames that a stream keeps."""
    assert Card.from_dict({"decay": MEASURED}).decay is not None
    with pytest.raises(ConfigError, match="card: "):
        Card.from_dict(entries)


def test_error_for_a_card_that_is_not_an_object_names_the_file(
    tiny_model: E3DLSTM, tmp_path: Path, bundle_path: Path
) -> None:
    checkpoint.save(tiny_model, tmp_path / "odd.safetensors")
    odd: Any = SimpleNamespace(to_dict=lambda: [1])
    checkpoint.write_card(tmp_path / "odd.safetensors", odd)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: card: got list"):
        checkpoint.read_card(tmp_path / "odd.safetensors")
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, "card": [1]}))
    with pytest.raises(BundleError, match="card"):
        Bundle.open(bundle_path)
