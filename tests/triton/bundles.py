"""Bundles that several tests serve."""

from pathlib import Path

import pytest

from e3d_deploy.export import bundle as bundle_module
from tests.kept_steps import KeptSteps


def export_any_batch(exported: Path, output: Path, steps: KeptSteps) -> Path:
    """Export the tiny model of the fixture `exported` as a bundle whose graphs take any number of streams."""
    model, clip = exported / "tiny.safetensors", exported / "clip.npy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        bundle_module.export(model, output, context_length=4, horizon=3, batch=None, reference=clip)
    return output
