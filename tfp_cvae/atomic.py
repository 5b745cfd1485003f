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

    Raises:
        OSError: If the file cannot be written there.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in an existing folder, got no folder {str(path.parent)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected the name of a file, got that of a folder")
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
