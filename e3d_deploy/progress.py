"""Lines of text on work that is going on."""

from collections.abc import Callable

Notify = Callable[[str], None]
"""Called with one line. As `progress` it says what is being done now, and the next line takes its place; as `remark` it
says what a user should know, and stays. A TensorRT builder calls it from its own threads."""


def silent(_: str) -> None:
    """Take a line that nobody wants."""
