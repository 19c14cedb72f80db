"""The package in a zip archive, like a zipapp, and without installation metadata."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import e3d_deploy
from e3d_deploy.data.clips import PEDESTRIANS
from e3d_deploy.shipped import extracted

PROGRAM = """
import json, sys
from pathlib import Path

archive, bundle = sys.argv[1:]
sys.path.insert(0, archive)
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]

import e3d_deploy
from e3d_deploy.cli import main
from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.form import Form
from e3d_deploy.demo import report, tour
from e3d_deploy.export.settings import reference_clip
from e3d_deploy.measure import memory
from e3d_deploy.runtime import Bundle

assert Path(archive) in Path(e3d_deploy.__file__).parents
colour = ModelConfig(image_size=(32, 32), channels=3, patch_size=8, hidden=(4,), kernel_size=3, history_length=2)
pictures = [len(report.card_pictures(exhibit)) for exhibit in tour.SHIPPED]
print(reference_clip(Form.of(colour, Card()), 4, None).shape, pictures)
print(memory.peak_alone(Bundle.open(Path(bundle)), "onnxruntime", ["step"], threads=1) > 10_000_000)
main(["inspect", bundle, "--json"], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a zip archive of the package."""
    folder, source = tmp_path_factory.mktemp("zip"), Path(e3d_deploy.__file__).parent
    shutil.copytree(source, folder / "tree" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return Path(shutil.make_archive(str(folder / "package"), "zip", folder / "tree"))


def test_all_shipped_files_are_found_in_an_archive(archive: Path, exported: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(archive), str(exported / "tiny.e3d")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["(4, 3, 32, 32) [3, 3]", "True"]
    assert '"tiny"' in done.stdout


def test_an_archive_runs_as_a_program(archive: Path, tmp_path: Path) -> None:
    program = tmp_path / "app.pyz"
    shutil.copy(archive, program)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from e3d_deploy.__main__ import main; main()"
    command = [sys.executable, "-c", code, str(program), "--version"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.stdout.strip() == f"e3d, version {e3d_deploy.__version__}", done.stderr


def test_an_extracted_file_keeps_its_name_and_is_removed(archive: Path) -> None:
    import zipfile

    inside = zipfile.Path(archive) / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"
    before = set(Path(tempfile.gettempdir()).glob("e3d_deploy.*"))
    with extracted(inside) as path, extracted(PEDESTRIANS) as own:
        assert path.name == own.name == "pedestrians.mp4"
        assert path.read_bytes() == own.read_bytes()
    assert not path.exists()
    assert set(Path(tempfile.gettempdir()).glob("e3d_deploy.*")) <= before
