"""One training in a folder at a time."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

from tfp_cvae import archive
from tfp_cvae.atomic import explained, write_atomically

# Held by the system for as long as its owner lives: a killed owner leaves no lock, only a note of who it was.
_LOCK = ".tfp-cvae-lock"
_OWNER = ".tfp-cvae-owner.json"


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps a folder for this process.

    Args:
        folder: Existing folder.

    Raises:
        ValueError: If another process, or another thread of this one, has it.
        OSError: If nothing can be written there.
    """
    lock = filelock.FileLock(folder / _LOCK, blocking=False, is_singleton=False)
    with explained(folder):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ValueError(
                f"output: expected a folder in which nobody else trains, got {str(folder)!r}, taken by "
                f"{_owner(folder)}; wait for it, stop it, or choose another folder"
            ) from None
    try:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        write_atomically(folder / _OWNER, lambda path: path.write_text(json.dumps(owner)))
        yield
    finally:
        # Before the release: who has opened the lock meanwhile sees that it has no name any more, and fails.
        for name in (_OWNER, _LOCK):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        lock.release()


def _owner(folder: pathlib.Path) -> str:
    try:
        owner = archive.parse_json((folder / _OWNER).read_bytes())
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
