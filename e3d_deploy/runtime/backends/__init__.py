"""Backends, one file each, behind one protocol."""
