"""Training with Lightning: data order, optimizers, schedules, saved states, and checks at the end of a run."""
