"""MkDocs hook: adds a reference page for each public module of the Python API, which mkdocstrings fills."""

from typing import Any

from mkdocs.structure.files import File, Files

MODULES = {
    "e3d_deploy.runtime": "Load a bundle and forecast; needs NumPy and one inference library.",
    "e3d_deploy.errors": "The errors that the runtime and the commands raise.",
    "e3d_deploy.config": "Settings of networks, training runs and engines.",
    "e3d_deploy.evaluation": "Measure the quality of forecasts; needs PyTorch.",
}
"""Modules of the API, each with one sentence about it."""


def on_files(files: Files, config: Any) -> None:
    """Add the pages."""
    for module, sentence in MODULES.items():
        name = module.rpartition(".")[2]
        text = f"# `{module}`\n\n{sentence}\n\n::: {module}\n"
        files.append(File.generated(config, f"reference/python-{name}.md", content=text))
