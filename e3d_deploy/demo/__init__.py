"""Trained models, and the tour that shows what the package does with them."""
