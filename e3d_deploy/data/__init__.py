"""Clips for training, measuring and display: files, folders, and Moving MNIST made on the fly."""
