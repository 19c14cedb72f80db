"""Sources of pictures that are read in threads of their own: cameras, network addresses, pipes and files."""
