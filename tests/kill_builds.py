"""Kill builds with SIGKILL at random moments and check the remains; run by export/engines/test_cache.py.

python -m tests.kill_builds BUNDLE CACHE TIMES
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from e3d_deploy.bundle.folder import check_file
from e3d_deploy.config import EngineConfig
from e3d_deploy.export.engines import build as build_module
from e3d_deploy.export.engines.cache import EngineCache
from e3d_deploy.runtime import Bundle
from tests.fake_tensorrt import FakeTensorRT

SIZES = (1_000, 300_000, 2_000_000)


def build_on_and_on(bundle: Path, folder: Path) -> NoReturn:
    """Build engines and take engines from a cache that is so small that entries are also removed."""
    draw = random.Random(os.getpid())
    while True:
        build(
            bundle, EngineCache(folder, limit_bytes=20_000_000), draw.randbytes(draw.choice(SIZES)), draw.randrange(6)
        )


def build(bundle: Path, cache: EngineCache, plan: bytes, level: int) -> None:
    library: Any = FakeTensorRT(plan=plan)
    build_module.library = lambda _: library
    build_module.build(Bundle.open(bundle), "tensorrt-rtx", EngineConfig(optimization_level=level), cache=cache)


def leftovers(*folders: Path) -> list[str]:
    files = [file.name for folder in folders for file in folder.iterdir()]
    return [name for name in files if name.startswith(".") or name.endswith(".lock")]


def main(bundle: Path, folder: Path, times: int) -> None:
    build_module.check_precision = lambda *_: {"requested": "fp32", "proved": "fp32", "by": "graph", "layers": {}}
    cache = EngineCache(folder)
    draw = random.Random(0)
    counts = {"kills": 0, "with engines": 0, "with leftovers": 0}
    for _ in range(times):
        child = os.fork()
        if child == 0:
            try:
                build_on_and_on(bundle, folder)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.005, 0.25))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        opened = Bundle.open(bundle)
        for name, digest in opened.manifest.files.items():
            check_file(bundle, name, digest)  # `Bundle.open` does not check engines
        assert cache.damaged() == {}, cache.damaged()
        counts["kills"] += 1
        counts["with engines"] += bool(opened.manifest.engines)
        counts["with leftovers"] += bool(leftovers(bundle, folder))
    build(bundle, EngineCache(folder), b"the last", 0)
    assert leftovers(bundle, folder) == [], leftovers(bundle, folder)
    assert len(Bundle.open(bundle).manifest.engines) == len(opened.graphs)
    print(json.dumps({**counts, "entries": len(cache.entries())}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
