"""Measures what runs: times, memory and the limits of a machine."""
