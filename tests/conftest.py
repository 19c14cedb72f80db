"""Shared fixtures, such as a tiny network and frames for it."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Predictor
from tests.fake_backend import FakeBackend, predictor_of
from tests.kept_steps import KeptSteps

if TYPE_CHECKING:
    from tests.fake_cuda import Machine

torch.set_num_threads(1)  # more threads slow down operations on tiny tensors
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells start background processes with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect the user's cache to a folder of this test run."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def homeless(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's home folder and any other place for a cache."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.fixture
def devices_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid new files in /dev. As root, code that replaces its output file instead of writing to it would destroy a
    device."""
    make = tempfile.mkdtemp

    def make_elsewhere(*args: Any, **options: Any) -> str:
        assert Path(options.get("dir") or "/tmp").resolve() != Path("/dev"), "a device would be replaced by a file"
        return make(*args, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", make_elsewhere)


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(image_size=(16, 24), patch_size=4, hidden=(4, 6), kernel_size=3, history_length=4)


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> E3DLSTM:
    torch.manual_seed(0)
    return E3DLSTM(tiny_config).eval().requires_grad_(False)


@pytest.fixture
def frame() -> Tensor:
    """Return frames [B, C, H, W]."""
    return torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clip() -> Tensor:
    """Return clips [B, T, C, H, W]."""
    return torch.rand(2, 7, 1, 16, 24, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def steps() -> KeptSteps:
    return KeptSteps()


@pytest.fixture
def kept_steps(steps: KeptSteps, monkeypatch: pytest.MonkeyPatch) -> KeptSteps:
    """Make `export` reuse steps that PyTorch has already exported, for tests of the later stages."""
    monkeypatch.setattr(bundle_module, "export_core", steps)
    return steps


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> Iterator[Path]:
    """Return a folder with a tiny model, a clip and its bundle; tests must not change it."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    config = ModelConfig(image_size=(16, 24), patch_size=4, hidden=(4, 6), kernel_size=3, history_length=4)
    checkpoint.save(E3DLSTM(config), folder / "tiny.safetensors")
    clip = np.random.default_rng(0).integers(0, 256, (8, 16, 24, 1), np.uint8)
    np.save(folder / "clip.npy", clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        export(
            folder / "tiny.safetensors",
            folder / "tiny.e3d",
            context_length=4,
            horizon=3,
            batch=1,
            reference=folder / "clip.npy",
        )
    before = (folder / "tiny.e3d" / "manifest.json").read_text()
    yield folder
    after = (folder / "tiny.e3d" / "manifest.json").read_text()
    assert after == before, "a test changed the bundle that all share"


@pytest.fixture(scope="session")
def shared(exported: Path, steps: KeptSteps) -> Path:
    """Return the tiny bundle with shared graphs only; tests must not change it."""
    lengths = {"context_length": 4, "horizon": 3, "batch": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        return export(
            exported / "tiny.safetensors",
            exported / "shared.e3d",
            backend="onnxruntime-cuda",  # this backend has no backend-specific graphs
            reference=exported / "clip.npy",
            **lengths,
        )


@pytest.fixture
def shared_path(shared: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle with shared graphs only, which a test may damage."""
    return Path(shutil.copytree(shared, tmp_path / "tiny.e3d"))


@pytest.fixture(scope="session")
def any_batch(exported: Path, steps: KeptSteps) -> Path:
    """Return the tiny bundle for any number of streams; tests must not change it."""
    lengths = {"context_length": 4, "horizon": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        return export(
            exported / "tiny.safetensors", exported / "any.e3d", batch=None, reference=exported / "clip.npy", **lengths
        )


@pytest.fixture(scope="session")
def two_streams(exported: Path) -> Path:
    """Return the tiny bundle for two streams at once; tests must not change it."""
    lengths = {"context_length": 4, "horizon": 3}
    return export(
        exported / "tiny.safetensors", exported / "two.e3d", batch=2, reference=exported / "clip.npy", **lengths
    )


@pytest.fixture
def bundle_path(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny bundle, which a test may damage."""
    return Path(shutil.copytree(exported / "tiny.e3d", tmp_path / "tiny.e3d"))


@pytest.fixture(scope="session")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra `rtx`)")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> "Machine":
    """Replace the `cuda.core` that `runtime/backends/cuda.py` uses by a simulated GPU."""
    from tests.fake_cuda import Machine, fake_core  # needs cuda.core, which is not available on every system

    machine = Machine()
    monkeypatch.setattr("e3d_deploy.runtime.backends.cuda.core", fake_core(machine))
    return machine


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def predictor(backend: FakeBackend) -> Iterator[Predictor]:
    with predictor_of(backend) as predictor:
        yield predictor
