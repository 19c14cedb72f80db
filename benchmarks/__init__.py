"""Benchmarks of the package.

Most scripts print their result and write it to benchmarks/results/ as JSON; the docstring of each names its files.
"""
