"""Fixtures of the built package."""

from tests.packaging.environments import archives, edge_python

__all__ = ["archives", "edge_python"]
