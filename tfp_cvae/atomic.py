"""Files and folders that are either whole or absent."""

import errno
import os
import pathlib
import shutil
import uuid
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


def write_next_version(base: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> pathlib.Path:
    """Writes the folder `base/N`, with N one more than the highest number so far, so that it appears whole.

    Several processes may do so at once; each gets a number of its own. One that is killed leaves a folder `.tmp-...`.

    Args:
        base: Existing folder.
        write: Function that fills an empty folder.

    Returns:
        `base/N`.

    Raises:
        OSError: If the folder cannot be written there.
    """
    # Not of tempfile.mkdtemp, which keeps other users out: a server may be one.
    temporary = base / f".tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        while True:
            numbers = [int(path.name) for path in base.iterdir() if path.name.isdecimal()]
            version = base / str(max(numbers, default=0) + 1)
            try:
                # Fails if the folder is there, as a version is never empty.
                temporary.rename(version)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            _flush(base)
            return version
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
