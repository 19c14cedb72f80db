"""Files that ship with the package, wherever it lies."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def extracted(resource: Traversable) -> Iterator[Path]:
    """Give a resource as a file of its own name; one in a zip archive is extracted while the block runs.

    `importlib.resources.as_file` would give it another name.
    """
    if isinstance(resource, Path):
        yield resource
        return
    with TemporaryDirectory(prefix="e3d_deploy.") as folder:
        path = Path(folder) / resource.name
        path.write_bytes(resource.read_bytes())
        yield path
