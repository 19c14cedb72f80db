"""Names that scripts import from here; `files.py` is their home."""

from e3d_deploy.files import swap, workspace

__all__ = ["swap", "workspace"]
