"""Memory allocation in programs that work on arrays of gigabytes."""

import ctypes

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> None:
    """Reuse freed memory inside this process instead of returning it to the system.

    Planning millions of conversations allocates and frees hundreds of large arrays. By default each one is mapped
    separately and the kernel zeroes its pages every time, which takes a good part of the run time. Where the C library
    is not glibc, only Arrow's arrays are affected.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        allocator = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    allocator(_M_MMAP_MAX, 0)
    allocator(_M_TRIM_THRESHOLD, _NEVER)
