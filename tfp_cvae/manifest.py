"""Sizes and SHA-256 of the files of a folder: what is whole, and what has been altered since."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

from tfp_cvae import archive
from tfp_cvae.atomic import TEMPORARY_PREFIX, write_atomically

FILE = "manifest.json"


@contextlib.contextmanager
def changing(folder: pathlib.Path, *names: str) -> Iterator[None]:
    """Keeps the manifest true while files change: meanwhile, and if that is interrupted, it says so of them.

    Args:
        folder: Folder of the manifest.
        *names: Files and folders in it that may change, with all that is in them.
    """
    files, others = _read_if_whole(folder)
    files = {name: entry for name, entry in files.items() if not _within(name, names)}
    _write(folder, files, sorted({*others, *names}))
    yield
    record(folder, *names)


def record(folder: pathlib.Path, *names: str) -> None:
    """Writes down files and folders as they are now.

    Args:
        folder: Folder of the manifest.
        *names: Files in it, and folders, with all that is in them.
    """
    written = {}
    for name in names:
        path = folder / name
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and not file.name.startswith(TEMPORARY_PREFIX):
                written[file.relative_to(folder).as_posix()] = _entry(file)
    # Read again at the last moment, as another command may have written other files.
    files, others = _read_if_whole(folder)
    # Also the folder of such files, which an earlier version wrote as a whole.
    others = [other for other in others if not any(_within(name, (other,)) for name in names)]
    _write(folder, files | written, others)


def read(folder: pathlib.Path) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Size and SHA-256 of each file by its name in the folder, and the names that are being changed.

    Raises:
        ValueError: If the manifest cannot be read.
    """
    try:
        content = archive.parse_json((folder / FILE).read_bytes())
        files = {
            name: {"size": int(entry["size"]), "sha256": str(entry["sha256"])}
            for name, entry in content["files"].items()
        }
        return files, [str(name) for name in content["changing"]]
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / FILE}: expected sizes and SHA-256 by file, got what cannot be read ({type(error).__name__}); "
            "delete it if the other files are whole, and plot or evaluate again"
        ) from error


def faults(folder: pathlib.Path, expected: Sequence[str]) -> dict[str, str]:
    """What is wrong with the files that a folder should have, and those that the manifest lists, by name.

    Raises:
        ValueError: If the manifest cannot be read.
    """
    files, others = read(folder)
    found = dict.fromkeys(others, "being written, or was when its command was stopped; run that again")
    for name in dict.fromkeys([*expected, *files]):
        # A manifest from elsewhere may not ask about files outside.
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            found[name] = "outside of the folder"
        elif name in others:
            continue
        elif not path.is_file():
            found[name] = "missing"
        elif name not in files:
            found[name] = "not in the manifest, as of an older version"
        else:
            try:
                if _entry(path) != files[name]:
                    found[name] = "altered"
            except OSError:
                found[name] = "not readable"
    return found


def _within(name: str, folders: tuple[str, ...]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _entry(path: pathlib.Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _read_if_whole(folder: pathlib.Path) -> tuple[dict[str, dict[str, object]], list[str]]:
    try:
        return read(folder)
    except ValueError:
        return {}, []


def _write(folder: pathlib.Path, files: dict[str, dict[str, object]], others: list[str]) -> None:
    text = json.dumps({"changing": others, "files": dict(sorted(files.items()))}, indent=2)
    write_atomically(folder / FILE, lambda path: path.write_text(text + "\n"))
