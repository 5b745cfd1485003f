import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
import resource
import sys

from tfp_cvae.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
size = int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def take_and_free():
    blocks = [libc.malloc(size) for _ in range(8_000_000 // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in reversed(blocks):
        libc.free(block)


take_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how, size):
    words = [sys.executable, "-c", SCRIPT, how, str(size)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("size", [100_000, 1_600_000, 4_000_000])
def test_freed_memory_is_asked_of_the_system_once(size):
    """8 MB, ten times: up to 20,000 pages of the system without it."""
    assert page_faults("given back", size) > 8_000
    assert page_faults("kept", size) < 500
