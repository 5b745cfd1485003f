"""Files that came from elsewhere: each is checked before anything acts on what it says.

An `.npz` file can claim terabytes. What is read here costs no more memory and time than its size on disk accounts for.
"""

import io
import json
import math
import os
import pathlib
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfp_cvae.on_disk import stays_on_disk

# Of arrays or pictures, decoded: all that is read into memory at once.
MAX_DECODED_BYTES = 8 * 2**30

# Arrays of zeros are small on disk, up to 1,000 times, and drawings are smaller still; beyond this many bytes it is a
# trick.
_FREE_BYTES = 64 * 2**20
_MAX_RATIO = 1000

MAX_JSON_BYTES = 8 * 2**20
_MAX_JSON_DEPTH = 64
_MAX_NPY_HEADER = 16 * 2**10


def one_line(value: object, limit: int = 300) -> str:
    """Text for a message: on one line, printable, and not endless."""
    text = re.sub(r"\s*[\r\n\t]\s*", " ", str(value)[: 4 * limit].strip())
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def file_size(path: str | os.PathLike[str], kind: str) -> int:
    """Size of a file that can be opened without harm: a pipe would wait for ever, and a device has no end.

    Args:
        path: The file, or a symbolic link to it.
        kind: What it should be, for the message.

    Raises:
        ValueError: If it does not exist, cannot be looked at, is empty or is no regular file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{one_line(path)}: expected an existing {kind}, got none; check the path") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{one_line(path)}: expected a readable {kind}, got {one_line(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        got = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{one_line(path)}: expected a {kind}, which is a regular file, got {got}")
    if not status.st_size:
        raise ValueError(f"{one_line(path)}: expected a {kind}, got an empty file; get or make it again")
    return status.st_size


def check_decoded_size(decoded: int, on_disk: int) -> None:
    """Refuses what would take too much memory, or more than any true array is packed.

    Raises:
        ValueError: With the reason alone, as the name is known to the caller.
    """
    if decoded > MAX_DECODED_BYTES:
        raise ValueError(
            f"{decoded / 2**30:.3g} GiB decoded, more than the {MAX_DECODED_BYTES / 2**30:g} GiB that are held in "
            "memory; use fewer or smaller images"
        )
    check_packing(decoded, on_disk)


def check_packing(decoded: int, on_disk: int) -> None:
    """Refuses what is packed more than any true picture or array, likewise."""
    if decoded > _FREE_BYTES and decoded > _MAX_RATIO * on_disk:
        raise ValueError(f"{decoded / 2**20:.4g} MiB decoded from {on_disk:,} bytes, as only a trick would be packed")


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
            check_decoded_size(sum(_claimed_size(file, member) for member in known.values()), size)
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
                f"more than the {MAX_DECODED_BYTES / 2**30:g} GiB that are held in memory, where uint8 in C order "
                "would be read from the file as it is needed"
            )
        return _checked_text(path.name, np.array(array))
    except Exception as error:
        raise ValueError(
            f"{one_line(path)}: expected an .npy file of a plain array, got an unreadable one: {reason(error)}; "
            "get it again, or write it again with numpy.save"
        ) from error


def parse_json(text: str | bytes, limit: int = MAX_JSON_BYTES) -> Any:
    """Parses JSON that came from elsewhere.

    Args:
        text: The JSON.
        limit: Most bytes it may have.

    Raises:
        ValueError: If it is none, is too large or too deep, or holds a number that is not finite, or an integer that is
            not of 64 bits.
    """
    if len(text) > limit:
        raise ValueError(f"JSON of {len(text):,} bytes, more than {limit:,}")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    for value, depth in walk(content):
        if depth > _MAX_JSON_DEPTH:
            raise ValueError("JSON that is nested too deep")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number in JSON that is not finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("a number in JSON that is not of 64 bits")
    return content


def reason(error: Exception) -> str:
    """What an error says, with its kind if that is not the plain one for values."""
    text = one_line(error)
    return text if type(error) is ValueError and text else f"{type(error).__name__} {text}".rstrip()


def zip_members(file: zipfile.ZipFile, compressions: Sequence[int]) -> dict[str, zipfile.ZipInfo]:
    """Members by name; refuses two of one name, and what neither NumPy nor Keras writes."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        name = one_line(member.orig_filename, 100)
        if member.filename in members or member.filename != member.orig_filename:
            raise ValueError(f"two members of the name {name!r}, or a name that hides another")
        # bzip2 and LZMA cannot be unpacked in small parts, which would let a few bytes become gigabytes.
        if member.flag_bits & 1 or member.compress_type not in compressions:
            raise ValueError(f"the member {name!r}, encrypted or compressed in another way than NumPy and Keras write")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"the member {name!r}, which is a link or a folder")
        members[member.filename] = member
    return members


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


def walk(content: Any) -> Iterator[tuple[Any, int]]:
    """All values in parsed JSON, with their depth."""
    rest = [(content, 0)]
    while rest:
        value, depth = rest.pop()
        yield value, depth
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        rest.extend((child, depth + 1) for child in children)
