"""Memory that returns to its pool when its holder is freed.

The callback that returns the memory is C code: Python discards an exception that a signal handler raises in a finalizer
written in Python, and Ctrl-C would be lost with it.
"""

from collections import deque
from typing import Any
from weakref import ref


class Lease(ref[Any]):
    """Memory that is lent to a holder. When the holder is freed, the lease is appended to the queue `returned`.

    A lease is a weak reference to its holder, and Python calls back only weak references that still exist, so the lease
    must be referenced somewhere. The holder itself may reference it: if garbage collection then frees both at the same
    time, the lease is not appended, and its memory is freed instead of being reused.
    """

    __slots__ = ("memory",)

    memory: Any

    @classmethod
    def of(cls, holder: object, memory: Any, returned: "deque[Lease]") -> "Lease":
        """Lend memory to `holder`; the lease is appended to `returned` when `holder` is freed."""
        lease = cls(holder, returned.append)
        lease.memory = memory
        return lease
