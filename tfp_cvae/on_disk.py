"""Images that stay in a file, and are read through the page cache of the system when they are asked for."""

import contextlib
import math
import mmap
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

# Bytes that are read at a time where all images are looked at.
_PART_BYTES = 4 * 2**20


class RowsOnDisk:
    """Rows of an array in a file: their numbers are in memory, the rows are read from the file when they are indexed.

    `images[index]` reads rows into a new array, for whatever index an array with one axis takes; `np.asarray(images)`
    reads all of them.

    Args:
        array: `[n, ...]`, a memory map that `stays_on_disk`.
        rows: Which of its rows these are, `[m]` integer; None for all.

    Attributes:
        rows: Which rows of the file these are, `[m]` integer.
        shape: As of an array.
        dtype: As of an array.
    """

    def __init__(self, array: np.memmap, rows: np.ndarray | None = None):
        self._array = array
        self.rows = np.arange(len(array)) if rows is None else rows
        self.shape = (len(self.rows), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"RowsOnDisk({str(self._array.filename)!r}: {list(self.shape)} {self.dtype})"

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self.rows[index]
        self._announce(rows)
        # Without the class for memory maps, which takes its time.
        return np.take(np.asarray(self._array), rows, axis=0)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # It is one.
        return np.asarray(self[:], dtype)

    def with_rows(self, rows: np.ndarray) -> "RowsOnDisk":
        """Other rows of the same file."""
        return RowsOnDisk(self._array, rows)

    def _announce(self, rows: np.ndarray) -> None:
        """Asks the system for all rows, which it would else read one after the other, each when it is needed."""
        file = _mapping(self._array)
        if file is None or not hasattr(file, "madvise") or not rows.size:
            return
        begin_of_array = self._array.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
        row_bytes = self._array.strides[0]
        place = begin_of_array + np.sort(rows, axis=None) * row_bytes
        first, last = place // mmap.PAGESIZE, (place + row_bytes - 1) // mmap.PAGESIZE
        # Neighbours in one call.
        begin = np.append(True, first[1:] > last[:-1] + 1)
        end = np.append(begin[1:], True)
        for start, stop in zip(first[begin].tolist(), last[end].tolist(), strict=True):
            # It is advice, which not every file system takes.
            with contextlib.suppress(OSError):
                file.madvise(mmap.MADV_WILLNEED, start * mmap.PAGESIZE, (stop + 1 - start) * mmap.PAGESIZE)


Images = np.ndarray | RowsOnDisk


def stays_on_disk(array: Any) -> typing.TypeGuard[np.memmap]:
    """Whether images are as they are needed in a file: uint8, one after the other, and mapped into memory."""
    return (
        isinstance(array, np.memmap)
        and _mapping(array) is not None
        and array.dtype == np.uint8
        and array.flags.c_contiguous
    )


def rows_of(images: Images, index: np.ndarray) -> Images:
    """The images of an integer or bool array: a copy in memory, or a view of those on disk."""
    return images.with_rows(images.rows[index]) if isinstance(images, RowsOnDisk) else images[index]


def merged(first: np.ndarray, second: np.ndarray, in_second: np.ndarray) -> np.ndarray:
    """One array of two; `in_second`, `[n]` bool, tells in which each row is."""
    whole = np.empty((len(in_second), *first.shape[1:]), first.dtype)
    whole[~in_second], whole[in_second] = first, second
    return whole


def merged_images(first: Images, second: Images, in_second: np.ndarray) -> Images:
    """Merges two sets of images as `merged`; on disk they have to be rows of one file, and stay there."""
    if isinstance(first, RowsOnDisk) and isinstance(second, RowsOnDisk):
        return first.with_rows(merged(first.rows, second.rows, in_second))
    return merged(np.asarray(first), np.asarray(second), in_second)


def parts(images: Images) -> Iterator[slice]:
    """Slices that go through all images in order, some megabytes at a time."""
    size = max(1, _PART_BYTES // math.prod(images.shape[1:]))
    for start in range(0, len(images), size):
        yield slice(start, min(start + size, len(images)))


def highest(images: Images, enough: int) -> int:
    """The largest value, or, without reading on, one that is `enough`."""
    found = 0
    for part in parts(images):
        found = max(found, int(images[part].max()))
        if found >= enough:
            break
    return found


def _mapping(array: np.memmap) -> mmap.mmap | None:
    """The map of the file that an array looks into."""
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
