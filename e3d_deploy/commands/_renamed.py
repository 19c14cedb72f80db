"""Former names of options, which keep working for one version."""

from collections.abc import Sequence

RENAMED = {
    "benchmark": {"--target-p99": "--latency-goal"},
    "export": {"--target": "--backend"},
}
"""Present names of options by command and former name; removed in version 0.3."""


def present_names(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace the former names of options in a command line.

    Args:
        args: name of the command and its arguments.

    Returns:
        The command line with present names, and a warning for each former name.
    """
    known, present, remarks = RENAMED.get(args[0], {}), [args[0]], []
    for arg in args[1:]:
        former, equals, value = arg.partition("=")
        name = known.get(former, former)
        if name != former:
            remarks.append(f"Warning: {former} is now {name}; the former name will be removed in version 0.3")
        present.append(f"{name}{equals}{value}")
    return present, remarks
