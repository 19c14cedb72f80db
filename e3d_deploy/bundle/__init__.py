"""Deployable folder of a model: opening, writing and packing its manifest and files. Imports nothing of `runtime`."""
