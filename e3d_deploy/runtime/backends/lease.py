"""Memory that comes back when nobody holds it any more, without a line of Python.

An exception that a signal handler raises in a finalizer is lost, and with it Ctrl-C; the callback here is C code.
"""

from collections import deque
from typing import Any
from weakref import ref


class Lease(ref[Any]):
    """Memory lent to a holder, which is appended to where it came from once the holder is gone.

    Somebody has to keep it, as a weak reference that is gone calls nobody. Kept by its holder it is gone where garbage
    collection frees both together, and with it the memory, so that nothing comes back and nothing is lost.
    """

    __slots__ = ("memory",)

    memory: Any

    @classmethod
    def of(cls, holder: object, memory: Any, returned: "deque[Lease]") -> "Lease":
        """Lend memory to a holder."""
        lease = cls(holder, returned.append)
        lease.memory = memory
        return lease
