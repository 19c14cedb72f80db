"""The commands of `e3d`, which `cli` puts together; none imports it."""
