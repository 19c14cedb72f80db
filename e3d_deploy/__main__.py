"""`python -m e3d_deploy` is `e3d`."""

from e3d_deploy.cli import main

main(prog_name="e3d")
