"""Commands of `e3d`, one file each. `cli` assembles them; no command imports `cli`."""
