"""MkDocs hook: adds a reference page for each public module of the Python API, which mkdocstrings fills."""

from typing import Any

from mkdocs.structure.files import File, Files

PAGES = {
    "e3d_deploy.runtime": (
        "Load a bundle and forecast. Importing it needs NumPy only; opening a bundle needs one inference library.",
        ("load", "Predictor", "Stream", "Streams", "SlotStream", "Snapshot", "Bundle"),
    ),
    "e3d_deploy.api": ("The commands as functions: train, export, build, verify, predict, benchmark.", ()),
    "e3d_deploy.fleet": ("Client that spreads streams over several Triton servers.", ()),
    "e3d_deploy.errors": ("The errors that the runtime and the commands raise. Each has the exit code of e3d.", ()),
    "e3d_deploy.config": ("Settings of networks, training runs and engines.", ()),
    "e3d_deploy.evaluation": ("Measure the quality of forecasts; needs PyTorch.", ()),
}
"""Modules of the API: a sentence, and the names to show in this order; without names, all public names are shown."""


def on_files(files: Files, config: Any) -> None:
    """Add the pages."""
    for module, (sentence, names) in PAGES.items():
        shown = [f"::: {module}.{name}\n    options:\n      show_root_heading: true" for name in names]
        text = "\n\n".join([f"# `{module}`", sentence, *(shown or [f"::: {module}"])])
        name = module.rpartition(".")[2]
        files.append(File.generated(config, f"reference/python-{name}.md", content=text + "\n"))
