"""Keep freed memory in the process for the next frame.

The C library gives large blocks back to the system when a tensor dies and asks for them again for the next one, which
the system then has to clear page by page; whether it does depends on what the process allocated before. RepVGG-A0 at
224x224, batch 8, one thread: 14,000 page faults and 21 % of the time of a forward pass; at batch 1 the head of a
network took 10 or 13 ms, from run to run. With glibc the limits can be moved; elsewhere nothing is done.
"""
from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
TRIM_BYTES = 512 << 20  # free memory above this goes back to the system
MMAP_BYTES = 32 << 20  # blocks above this do not come from the heap; glibc allows no more


def keep_freed_memory() -> bool:
    """For the whole process; True where the C library knows how."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc, or not a system with one C library
        return False
    return all([mallopt(M_MMAP_THRESHOLD, MMAP_BYTES), mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)])
