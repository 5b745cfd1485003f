"""The folder of a run: whether it holds one, and may be given to another. Imports no TensorFlow."""

import os
import pathlib
import re

from tfp_cvae import archive

CONFIG = "config.json"
BACKUP = "backup"


def has_config(path: pathlib.Path) -> bool:
    """Whether there is a `config.json` in a folder: of a run, or of another program."""
    # Also of a name that is too long for the system.
    return os.path.isfile(path / CONFIG)


def holds_run(path: pathlib.Path) -> bool:
    """Whether a folder holds a run, as against nothing.

    Raises:
        ValueError: If it holds something else, or cannot be looked at.
    """
    shown = archive.one_line(repr(str(path)), 100)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # Libraries that are to write into it take no other one.
        raise ValueError(f"output: expected a name of text in UTF-8, got {shown}; choose another one") from None
    try:
        return _holds_run(path)
    except OSError as error:
        raise ValueError(
            f"output: expected a folder that can be read, got {shown}: {os.strerror(error.errno or 0)}; choose another "
            "one"
        ) from error


def _holds_run(path: pathlib.Path) -> bool:
    if path.exists() and not path.is_dir():
        raise ValueError(f"output: expected a new folder, got {str(path)!r}, which is a file")
    # Hidden are the lock, and what a killed process has left half written.
    if not path.is_dir() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return False
    if has_config(path) and _is_of_run(path / CONFIG):
        return True
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if names == [BACKUP] and not any((path / BACKUP).iterdir()):
        # Of a process that was killed before it could write more.
        return False
    raise ValueError(
        f"output: expected a new folder, got {str(path)!r}, which holds something else than a run; choose another one"
    )


def check_one_of(overwrite: bool, resume: bool) -> None:
    """Raises ValueError if a run is to be both deleted and gone on with."""
    if overwrite and resume:
        raise ValueError("overwrite, resume: expected one of them, got both")


def check_free(path: pathlib.Path, overwrite: bool) -> None:
    """Raises ValueError unless a run may be made in a folder."""
    if holds_run(path) and not overwrite:
        raise ValueError(
            f"output: expected a new folder, got {str(path)!r}, which holds a run; go on with it (--resume), overwrite "
            "it (--overwrite), or choose another one"
        )


def checked_versions_folder(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the absolute path of a folder for the versions of a served model, if it can be one."""
    if not str(value):
        raise ValueError(f"{name}: expected a folder, got an empty name")
    folder = pathlib.Path(os.path.abspath(value))
    # A colon is that of a bucket, and ends a path for Docker.
    if ":" in str(folder):
        raise ValueError(f"{name}: expected a local folder without ':', to copy to buckets, got {str(folder)!r}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{name}: expected a folder, got {str(folder)!r}, which is a file")
    if has_config(folder):
        raise ValueError(f"{name}: expected a folder for versions alone, got {str(folder)!r}, which holds a run")
    if not re.fullmatch(r"[\w.-]+", folder.name):
        raise ValueError(
            f"{name}: expected a name of letters, digits, '_', '-' and '.', as it is that of the served model, got "
            f"{folder.name!r}"
        )
    return folder


def _is_of_run(config: pathlib.Path) -> bool:
    """Whether a `config.json` is that of a run, as against that of another program."""
    try:
        content = archive.parse_json(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"versions", "class_names"} <= set(content)
