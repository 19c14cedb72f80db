"""The engine cache, the sidecars, and the leftovers of killed or failed builds."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.bundle.folder import read_manifest
from e3d_deploy.bundle.plans import load_plan
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.config import EngineConfig
from e3d_deploy.errors import BundleError, ConfigError
from e3d_deploy.export.engines import build as build_module
from e3d_deploy.export.engines.build import build
from e3d_deploy.export.engines.cache import PLAN, SIDECAR, EngineCache
from e3d_deploy.files import cache_folder, locked
from e3d_deploy.runtime import Bundle
from tests.fake_tensorrt import FakeTensorRT
from tests.manifests import changed, rewrite
from tests.tools import e3d


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(plan=b"plan" * 100)
    monkeypatch.setattr(build_module, "library", lambda _: fake)
    return fake


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def build_rtx(path: Path, cache: EngineCache, **options: Any) -> tuple[dict[str, EngineSidecar], list[str]]:
    """Build with TensorRT-RTX; return sidecars and remarks."""
    remarks: list[str] = []
    config = EngineConfig(**options)
    return build(Bundle.open(path), "tensorrt-rtx", config, cache=cache, remark=remarks.append), remarks


def test_a_second_build_takes_cached_engines(trt: FakeTensorRT, cache: EngineCache, bundle_path: Path) -> None:
    first, remarks = build_rtx(bundle_path, cache)
    graphs = list(Bundle.open(bundle_path).graphs)
    assert remarks == [f"{graph}: not cached: no {graph} was built before" for graph in graphs]
    shutil.rmtree(bundle_path / "engines")
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if "/" not in name}
    (bundle_path / "manifest.json").write_text(json.dumps(manifest))

    trt.plan = b"never built"
    second, remarks = build_rtx(bundle_path, cache)
    assert remarks == [f"{graph}: taken from the cache" for graph in graphs]
    assert {graph: replace(one, cached=False) for graph, one in second.items()} == first
    assert all(one.cached for one in second.values())
    bundle = Bundle.open(bundle_path)  # its manifest has the hashes of the plans from the cache
    assert load_plan(bundle, "step", target="tensorrt-rtx", version="10.7.0") == b"plan" * 100


def test_building_the_same_again_changes_nothing(trt: FakeTensorRT, cache: EngineCache, bundle_path: Path) -> None:
    build_rtx(bundle_path, cache)
    build_rtx(bundle_path, cache)
    build_rtx(bundle_path, cache)
    assert trt.built == len(Bundle.open(bundle_path).graphs)
    assert [file.name for file in bundle_path.iterdir() if file.name.startswith(".")] == []


def test_a_cache_miss_names_the_changed_input(trt: FakeTensorRT, cache: EngineCache, bundle_path: Path) -> None:
    build_rtx(bundle_path, cache)
    _, remarks = build_rtx(bundle_path, cache, optimization_level=5)
    assert remarks[0] == "step: not cached: optimization_level 3 → 5"
    trt.__version__ = "10.8.0"
    _, remarks = build_rtx(bundle_path, cache, optimization_level=5)
    assert remarks[0] == "step: not cached: builder 10.7.0 → 10.8.0"
    _, remarks = build_rtx(bundle_path, cache, optimization_level=5, compute_capabilities=("8.6",))
    assert remarks[0] == "step: not cached: compute_capability portable → 8.6"  # the nearest of three


def test_a_timing_cache_is_not_part_of_the_key(trt: FakeTensorRT, cache: EngineCache, bundle_path: Path) -> None:
    build_rtx(bundle_path, cache)
    _, remarks = build_rtx(bundle_path, cache, timing_cache="timing")
    assert remarks[1] == "step: taken from the cache"


@pytest.mark.parametrize("damage", ["plan", "sidecar", "missing", "foreign"])
def test_a_damaged_entry_is_not_used(
    damage: str, trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_path, tmp_path / "other.e3d")
    sidecars, _ = build_rtx(bundle_path, cache)
    entry = cache.folder / str(sidecars["step"].key)
    if damage == "plan":
        (entry / PLAN).write_bytes(b"code" * 100)
    elif damage == "sidecar":
        (entry / SIDECAR).write_text("{")
    elif damage == "missing":
        (entry / PLAN).unlink()
    else:
        shutil.copy(cache.folder / str(sidecars["clip"].key) / SIDECAR, entry / SIDECAR)
    assert set(cache.damaged()) == {entry.name}
    built = trt.built
    _, remarks = build_rtx(tmp_path / "other.e3d", cache)
    assert remarks[0] == f"cache entry {entry.name[:12]} is damaged and was removed; building again"
    assert trt.built == built + 1
    assert cache.damaged() == {}
    bundle = Bundle.open(tmp_path / "other.e3d")
    assert load_plan(bundle, "step", target="tensorrt-rtx", version="10.7.0") == b"plan" * 100


def test_a_copied_cache_is_used(trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, tmp_path: Path) -> None:
    """The modification times of the copy differ, so its plans are hashed."""
    build_rtx(bundle_path, cache)
    shutil.copytree(cache.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy").chmod(0o700)
    _, remarks = build_rtx(bundle_path, EngineCache(tmp_path / "copy"))
    assert remarks[0] == "step: taken from the cache"


def test_another_file_system_gets_a_copy(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, destination: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    build_rtx(bundle_path, cache)
    _, remarks = build_rtx(bundle_path, cache)
    assert remarks[0] == "step: taken from the cache"
    assert (bundle_path / "engines" / "step.tensorrt-rtx.plan").stat().st_nlink == 1
    Bundle.open(bundle_path)


def test_least_recently_used_engines_are_removed(trt: FakeTensorRT, bundle_path: Path, tmp_path: Path) -> None:
    graphs = len(Bundle.open(bundle_path).graphs)
    cache = EngineCache(
        tmp_path / "cache", limit_bytes=400 * (graphs + 1)
    )  # room for the graphs of a bundle and one more
    build_rtx(bundle_path, cache)
    for age, entry in enumerate(cache.entries()):
        os.utime(cache.folder / entry.key / SIDECAR, (age, age))
    build_rtx(bundle_path, cache)
    assert all(one.used.year > 2000 for one in cache.entries())  # used again
    build_rtx(bundle_path, cache, optimization_level=1)
    assert len(cache.entries()) == graphs + 1
    assert sum(one.sidecar.options.extra["optimization_level"] == 1 for one in cache.entries()) == graphs
    build_rtx(bundle_path, EngineCache(tmp_path / "cache", limit_bytes=399), optimization_level=2)
    assert all(one.sidecar.options.extra["optimization_level"] != 2 for one in cache.entries())  # larger than the limit


def test_of_two_builds_with_one_key_the_second_waits(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_path, tmp_path / "other.e3d")
    key = str(build_rtx(bundle_path, EngineCache(tmp_path / "elsewhere"))[0]["step"].key)
    remarks: list[str] = []
    built = trt.built
    with cache.lock(key):
        thread = threading.Thread(target=lambda: remarks.extend(build_rtx(tmp_path / "other.e3d", cache)[1]))
        thread.start()
        time.sleep(0.2)
        assert trt.built == built  # it waits
    thread.join()
    assert remarks[0] == "step: another process builds this engine; waiting for it"


def test_a_lock_ends_with_its_process_and_its_file_is_removed_later(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    code = f"""
import os, signal
from pathlib import Path
from e3d_deploy.export.engines.cache import EngineCache
with EngineCache(Path({str(cache.folder)!r})).lock({"a" * 64!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    lock = cache.folder / f"{'a' * 64}.lock"
    assert lock.exists()
    EngineCache(cache.folder)
    assert list(cache.folder.iterdir()) == []
    with cache.lock("a" * 64):
        EngineCache(cache.folder)
        assert lock.exists()  # a lock that is in use is not removed


def test_other_files_in_the_cache_folder_stay(trt: FakeTensorRT, bundle_path: Path, tmp_path: Path) -> None:
    """`e3d cache rm --all --cache .` removes no source files of a project."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "poetry.lock").write_text("packages")
    (folder / "src" / SIDECAR).write_text("{}")
    cache = EngineCache(folder)
    build_rtx(bundle_path, cache)
    assert len(cache.keys()) == len(Bundle.open(bundle_path).graphs)
    assert cache.damaged() == {}
    e3d("cache", "rm", "--all", "--cache", folder)
    assert {file.name for file in folder.iterdir()} == {"src", "poetry.lock", "durations.json"}


def test_commands_that_read_a_cache_do_not_create_it(tmp_path: Path) -> None:
    for command in (["ls"], ["verify"], ["rm", "--all"]):
        error = e3d("cache", *command, "--cache", tmp_path / "typo", code=2).stderr
        assert "typo: no such folder; `e3d build` creates it, or give another with --cache" in error
    assert not (tmp_path / "typo").exists()
    (tmp_path / "file").touch()
    error = e3d("cache", "ls", "--cache", tmp_path / "file" / "engines", code=2).stderr
    assert f"{tmp_path / 'file'} is not a folder" in error


@pytest.mark.parametrize("sidecar", ["str", [], {"parts": {}}])
def test_an_invalid_sidecar_is_listed_and_not_used(
    sidecar: object, trt: FakeTensorRT, cache: EngineCache, bundle_path: Path
) -> None:
    key = str(build_rtx(bundle_path, cache)[0]["step"].key)
    (cache.folder / key / SIDECAR).write_text(json.dumps(sidecar))
    lines = e3d("cache", "ls", "--cache", cache.folder).stdout.splitlines()
    assert [line.split() for line in lines if "damaged" in line] == [[key[:12], "damaged"]]
    listed = json.loads(e3d("cache", "ls", "--cache", cache.folder, "--json").stdout)
    assert listed["damaged"] == [key]
    assert set(cache.damaged()) == {key}
    _, remarks = build_rtx(bundle_path, cache)
    assert remarks[0] == f"cache entry {key[:12]} is damaged and was removed; building again"
    assert cache.damaged() == {}


def test_a_lock_whose_file_was_removed_is_another_lock(tmp_path: Path) -> None:
    existed = []

    def wait_for_it() -> None:
        with locked(tmp_path / "lock"):
            existed.append((tmp_path / "lock").exists())

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        time.sleep(0.1)
        assert not existed
    thread.join(60)
    assert existed == [True]  # the waiting thread created its own file
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(ConfigError, match="other users can write to it, and engines are native code"):
        EngineCache(tmp_path / "shared")


def test_a_cache_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineCache(tmp_path / "own").folder.stat().st_mode & 0o777 == 0o700
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(ConfigError, match="other users can write to it, and engines are native code"):
        EngineCache(tmp_path / "own")


def test_the_cache_folder_follows_the_xdg_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/somewhere")
    assert cache_folder("engines") == Path("/tmp/somewhere/e3d_deploy/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("engines") == Path.home() / ".cache" / "e3d_deploy" / "engines"


def test_the_last_duration_is_remembered(trt: FakeTensorRT, cache: EngineCache, bundle_path: Path) -> None:
    build_rtx(bundle_path, cache)
    said: list[str] = []
    config = EngineConfig(optimization_level=1)
    bundle = Bundle.open(bundle_path)
    build(bundle, "tensorrt-rtx", config, cache=cache, progress=said.append)
    assert said
    assert all(" s of about " in line for line in said)
    (cache.folder / "durations.json").write_text("[]")  # damaged
    build_rtx(bundle_path, cache, optimization_level=2)


@pytest.mark.parametrize("driver", ["none", "refuses"])
def test_without_an_identified_gpu_nothing_is_cached(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if driver == "refuses":
        from e3d_deploy.runtime.backends.cuda import (
            CudaError,
        )  # imports cuda.core, which is not available on every system

        def refuse(number: int) -> None:
            raise CudaError("CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected")

        monkeypatch.setattr("cuda.core.Device", refuse)
    remarks: list[str] = []
    sidecars = build(Bundle.open(bundle_path), "tensorrt", cache=cache, remark=remarks.append)
    assert remarks == ["nothing is cached: the GPU cannot be identified; pip install cuda-core"]
    assert sidecars["step"].compute_capability == "of the building machine"
    assert cache.entries() == []


def test_the_gpu_is_part_of_the_key(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        compute_capability = (9, 0)
        name = "NVIDIA H200"

        def __init__(self, number: int) -> None:
            assert number == 0

    monkeypatch.setattr("cuda.core.Device", Device)
    sidecars = build(Bundle.open(bundle_path), "tensorrt", cache=cache)
    assert sidecars["step"].compute_capability == "9.0 NVIDIA H200"
    bundle = Bundle.open(bundle_path)
    load_plan(bundle, "step", target="tensorrt", version="10.7.0", compute_capability="9.0")
    with pytest.raises(BundleError, match=r"was built for 9\.0 NVIDIA H200, this GPU is 8\.6; build it again: `e3d"):
        load_plan(bundle, "step", target="tensorrt", version="10.7.0", compute_capability="8.6")
    Device.name = "NVIDIA H100"
    remarks: list[str] = []
    build(bundle, "tensorrt", cache=cache, remark=remarks.append)
    assert remarks[0] == "step: not cached: compute_capability 9.0 NVIDIA H200 → 9.0 NVIDIA H100"


def test_a_plan_is_loaded_only_if_the_manifest_names_it(trt: FakeTensorRT, bundle_path: Path) -> None:
    build(Bundle.open(bundle_path), "tensorrt")
    plan = bundle_path / "engines" / "step.tensorrt.plan"
    bundle = Bundle.open(bundle_path)
    assert load_plan(bundle, "step", target="tensorrt", version="10.7.0") == plan.read_bytes()
    with pytest.raises(
        BundleError, match=r"has no engine step\.tensorrt-rtx, its manifest lists step\.tensorrt, .*build it again"
    ):
        load_plan(bundle, "step", target="tensorrt-rtx", version="10.7.0")
    with pytest.raises(BundleError, match=r"was built by tensorrt 10\.7\.0, this is 10\.8\.0; build it again"):
        load_plan(bundle, "step", target="tensorrt", version="10.8.0")
    plan.write_bytes(plan.read_bytes() + b"code")  # after the bundle was opened
    with pytest.raises(BundleError, match=r"altered, its SHA-256 is .*do not run it"):
        load_plan(bundle, "step", target="tensorrt", version="10.7.0")
    plan.unlink()
    with pytest.raises(BundleError, match=r"cannot be read \(No such file.*build it again: `e3d build"):
        load_plan(bundle, "step", target="tensorrt", version="10.7.0")


@pytest.mark.parametrize("lost", [True, False])
def test_a_plan_that_is_lost_or_damaged_is_built_again(lost: bool, trt: FakeTensorRT, bundle_path: Path) -> None:
    build(Bundle.open(bundle_path), "tensorrt")
    plan = bundle_path / "engines" / "step.tensorrt.plan"
    if lost:
        plan.unlink()
    else:
        plan.write_bytes(b"cut off")
    bundle = Bundle.open(bundle_path)  # the rest of the bundle is intact
    with pytest.raises(BundleError, match=r"step\.tensorrt\.plan: (cannot be read|altered).*; build it again: `e3d"):
        load_plan(bundle, "step", target="tensorrt", version="10.7.0")
    build(bundle, "tensorrt")
    assert load_plan(Bundle.open(bundle_path), "step", target="tensorrt", version="10.7.0") == trt.plan


def test_a_plan_of_another_graph_is_not_loaded(trt: FakeTensorRT, bundle_path: Path) -> None:
    build(Bundle.open(bundle_path), "tensorrt")
    bundle = Bundle.open(bundle_path)
    bundle = changed(bundle, files={**bundle.manifest.files, "step.tensorrt.onnx": "0" * 64})
    with pytest.raises(BundleError, match="was built from a different graph than the bundle contains"):
        load_plan(bundle, "step", target="tensorrt", version="10.7.0")
    bundle = changed(bundle, files={**bundle.manifest.files, "model.safetensors": "0" * 64})
    with pytest.raises(BundleError, match="was built with different weights than the bundle contains"):
        load_plan(bundle, "clip", target="tensorrt", version="10.7.0")


@pytest.mark.parametrize(
    ("version", "loads"), [("10.7.0", True), ("10.9.0", True), ("11.4.0", True), ("10.6.0", False), ("12.0.0", False)]
)
def test_a_version_compatible_plan_runs_on_later_ones(
    version: str, loads: bool, trt: FakeTensorRT, bundle_path: Path
) -> None:
    build(Bundle.open(bundle_path), "tensorrt", EngineConfig(version_compatible=True))
    bundle = Bundle.open(bundle_path)
    if loads:
        load_plan(bundle, "step", target="tensorrt", version=version)
    else:
        with pytest.raises(BundleError, match="was built by tensorrt"):
            load_plan(bundle, "step", target="tensorrt", version=version)


@pytest.mark.parametrize("name", ["step.tensorrt.onnx", "model.safetensors"])
def test_a_bundle_that_changes_meanwhile_gets_no_engine(
    name: str, trt: FakeTensorRT, cache: EngineCache, bundle_path: Path
) -> None:
    bundle = Bundle.open(bundle_path)
    (bundle_path / name).write_bytes(b"exported anew")
    with pytest.raises(BundleError, match=f"{name}: changed while an engine was built from it; build the engine again"):
        build(bundle, "tensorrt-rtx", cache=cache)
    assert cache.keys() == []  # the engine would be stored under the key of the old content
    assert read_manifest(bundle_path).engines == {}


def test_engines_from_the_cache_do_not_get_into_a_newer_bundle(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path
) -> None:
    build_rtx(bundle_path, cache)
    opened = Bundle.open(bundle_path)
    files = {**opened.manifest.files, "model.safetensors": "0" * 64}
    without = {name: digest for name, digest in files.items() if "/" not in name}
    rewrite(bundle_path, files=without, engines={})  # as if the bundle was exported again
    before = (bundle_path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exported again during the build of its engines; build them again"):
        build(opened, "tensorrt-rtx", cache=cache)
    assert (bundle_path / "manifest.json").read_bytes() == before


def test_engines_are_on_the_disk_before_the_bundle_changes(
    trt: FakeTensorRT, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle_path / "manifest.json").read_bytes()
    synced: list[str] = []

    def record(file: Path) -> None:
        assert (bundle_path / "manifest.json").read_bytes() == before
        synced.append(file.name)

    monkeypatch.setattr("e3d_deploy.export.engines.install.sync", record)
    build(Bundle.open(bundle_path), "tensorrt")
    engines = {file.name for file in (bundle_path / "engines").iterdir()}
    assert set(synced) == engines | {"manifest.0", "manifest.1"}


def test_a_failing_write_leaves_bundle_and_cache_as_they_were(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = build_rtx(bundle_path, cache)
    state = {file: file.read_bytes() for file in bundle_path.rglob("*") if file.is_file()}
    trt.plan = b"another plan"
    write, written = Path.write_bytes, []

    def write_one(path: Path, content: bytes) -> int:
        written.extend([path] if path.suffix == ".plan" else [])
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_one)
    with pytest.raises(OSError, match="No space left"):
        build_rtx(bundle_path, cache, optimization_level=1)
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in bundle_path.rglob("*") if file.is_file()} == state
    assert Bundle.open(bundle_path).manifest.engines["step.tensorrt-rtx"] == before["step"]
    assert cache.damaged() == {}


def test_a_full_cache_does_not_fail_the_build(
    trt: FakeTensorRT, cache: EngineCache, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "put", full)
    _, remarks = build_rtx(bundle_path, cache)
    assert remarks[1] == f"step: not stored in the cache (No space left on device: {cache.folder})"
    assert "step.tensorrt-rtx" in Bundle.open(bundle_path).manifest.engines


LIMITED = """
import resource, sys
from pathlib import Path
from e3d_deploy.cli import main
from e3d_deploy.export.engines import build as build_module
from tests.fake_tensorrt import FakeTensorRT
build_module.library = lambda _: FakeTensorRT(plan=b"p" * 300_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main(sys.argv[1:])
"""


def test_a_file_that_cannot_grow_ends_with_one_line(bundle_path: Path, tmp_path: Path) -> None:
    command = ["build", str(bundle_path), "--target", "tensorrt-rtx", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *command],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 7)
    assert done.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert done.stderr.strip().splitlines()[-1].endswith("(`ulimit -f`), or write elsewhere")
    assert "Traceback" not in done.stderr
    assert Bundle.open(bundle_path).manifest.engines == {}
    assert EngineCache(tmp_path / "cache").damaged() == {}
    assert [file.name for file in bundle_path.iterdir() if file.name.startswith(".")] == []


def test_the_commands_of_the_cache(trt: FakeTensorRT, bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    built = e3d("build", bundle_path, "--target", "tensorrt-rtx", "--cache", folder)
    assert "step: not cached: no step was built before" in built.stderr
    again = e3d("build", bundle_path, "--target", "tensorrt-rtx", "--cache", folder, "--cache-limit-gb", 1)
    assert ", cached" in again.stdout
    graphs = len(Bundle.open(bundle_path).graphs)

    shown = e3d("cache", "ls", "--cache", folder)
    assert f"{graphs} engines, 0.0 MB in {folder}" in shown.stderr
    listed = json.loads(e3d("cache", "ls", "--cache", folder, "--json").stdout)
    keys = [row["key"] for row in listed["entries"]]
    assert all(key[:12] in shown.stdout for key in keys)
    assert {"graph", "weights", "target", "builder", "compute_capability", "precision", "profile"} < set(
        listed["entries"][0]
    )
    assert "PASS 0 of" in e3d("cache", "verify", "--cache", folder).stderr

    (folder / keys[0] / PLAN).write_bytes(b"code")
    damaged = e3d("cache", "verify", "--cache", folder, code=5)
    assert damaged.stdout == f"{keys[0][:12]}: the plan is not the one that was built\n"
    assert f"`e3d cache rm {keys[0][:12]} --cache {folder}` removes them" in damaged.stderr
    assert e3d("cache", "rm", keys[0][:12], "--cache", folder).stdout == f"{keys[0]}\n"
    assert "matches no keys" in e3d("cache", "rm", keys[0][:12], "--cache", folder, code=2).stderr
    assert "give the keys of engines, or --all" in e3d("cache", "rm", "--cache", folder, code=2).stderr
    e3d("cache", "rm", "--all", "--cache", folder)
    assert EngineCache(folder).keys() == []


def test_no_cache_is_created_with_cache_none(
    trt: FakeTensorRT, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    command = ["build", bundle_path, "--target", "tensorrt-rtx"]
    e3d(*command, "--cache", "none", "--batch-bucket", "2", "--batch-bucket", "1,4,8")
    assert not (tmp_path / "home").exists()
    e3d(*command)
    assert EngineCache(tmp_path / "home" / "e3d_deploy" / "engines").keys()
    assert "expected batch sizes such as 8" in e3d(*command, "--batch-bucket", "x", code=2).stderr
    assert "the fewest, the usual and the most" in e3d(*command, "--batch-bucket", "4,2", code=2).stderr


def test_a_home_that_cannot_hold_a_cache_does_not_fail_the_build(
    trt: FakeTensorRT, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    built = e3d("build", bundle_path, "--target", "tensorrt-rtx")
    assert "the engine cache is not used: " in built.stderr
    asked_for = e3d("build", bundle_path, "--target", "tensorrt-rtx", "--cache", tmp_path / "home", code=1)
    assert asked_for.stderr.startswith("Error: ")


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half_written(bundle_path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_builds", str(bundle_path), str(tmp_path / "cache"), "80"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == 80
    assert counts["with leftovers"] > 10  # builds were killed in the middle, not only between builds
    assert counts["with engines"] > 10
