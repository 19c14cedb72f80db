"""Former names of options and arguments work for one more version, with a warning."""

from pathlib import Path

import pytest

from e3d_deploy.commands._renamed import RENAMED, present_names
from e3d_deploy.export.bundle import export
from tests.tools import e3d


def test_a_former_option_means_the_present_one(tmp_path: Path) -> None:
    ended = e3d("export", tmp_path / "none.safetensors", "-o", tmp_path / "o.e3d", "--target=abacus", code=2)
    assert "Warning: --target is now --backend; the former name will be removed in version 0.3" in ended.stderr
    assert "'--backend': 'abacus' is not one of" in ended.stderr


@pytest.mark.parametrize(("command", "former"), [(command, old) for command, all_ in RENAMED.items() for old in all_])
def test_a_former_option_is_not_in_the_help(command: str, former: str) -> None:
    text = e3d(command, "--help").stdout
    assert f"{former} " not in text
    assert RENAMED[command][former] in text


def test_commands_that_have_an_option_of_a_former_name_keep_it() -> None:
    assert present_names(["build", "b.e3d", "--target", "tensorrt"]) == (["build", "b.e3d", "--target", "tensorrt"], [])


def test_export_takes_its_former_argument_with_a_warning(tmp_path: Path) -> None:
    with (
        pytest.warns(DeprecationWarning, match=r"export\(target=…\) is now export\(backend=…\)"),
        pytest.raises(ValueError, match="backend: got 'abacus', expected one of tensorrt"),
    ):
        export(tmp_path / "none.safetensors", tmp_path / "o.e3d", target="abacus")
