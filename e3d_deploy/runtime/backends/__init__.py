"""Backends, one file each, that share one protocol."""
