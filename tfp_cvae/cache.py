"""Images that are decoded once, into a folder of arrays on disk, as they are too many for the memory."""

import hashlib
import math
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence

import filelock
import numpy as np

from tfp_cvae import atomic
from tfp_cvae.archive import one_line

# Images as uint8 beyond this are read from disk: a training has them in memory twice, those to validate on as float32.
MAX_BYTES_IN_MEMORY = 2 * 2**30

# Version of the layout of the folders: another one when `write` changes.
_VERSION = 3


def folder() -> pathlib.Path:
    """Where decoded images are kept: `tfp_cvae` in `XDG_CACHE_HOME`, by default `~/.cache`, or a temporary folder."""
    # Without HOME, and with a user that the system does not know, as in containers, `~` stays as it is.
    bases = (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"), tempfile.gettempdir())
    return pathlib.Path(next(base for base in bases if os.path.isabs(base)), "tfp_cvae")


def decoded(
    name: str, source: object, state: object, arrays: Sequence[str], write: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """The folder of the arrays that a source was decoded into, now or before.

    Processes that ask for the same at once wait for the first of them, and one that is killed leaves nothing that is
    taken for whole.

    Args:
        name: Name of the source, for messages.
        source: What tells the source from all others, by its `repr`.
        state: What tells it from what it was before, likewise; what was decoded then is deleted.
        arrays: Names of the `.npy` files in the folder, without that suffix. If one is gone, they are decoded again.
        write: Function that decodes into an empty folder.

    Raises:
        OSError: If there is no room, or the folder cannot be written.
    """
    entry = folder() / _digest(source)
    found = entry / _digest((_VERSION, state))

    def is_whole() -> bool:
        # What cleans caches deletes files that were not read for long, and leaves their folder.
        return all((found / f"{array}.npy").is_file() for array in arrays)

    if is_whole():
        return found
    try:
        entry.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(entry / ".lock"):
            if not is_whole():
                for old in entry.iterdir():
                    if old.is_dir():
                        shutil.rmtree(old)
                print(f"{name}: decoding the images once, into {found}", file=sys.stderr, flush=True)
                atomic.write_folder(found, write)
    except OSError as error:
        raise OSError(
            f"{name}: expected to keep the decoded images in {one_line(folder())}, got "
            f"{one_line(error.__cause__ or error)}; make room, or set XDG_CACHE_HOME to another folder"
        ) from error
    return found


def write_images(path: pathlib.Path, shape: tuple[int, ...], images: Iterable[np.ndarray]) -> None:
    """Writes uint8 images one after the other as the `.npy` file of one array.

    Args:
        path: File to write.
        shape: Of the array.
        images: Its rows, or parts of several rows.

    Raises:
        OSError: If there is no room, which is looked at first.
        ValueError: If there are more or fewer images.
    """
    free, size = shutil.disk_usage(path.parent).free, math.prod(shape)
    if free < size:
        raise OSError(f"{free / 2**30:.3g} GiB free where {size / 2**30:.3g} GiB are needed")
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        written = sum(file.write(np.ascontiguousarray(part).data) for part in images)
    if written != size:
        raise ValueError(f"{path.name}: expected {size:,} bytes for the shape {list(shape)}, got {written:,}")


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]
