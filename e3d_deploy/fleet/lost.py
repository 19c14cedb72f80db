"""Losses that a stream recovers from by a restart; callers never see them."""


class HostLost(Exception):
    """Host that cannot be reached, is too slow, or lacks the model; the message is the reason."""


class SequenceLost(Exception):
    """Sequence that a running server does not know; the message is the answer of the server."""
