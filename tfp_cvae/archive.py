"""Files that came from elsewhere: each is checked before anything acts on what it says.

Imports no NumPy, as what the command line is asked for may need none.
"""

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

# Arrays of zeros are small on disk, up to 1,000 times, and drawings are smaller still; beyond this many bytes it is a
# trick.
_FREE_BYTES = 64 * 2**20
_MAX_RATIO = 1000

MAX_JSON_BYTES = 8 * 2**20
_MAX_JSON_DEPTH = 64


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


def check_packing(decoded: int, on_disk: int) -> None:
    """Refuses what is packed more tightly than any true picture or array.

    Raises:
        ValueError: With the reason alone, as the name is known to the caller.
    """
    if decoded > _FREE_BYTES and decoded > _MAX_RATIO * on_disk:
        raise ValueError(f"{decoded / 2**20:.4g} MiB decoded from {on_disk:,} bytes, as only a trick would be packed")


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


def walk(content: Any) -> Iterator[tuple[Any, int]]:
    """All values in parsed JSON, with their depth."""
    rest = [(content, 0)]
    while rest:
        value, depth = rest.pop()
        yield value, depth
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        rest.extend((child, depth + 1) for child in children)
