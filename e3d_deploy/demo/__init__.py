"""A trained model, and the tour that shows what the package does with it."""
