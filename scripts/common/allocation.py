"""How memory is asked for, in programs that work on arrays of gigabytes."""

import ctypes

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> None:
    """Use memory that was freed again instead of giving it back to the system and asking for it anew.

    A plan of millions makes and drops hundreds of large arrays. By default each of them is mapped for itself, and the
    system clears every page of it anew, which is a good part of the time. Affects this process alone; where
    the C library is not glibc, only Arrow's arrays.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        allocator = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    allocator(_M_MMAP_MAX, 0)
    allocator(_M_TRIM_THRESHOLD, _NEVER)
