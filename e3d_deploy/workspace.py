"""Aliases for scripts that import these names from here; `files.py` defines them."""

from e3d_deploy.files import swap, workspace

__all__ = ["swap", "workspace"]
