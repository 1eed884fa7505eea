# SPDX-License-Identifier: Apache-2.0
"""Tell the C library to keep what tensors free, for the next ones."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER = -1  # gives nothing back to the system
_LARGEST_KEPT = 32 * 2**20  # [B] the most that glibc allows


def keep_freed_memory() -> None:
    """
    Keep memory that was freed in this process, up to 32 MiB at a time, instead of giving it back.

    A network on the CPU takes and frees some hundred MB of tensors in each pass. Given back, every
    page of them is taken from the system again, and cleared, by a fault. The process stays as
    large as it was at its largest. Does nothing where the C library is not glibc.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
