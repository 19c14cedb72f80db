"""Copies of e3d_deploy, in fake installations."""

import json
from pathlib import Path

import pytest

from e3d_deploy.doctor import shadow_faults as module
from e3d_deploy.doctor.shadow_faults import shadow_faults
from e3d_deploy.doctor.site import Site
from tests.doctor.fakes import install, only

HERE = Path(module.__file__).parents[2].resolve()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site with an editable installation of this copy of e3d_deploy."""
    found = install(tmp_path, "e3d_deploy", "0.1.0")
    link = {"dir_info": {"editable": True}, "url": f"file://{HERE}"}
    (tmp_path / "e3d_deploy-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(link))
    return found


def test_the_address_of_an_editable_installation_may_contain_spaces(tmp_path: Path) -> None:
    found = install(tmp_path / "site-packages", "e3d_deploy", "0.1.0")
    link = {"dir_info": {"editable": True}, "url": f"file://{tmp_path}/my%20copy"}
    (tmp_path / "site-packages" / "e3d_deploy-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(link))
    assert found.all("e3d_deploy")[0].source == tmp_path / "my copy"


def test_an_environment_may_hide_another_installation(site: Site, tmp_path: Path) -> None:
    install(tmp_path / "system", "e3d_deploy", "0.0.9")
    assert shadow_faults(Site((*site.path, str(tmp_path / "system")))) == []
    fault = only(shadow_faults(Site((str(tmp_path / "system"), *site.path))), "e3d-shadowed")
    assert str(tmp_path / "system") in fault.what


def test_the_metadata_of_a_source_folder_are_not_an_installation(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "e3d_deploy.egg-info").mkdir(parents=True)
    (source / "pyproject.toml").touch()
    (source / "e3d_deploy.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: e3d_deploy\nVersion: 0.1\n")
    assert shadow_faults(Site((*site.path, str(source)))) == []


def test_a_copy_that_hides_the_installed_one_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    site = install(tmp_path / "site-packages", "e3d_deploy", "0.1.0")
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere:{HERE}")
    fault = only(shadow_faults(site), "e3d-shadowed")
    assert fault.what == f"Python imports e3d_deploy from {HERE}, but pip installed it in {tmp_path / 'site-packages'}"
    assert fault.command == "unset PYTHONPATH"
    monkeypatch.delenv("PYTHONPATH")
    assert shadow_faults(site)[0].command == f"pip install -e {HERE}"
    monkeypatch.chdir(HERE)
    assert shadow_faults(site)[0].command == "cd ~"
