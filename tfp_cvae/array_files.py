"""Arrays from `.npz` and `.npy` files that came from elsewhere.

Such a file can claim terabytes. What is read here costs no more memory and time than its size on disk accounts for.
"""

import io
import math
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfp_cvae.archive import check_packing, file_size, one_line, reason, zip_members
from tfp_cvae.on_disk import stays_on_disk

# All of the arrays that is read into memory at once.
MAX_DECODED_BYTES = 8 * 2**30
_MAX_NPY_HEADER = 16 * 2**10


def load_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file after a look at what each claims to be; no pickles.

    Args:
        path: The file.
        names: Arrays to read, if they are there; others are not touched.

    Returns:
        Arrays of numbers, bool or text by name.

    Raises:
        ValueError: If the file is absent, is no `.npz`, is spoilt, or would take too much memory.
    """
    size = file_size(path, ".npz file")
    try:
        with zipfile.ZipFile(path) as file:
            members = zip_members(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            known = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
            _check_decoded_size(sum(_claimed_size(file, member) for member in known.values()), size)
            return {name: _read_array(file, member) for name, member in known.items()}
    except Exception as error:
        raise ValueError(
            f"{one_line(path)}: expected an .npz file of plain arrays, got an unreadable one: {reason(error)}; "
            "get it again, or write it again with numpy.savez"
        ) from error


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays of an `.npz` file, at most ten."""
    with zipfile.ZipFile(path) as file:
        return [one_line(name.removesuffix(".npy"), 50) for name in file.namelist()[:10]]


def map_arrays(folder: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of `.npy` files after a look at what each claims to be, and maps those of images; no pickles.

    Args:
        folder: The folder.
        names: Names of the files without their suffix, to read those that are there.

    Returns:
        Arrays of numbers, bool or text by name; those that `on_disk.stays_on_disk` as memory maps.

    Raises:
        ValueError: If a file is no `.npy`, is spoilt, or would take too much memory.
    """
    files = {name: folder / f"{name}.npy" for name in names}
    return {name: _map_array(file) for name, file in files.items() if os.path.lexists(file)}


def _map_array(path: pathlib.Path) -> np.ndarray:
    size = file_size(path, ".npy file")
    try:
        with open(path, "rb") as file:
            _check_header(path.name, file.read(_MAX_NPY_HEADER), size)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if stays_on_disk(array):
            return array
        if size > MAX_DECODED_BYTES:
            raise ValueError(
                f"{size / 2**30:.3g} GiB of {array.dtype}{'' if array.flags.c_contiguous else ' in Fortran order'}, "
                f"more than the {MAX_DECODED_BYTES / 2**30:g} GiB that are held in memory, where uint8 in C "
                "order would be read from the file as it is needed"
            )
        return _checked_text(path.name, np.array(array))
    except Exception as error:
        raise ValueError(
            f"{one_line(path)}: expected an .npy file of a plain array, got an unreadable one: {reason(error)}; "
            "get it again, or write it again with numpy.save"
        ) from error


def _claimed_size(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of an array, by its header, which has to agree with the zip."""
    with file.open(member) as opened:
        # Not all that the header claims for itself, which can be 4 GB.
        return _check_header(member.filename, opened.read(_MAX_NPY_HEADER), member.file_size)


def _check_header(name: str, begin: bytes, file_size: int) -> int:
    """Bytes of an array, by the header with which its file begins and the size of the file, which have to agree."""
    start = io.BytesIO(begin)
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(start)
    if version not in readers:
        raise ValueError(f"{name} of the .npy version {version}")
    shape, _, dtype = readers[version](start)
    if dtype.kind not in "biufcSU":
        raise ValueError(f"{name} of dtype {one_line(dtype, 100)}, which is neither numbers nor text")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or start.tell() + size != file_size:
        raise ValueError(f"{name}, whose header claims another size than there is")
    return size


def _read_array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with file.open(member) as opened:
        return _checked_text(member.filename, np.lib.format.read_array(opened, allow_pickle=False))


def _checked_text(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "U" and array.nbytes:
        # NumPy does not look, and Python cannot make text of it.
        code_points = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if code_points.max() > sys.maxunicode:
            raise ValueError(f"{name}, whose text is not Unicode")
    return array


def _check_decoded_size(decoded: int, on_disk: int) -> None:
    """Refuses what would take too much memory, or is packed more tightly than any true array.

    Raises:
        ValueError: With the reason alone, as the name is known to the caller.
    """
    if decoded > MAX_DECODED_BYTES:
        raise ValueError(
            f"{decoded / 2**30:.3g} GiB decoded, more than the {MAX_DECODED_BYTES / 2**30:g} GiB that are held in "
            "memory; use fewer or smaller images"
        )
    check_packing(decoded, on_disk)
