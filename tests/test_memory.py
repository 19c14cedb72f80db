"""Free memory of the machine or its container, and the check before work that needs much memory."""

from pathlib import Path

import pytest

from e3d_deploy import memory
from e3d_deploy.errors import ResourceLimit


def test_a_container_has_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = memory.free_memory()
    assert machine is not None
    assert machine > 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300000\n")
    assert memory.free_memory() == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.free_memory() == 700_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert memory.free_memory() == 800_000  # the kernel drops cached files on demand
    (tmp_path / "memory.stat").unlink()
    memory.check_memory("a clip", 500_000, "take a shorter one")
    with pytest.raises(
        ResourceLimit, match=r"a clip: takes 0\.0 GB of memory, but only 0\.0 GB are free here; take a sho"
    ):
        memory.check_memory("a clip", 600_000, "take a shorter one")
