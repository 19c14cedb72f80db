"""Clips to learn from and to show: Moving MNIST made on the fly, and files."""
