"""Live sources: cameras, network addresses and pipes, read in threads of their own."""
