"""The code blocks of the README and of each page of docs/, run as a reader would run them.

The blocks of a page are one test, because a later block uses the files of an earlier one. tests/docs/files.py has the
files that a page finds. A block that cannot run has `<!-- not run: REASON -->` in the line before it.
"""

from pathlib import Path

import click
import pytest

from e3d_deploy.cli import main
from e3d_deploy.export import bundle as bundle_module
from tests.docs import files
from tests.docs.blocks import PAGES, RUN, SHOWN, Block, blocks_of, e3d_arguments
from tests.docs.run import run_page
from tests.kept_steps import KeptSteps

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SLOW = ("api.md", "benchmark.md", "commands.md", "data.md", "metrics.md", "model.md", "precision.md", "training.md")
"""Pages whose blocks take more than ten seconds."""
MOST_NOT_RUN = 30
"""Number of blocks that need a GPU, a camera, root, a network or hours; to be kept low."""


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        files.write_originals(folder)
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if any(block.language in RUN and block.reason is None for block in blocks_of(page))
    ],
)
def test_every_block_of_a_page_runs(page: Path, originals: Path, tmp_path: Path, kept_steps: KeptSteps) -> None:
    blocks = blocks_of(page)
    files.lay_out(originals, tmp_path, made={path for block in blocks for path in block.made})
    if failures := run_page(blocks, tmp_path, dict(files.names())):
        pytest.fail("\n\n".join(failures), pytrace=False)


def test_every_block_has_a_language_that_says_if_it_runs() -> None:
    assert [block.place for block in BLOCKS if block.language not in RUN + SHOWN] == []


def test_a_block_that_is_only_shown_calls_no_command() -> None:
    """A command in a block of another language would not be tested."""
    shown = [block for block in BLOCKS if block.language in SHOWN]
    assert [block.place for block in shown if block.code.startswith("e3d ")] == []


def test_few_blocks_are_not_run() -> None:
    assert len([block for block in BLOCKS if block.reason is not None]) <= MOST_NOT_RUN


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.reason is not None], ids=lambda block: block.place)
def test_a_block_that_is_not_run_could_be_run(block: Block) -> None:
    """Its Python compiles, and its commands have options that exist."""
    if block.language == "python":
        compile(block.code, block.place, "exec")
    for line in block.commands:
        arguments = e3d_arguments(line.partition(" > ")[0])
        if arguments is not None:
            parse(arguments)


def parse(arguments: list[str]) -> None:
    """Parse the arguments of e3d as it would."""
    name, command, rest = main.resolve_command(click.Context(main), arguments)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(click.Context(command), rest)
    assert command is not None
    assert command.make_context(name, rest).params
