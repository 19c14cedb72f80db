"""Access to files that ship with the package, even if the package is installed as a zip archive."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path

from e3d_deploy.files import scratch_folder


@contextmanager
def extracted(resource: Traversable) -> Iterator[Path]:
    """Yield the path of a resource; a resource in a zip archive is extracted while the block runs.

    The file keeps its name, which `importlib.resources.as_file` would change.
    """
    if isinstance(resource, Path):
        yield resource
        return
    with scratch_folder() as folder:
        path = folder / resource.name
        path.write_bytes(resource.read_bytes())
        yield path
