"""Entry point of `e3d` and of `python -m e3d_deploy`.

Signal handlers are installed before anything else is imported.
"""

from e3d_deploy.interrupts import end_on_signals


def main() -> None:
    """Run the command line."""
    end_on_signals()
    from e3d_deploy.cli import main as command

    command(prog_name="e3d")


if __name__ == "__main__":
    main()
