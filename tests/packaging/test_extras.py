"""Extras of the package: what they install, and on which systems."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from e3d_deploy.libraries import LIBRARIES
from tests.packaging.environments import CONSTRAINTS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
MAC = {"sys_platform": "darwin", "platform_machine": "arm64", "python_version": "3.13"}
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.13"}
NOT_ON_A_MAC = re.compile("nvidia|cuda|tensorrt|onnxruntime-gpu")
"""Distributions without wheels for macOS."""


def distributions(extra: str, system: dict[str, str]) -> set[str]:
    """Return the distributions that an extra installs on a system, with those of the extras in it."""
    found: set[str] = set()
    for one in EXTRAS[extra]:
        if one.marker is None or one.marker.evaluate(dict(system)):
            own = one.name == PROJECT["name"]
            found.update(*(distributions(name, system) for name in one.extras) if own else [{one.name}])
    return found


@pytest.mark.parametrize("extra", ["demo", "all"])
def test_no_library_of_nvidia_is_installed_on_a_mac(extra: str) -> None:
    assert "onnxruntime" in distributions(extra, MAC)
    assert [name for name in distributions(extra, MAC) if NOT_ON_A_MAC.search(name)] == []
    assert "tensorrt-rtx-cu13-libs" in distributions(extra, LINUX)


def test_the_demo_installs_no_tool_of_developers_and_no_library_that_it_does_not_use() -> None:
    unused = {"lightning", "tensorflow-cpu", "openvino", "cuda-core", "nvidia-cuda-nvrtc", "pytest", "scikit-image"}
    assert distributions("dev", LINUX) >= unused
    assert distributions("demo", LINUX).isdisjoint(unused)


def test_developers_have_the_libraries_of_the_demo() -> None:
    """`make demo` installs nothing in the environment of `make setup`."""
    assert distributions("dev", LINUX) >= distributions("demo", LINUX)


def test_no_extra_installs_both_builds_of_onnxruntime() -> None:
    """They overwrite each other's files."""
    both = {"onnxruntime", "onnxruntime-gpu"}
    assert [extra for extra in EXTRAS if distributions(extra, LINUX) >= both] == []


def test_the_constraints_pin_the_compiler_that_pytorch_for_cuda_requires() -> None:
    """PyTorch for the CPU, which the tests use, does not depend on it, so only this test notices a conflict.

    If you pin another PyTorch, look up the version of nvidia-cuda-nvrtc that its cuda-toolkit requires.
    """
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    assert (pinned["torch"], pinned["nvidia-cuda-nvrtc"]) == ("2.13.0", "13.0.88")


def test_developers_have_no_library_without_a_constraint() -> None:
    pinned = {canonicalize_name(line.split("==")[0]) for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    wanted = {canonicalize_name(name) for name in distributions("dev", LINUX)}
    assert wanted - pinned - {"setuptools"} == set()


def test_the_triton_server_runs_the_versions_of_the_constraints() -> None:
    """A server gives the bits of the local runtime only with the same libraries; its NumPy has to be older."""
    server, pinned = ROOT / "deploy" / "triton" / "requirements.txt", CONSTRAINTS.read_text().splitlines()
    lines = [line for line in server.read_text().splitlines() if "==" in line]
    assert [line.split("==")[0] for line in lines if line not in pinned] == ["nvidia-pytriton", "numpy"]


def test_the_doctor_lists_a_library_of_every_extra_that_users_install() -> None:
    listed = {package for library in LIBRARIES for package in library.packages}
    assert [extra for extra in EXTRAS if extra != "docs" and not listed & distributions(extra, LINUX)] == []
    assert len({library.module for library in LIBRARIES}) == len(LIBRARIES)


def test_the_docs_list_every_extra_and_no_other() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    table = page.partition("## Extras")[2].partition("\n## ")[0]
    named = {name for text in re.findall(r"`([a-z,-]+)`", table) for name in text.split(",")}
    assert named - {"onnxruntime", "onnxruntime-gpu"} == set(EXTRAS)


def test_the_commands_of_the_docs_name_extras_that_exist() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*/README.md"), ROOT / "DESCRIPTION.md"]
    named = re.findall(r"(?:e3d_deploy|\.whl|'\.|\"\.)\[([a-z,-]+)\]", "\n".join(page.read_text() for page in pages))
    assert len(named) > 10
    assert {name for text in named for name in text.split(",")} <= set(EXTRAS)
