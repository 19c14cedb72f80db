"""Measurement of times, memory, accuracy and the limits of a machine."""
