"""Contents and metadata of the wheel and the source distribution."""

import ast
import hashlib
import re
import tarfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

import e3d_deploy
from tests.packaging.environments import ROOT

PACKAGE = Path(e3d_deploy.__file__).parent
READ = ("docs", "deploy", "examples", "requirements")
"""Folders of the repository that the source distribution contains as a whole."""


@pytest.fixture(scope="module")
def wheel(archives: Path) -> dict[str, bytes]:
    """Return the files of the wheel by name."""
    (path,) = archives.glob("*.whl")
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def source(archives: Path) -> dict[str, bytes]:
    """Return the files of the source distribution by name, without its top folder."""
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {one.name.partition("/")[2]: archive.extractfile(one) for one in archive if one.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    return message_from_bytes(next(content for name, content in wheel.items() if name.endswith("/METADATA")))


def files_below(folder: Path) -> set[str]:
    """Return the files of a folder of the repository by their path in it, without what tools leave there."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)}


def hashes(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_the_wheel_contains_every_file_of_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    package = {name.removeprefix("e3d_deploy/") for name in wheel if ".dist-info/" not in name}
    assert package == files_below(PACKAGE)
    assert sorted(name.split("/", 1)[1] for name in wheel if ".dist-info/" in name) == [
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    ]


def test_the_source_distribution_contains_the_package_and_what_its_reader_needs(source: dict[str, bytes]) -> None:
    generated = {name for name in source if name.startswith("e3d_deploy.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    folders = {f"{folder}/{name}" for folder in READ for name in files_below(ROOT / folder)}
    package = {f"e3d_deploy/{name}" for name in files_below(PACKAGE)}
    single = {"CHANGELOG.md", "DESCRIPTION.md", "LICENSE", "MANIFEST.in", "README.md", "models/README.md"}
    visible = {name for name in folders if not re.search(r"(^|/)\.", name)}
    assert set(source) - generated == package | visible | single | {"pyproject.toml"}


def test_both_archives_contain_the_same_package(wheel: dict[str, bytes], source: dict[str, bytes]) -> None:
    """The wheel is built from the source distribution, whose files must be those of the checkout."""
    built = {name: content for name, content in wheel.items() if ".dist-info/" not in name}
    assert hashes(built) == hashes({name: source[name] for name in built})
    assert hashes(built) == hashes(
        {f"e3d_deploy/{name}": (PACKAGE / name).read_bytes() for name in files_below(PACKAGE)}
    )


def test_no_archive_names_a_path_of_the_machine_that_built_it(
    wheel: dict[str, bytes], source: dict[str, bytes]
) -> None:
    home = str(ROOT).encode()
    assert [name for name, content in {**source, **wheel}.items() if home in content] == []


def test_no_error_names_a_file_that_only_the_repository_has() -> None:
    found = []
    for file in PACKAGE.rglob("*.py"):
        raised = (one for one in ast.walk(ast.parse(file.read_text())) if isinstance(one, ast.Raise))
        texts = (str(part.value) for one in raised for part in ast.walk(one) if isinstance(part, ast.Constant))
        found += [text for text in texts if re.search(r"\b(docs|benchmarks|tests|deploy)/", text)]
    assert found == []


def test_the_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "e3d_deploy"
    assert metadata["Version"] == e3d_deploy.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_description_reads_the_same_on_a_package_index(metadata: Message) -> None:
    """An index shows no file of the repository, so a relative link or picture would be broken."""
    description = str(metadata.get_payload())
    assert description.startswith("# e3d_deploy")
    assert [link for link in re.findall(r"\]\(([^)]*)\)", description) if "://" not in link] == []


def test_the_package_is_typed_and_its_command_is_installed(wheel: dict[str, bytes]) -> None:
    assert "e3d_deploy/py.typed" in wheel
    (entries,) = (content for name, content in wheel.items() if name.endswith("/entry_points.txt"))
    assert entries.decode().split() == ["[console_scripts]", "e3d", "=", "e3d_deploy.__main__:main"]
