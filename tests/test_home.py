"""Users without a home folder: nothing is cached, and no home folder is created."""

from pathlib import Path

import pytest

from e3d_deploy.files import cache_folder


@pytest.mark.parametrize("home", ["missing", "", "relative"])
@pytest.mark.parametrize("cache", [None, "", "relative"])
def test_without_a_home_folder_there_is_no_cache(
    home: str, cache: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: Path(home) if home != "missing" else tmp_path / home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if cache is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    with pytest.raises(FileNotFoundError, match="no home folder"):
        cache_folder("engines")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder("engines") == tmp_path / ".cache" / "e3d_deploy" / "engines"
    assert not any(tmp_path.iterdir())


def test_a_user_without_home_entry_has_no_cache(homeless: None) -> None:
    with pytest.raises(FileNotFoundError, match="set XDG_CACHE_HOME"):
        cache_folder("choices")
