"""Memory of this process that the C library keeps for the next step."""

import ctypes
import sys

# Of malloc.h: how much more memory than it needs an arena asks for, and keeps; and from what size on a block has pages
# of its own. To set the one keeps glibc from adjusting the other.
_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3


def keep_freed_memory() -> None:
    """Has glibc keep up to 64 MiB for each of its arenas, instead of giving it back to the system at once.

    A training step frees some megabytes and asks for them again. Where that moves the end of an arena, which is a
    matter of luck, each step gets a thousand new pages, which take up to a fifth of its time. It is a setting of the
    whole process; with other C libraries nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_TOP_PAD, 64 * 2**20)
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
