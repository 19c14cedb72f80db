"""Deployable folder of a model: its manifest and files, opened, written and packed. Imports nothing of `runtime`."""
