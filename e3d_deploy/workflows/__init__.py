"""Complete tasks on files, one function each: the work of the commands, for use by programs."""
