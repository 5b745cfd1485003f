"""What the name of a data set stands for, before anything is loaded. Imports no TensorFlow."""

import itertools
import os
import pathlib
import re

from tfp_cvae import archive, checks

# The data set that comes with the package.
EMBEDDED = "mnist5k"

# A name, a configuration, a version. Other words have a meaning for TFDS as well: some run code from elsewhere.
_TFDS_NAME = re.compile(r"[a-z]\w*(/\w[\w.+-]*)?(:[\d.*]+)?", re.ASCII)
# The file that TFDS writes into the folder of each version of a data set.
_TFDS_INFO = "dataset_info.json"
# Entries of a subfolder that are looked at for a version: a folder of pictures may hold millions.
_SEARCHED_ENTRIES = 9

# Longest name of a data set that a folder is named after.
_LONGEST_FOLDER = 100


def path_of(dataset: str) -> pathlib.Path | None:
    """The file or folder that `load_dataset` reads for this name, absolute; None if it reads none."""
    path = pathlib.Path(dataset)
    if dataset == EMBEDDED or (is_tfds_name(dataset) and _is_prepared_by_tfds(path)):
        return None
    # What the system cannot look up, as it is too long or forbidden, is no folder.
    return path.absolute() if path.suffix == ".npz" or os.path.isdir(path) else None


def is_tfds_name(dataset: str) -> bool:
    """Whether it looks like the name of a data set of TensorFlow Datasets."""
    return _TFDS_NAME.fullmatch(dataset) is not None and len(dataset) <= checks.LONGEST_NAME


def _is_prepared_by_tfds(folder: pathlib.Path) -> bool:
    """Whether it is what TFDS makes of a data set, or of all of them: name/configuration/version, some left out."""
    try:
        if os.path.lexists(folder / "images.npy"):
            return False
        inner = [path for path in folder.iterdir() if path.is_dir()]
        for path in list(inner):
            with os.scandir(path) as entries:
                inner += [path / entry.name for entry in itertools.islice(entries, _SEARCHED_ENTRIES)]
        return any(os.path.isfile(path / _TFDS_INFO) for path in [folder, *inner])
    # What cannot be looked at is not prepared.
    except (OSError, ValueError):
        return False


def check_is_there(dataset: str) -> None:
    """Raises ValueError if a data set can only be a file or a folder, and there is none, or one of TFDS."""
    path = pathlib.Path(dataset)
    if dataset == EMBEDDED:
        return
    if os.path.isdir(path):
        if _is_prepared_by_tfds(path) and not is_tfds_name(dataset):
            raise ValueError(
                f"dataset: expected a folder with a subfolder for each class, got {archive.one_line(repr(dataset))}, "
                "which TFDS has prepared; give the name of the data set, such as mnist, and set TFDS_DATA_DIR to the "
                "folder in which there is one of that name"
            )
        return
    if path.suffix == ".npz":
        archive.file_size(path, ".npz file")
    elif dataset.startswith((".", "~")) or dataset.endswith("/") or path.is_absolute() or os.path.isfile(path):
        expected = "a folder with a subfolder for each class or an .npz file"
        got = f"{'another file' if os.path.isfile(path) else 'none'}: {archive.one_line(repr(dataset))}"
        raise ValueError(f"dataset: expected {expected}, got {got}; see tfp-cvae datasets")


def default_output(dataset: str) -> pathlib.Path:
    """Folder of a run that was not given one: `runs/` and the name of the data set."""
    path = pathlib.Path(dataset)
    if os.path.exists(path):
        name = path.resolve().name.removesuffix(".npz")
    else:
        # Cut where it is no name of anything, and longer than the system takes one.
        name = dataset[:_LONGEST_FOLDER].replace("/", "-")
    return pathlib.Path("runs") / (name or "run")
