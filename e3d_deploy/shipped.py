"""Files that ship with the package, wherever it lies."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path

from e3d_deploy.files import scratch_folder


@contextmanager
def extracted(resource: Traversable) -> Iterator[Path]:
    """Give a resource as a file of its own name; one in a zip archive is extracted while the block runs.

    `importlib.resources.as_file` would give it another name.
    """
    if isinstance(resource, Path):
        yield resource
        return
    with scratch_folder() as folder:
        path = folder / resource.name
        path.write_bytes(resource.read_bytes())
        yield path
