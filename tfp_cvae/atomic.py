"""Files and folders that are either whole or absent, and on the disk before they have their names."""

import contextlib
import errno
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

# Names of what is not whole yet, or not any more: hidden, and safe to delete once no process writes into the folder.
TEMPORARY_PREFIX = ".tfp-cvae-tmp-"


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
    temporary = _temporary(path.parent, path.suffix)
    with explained(path):
        try:
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            # The folder may be gone, or not be writable any more.
            with contextlib.suppress(OSError):
                temporary.unlink()
    return path


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder and those in which it is; raises OSError that says so if it cannot."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def check_can_write(folder: pathlib.Path) -> None:
    """Raises OSError if no file can be written in a folder."""
    temporary = _temporary(folder)
    with explained(folder):
        temporary.touch()
        temporary.unlink()


def write_folder(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Writes a folder that appears whole.

    Args:
        path: Folder to make, which must not exist, in an existing one.
        write: Function that fills an empty folder.

    Raises:
        OSError: If the folder cannot be written there.
    """
    with explained(path), _filled(path.parent, write) as temporary:
        temporary.rename(path)
        flush(path.parent)


def write_next_version(base: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> pathlib.Path:
    """Writes the folder `base/N`, with N one more than the highest number so far, so that it appears whole.

    Several processes may do so at once; each gets a number of its own. One that is killed leaves a hidden folder.

    Args:
        base: Existing folder.
        write: Function that fills an empty folder.

    Returns:
        `base/N`.

    Raises:
        OSError: If the folder cannot be written there.
    """
    with explained(base), _filled(base, write) as temporary:
        while True:
            version = base / str(max(numbered(base), default=0) + 1)
            try:
                # Fails if the folder is there, as a version is never empty.
                temporary.rename(version)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            flush(base)
            return version


def numbered(base: pathlib.Path) -> list[int]:
    """Numbers that are names of entries of a folder."""
    return [int(path.name) for path in base.iterdir() if path.name.isdecimal()]


def delete_folder(path: pathlib.Path) -> None:
    """Deletes a folder, which disappears as a whole."""
    temporary = _temporary(path.parent)
    path.rename(temporary)
    shutil.rmtree(temporary)


def delete(path: pathlib.Path) -> None:
    """Deletes a file, a folder with all that is in it, or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete_temporary(folder: pathlib.Path) -> None:
    """Deletes what killed processes have left half written in a folder, or half deleted."""
    for path in list(folder.glob(f"{TEMPORARY_PREFIX}*")):
        delete(path)


def flush(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems, of networks above all, do so for files alone.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _temporary(folder: pathlib.Path, suffix: str = "") -> pathlib.Path:
    return folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{suffix}"


@contextlib.contextmanager
def _filled(folder: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> Iterator[pathlib.Path]:
    """A temporary subfolder that has been written and flushed, which is gone afterwards unless it was renamed."""
    # Not of tempfile.mkdtemp, which keeps other users out: a server may be one.
    temporary = _temporary(folder)
    try:
        temporary.mkdir()
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Says of an error of the system which file or folder could not be written, and not its temporary name alone."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, None)
        advice = "make room, or choose another folder" if full else "choose another folder, or mend this one"
        named = type(error)(f"{path}: expected to write it, got: {reason}; {advice}")
        named.errno = error.errno
        raise named from error
