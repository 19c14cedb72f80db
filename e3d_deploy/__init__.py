"""Train, export, verify and stream E3D-LSTM video prediction."""

__version__ = "0.2.0"
