"""Runs the code blocks of one page, in order, in one folder."""

import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from e3d_deploy.cli import main
from tests.docs.blocks import Block, e3d_arguments

SHORTER = {
    "benchmark": ("--seconds", "0.05"),
    "evaluate": ("--most", "2"),
    "import": ("--image-size", "16x16"),
    "train": ("--steps", "2", "--batch-size", "2", "--hidden", "4,4", "--patch-size", "16", "--no-decay"),
}
"""Options that the tests append to the lines of a command: it would take minutes or hours without them, and the frames
of the tests' checkpoint are small."""
PORT = "127.0.0.1:8000"
"""Address in the docs; the server of a page has a free port instead."""
LONGEST_S = 60.0
"""Time limit of programs other than e3d."""


class PageRun:
    """Run of the blocks of one page.

    Args:
        folder: working folder with the files that the blocks use.
        names: names that Python blocks may use.
    """

    def __init__(self, folder: Path, names: dict[str, Any]) -> None:
        self.folder, self.names = folder, names
        self.address = PORT
        self.servers: list[subprocess.Popen[str]] = []

    def failures(self, block: Block) -> Iterator[str]:
        """Run a block; yield a text for each failure."""
        if block.language == "python":
            yield from self.python(block)
        for line in block.commands:
            yield from self.command(line.replace(PORT, self.address), block.place)

    def python(self, block: Block) -> Iterator[str]:
        """Run a block of Python in the namespace of the page."""
        try:
            exec(compile(block.code.replace(PORT, self.address), block.place, "exec"), self.names)
        except Exception:
            yield f"{block.place}: {traceback.format_exc()}"

    def command(self, line: str, place: str) -> Iterator[str]:
        """Run a command line."""
        line, _, file = line.partition(" > ")
        arguments = e3d_arguments(line)
        if arguments is None:
            done = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, capture_output=True, text=True, timeout=LONGEST_S, check=False
            )
            code, stdout, output = done.returncode, done.stdout, done.stdout + done.stderr
        elif arguments[0] == "serve":
            code, stdout, output = self.serve(arguments)
        else:
            result = CliRunner().invoke(main, [*arguments, *SHORTER.get(arguments[0], ())])
            code, stdout, output = result.exit_code, result.stdout, result.output
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                output += "".join(traceback.format_exception(result.exception))
        if file:
            (self.folder / file.split("#")[0].strip()).write_text(stdout)
        is_slower = code == 3 and "--baseline" in arguments if arguments else False  # other work may slow it down
        if code != 0 and not is_slower:
            yield f"{place}: exit code {code}: {line}\n{output[-2000:]}"

    def serve(self, arguments: list[str]) -> tuple[int, str, str]:
        """Start a server that runs until the end of the page; return as soon as it has printed its address."""
        command = [sys.executable, "-m", "e3d_deploy", *arguments, "--port", "0"]
        server = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout is not None
        printed = server.stdout.readline()
        if found := re.search(r"127\.0\.0\.1:\d+", printed):
            self.address = found[0]
            return 0, printed, printed
        return server.wait(LONGEST_S) or 1, printed, server.communicate()[1]

    def close(self) -> None:
        """Stop the servers."""
        for server in self.servers:
            server.send_signal(signal.SIGINT)
            try:
                server.communicate(timeout=LONGEST_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


def run_page(blocks: list[Block], folder: Path, names: dict[str, Any]) -> list[str]:
    """Run the blocks of a page that are not declared otherwise; return the failures."""
    before = Path.cwd()
    os.chdir(folder)
    page = PageRun(folder, names)
    try:
        return [failure for block in blocks if block.reason is None for failure in page.failures(block)]
    finally:
        page.close()
        os.chdir(before)
