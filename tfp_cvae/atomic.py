"""Files that are either whole or absent."""

import os
import pathlib
from collections.abc import Callable
from typing import Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[pathlib.Path], Any]) -> pathlib.Path:
    """Writes a file so that, whatever happens meanwhile, it is the new one or still the old one, never a part.

    Args:
        path: File to write.
        write: Function that writes it, given the path of a temporary file beside it with the same suffix.

    Returns:
        `path`.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
