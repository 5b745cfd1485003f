"""Images and labels, validated, and the batches that `fit` takes."""

import collections
import dataclasses
import functools
import hashlib
import numbers
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_cvae import array_checks, checks, on_disk, splits
from tfp_cvae.archive import one_line
from tfp_cvae.batches import BatchSettings, EpochCounter, binarized_once, in_order, shuffled_epochs, without_tuning
from tfp_cvae.config import HELD_OUT_SEED, Binarization
from tfp_cvae.on_disk import Images, RowsOnDisk
from tfp_cvae.splits import UNLABELLED


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One split of a data set: images with their labels, read-only.

    Attributes:
        name: "train", "validation" or "test".
        images: `[n, height, width, channels]` uint8; an array, or rows of a file.
        labels: `[n]` int64, in [0, num_classes); of training and validation images also -1, for none.
        num_classes: Number of classes.
    """

    name: str
    images: Images
    labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        for array in (self.images, self.labels):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({self.name!r}: {len(self):,} images {'x'.join(map(str, self.images.shape[1:]))})"

    def one_hot(self) -> np.ndarray:
        """Labels as `[n, num_classes]` float32; a row of zeros for an image without label."""
        return (self.labels[:, np.newaxis] == np.arange(self.num_classes)).astype(np.float32)

    def labelled(self) -> "Split":
        """The images that have a label."""
        return self.rows(np.flatnonzero(self.labels != UNLABELLED)) if self.has_unlabelled() else self

    def rows(self, index: np.ndarray) -> "Split":
        """Images and labels of the given indices, `[m]` integer, or of those that are True, `[n]` bool."""
        index = self._numbers("index", index)
        return dataclasses.replace(self, images=on_disk.rows_of(self.images, index), labels=self.labels[index])

    def divided(self, chosen: np.ndarray, name: str) -> tuple["Split", "Split"]:
        """Those that are not chosen, and the others as a split of that name; `chosen` is `[n]` bool."""
        return self.rows(~chosen), dataclasses.replace(self.rows(chosen), name=name)

    def has_unlabelled(self) -> bool:
        """Whether there are images without label."""
        return bool(np.any(self.labels == UNLABELLED))

    def binarized(
        self,
        binarization: Binarization = "dynamic",
        seed: int = HELD_OUT_SEED,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """One fixed draw of all images, a function of the seed alone.

        Args:
            binarization: "dynamic" draws each pixel as 1 with probability pixel/255; "threshold" is pixel >= 128;
                "none" is pixel/255, whose bounds in nats are not comparable with those of binary images.
            seed: Seed of the draw, in [0, 2**31).
            rows: Numbers of the images to return, `[m]` integer, or `[n]` bool; None for all.

        Returns:
            `[n, height, width, channels]` float32 in {0, 1}, or in [0, 1] with "none"; with `rows`, `m` of these.

        Raises:
            TypeError: If `seed` is not an integer, or `rows` are not.
            ValueError: If `binarization` or `seed` is out of range, or `rows` are no list.
            IndexError: If there are no such rows.
        """
        checks.choice("binarization", binarization, typing.get_args(Binarization))
        seed = checks.seed("seed", seed)
        wanted = np.arange(len(self)) if rows is None else self._numbers("rows", rows)
        drawn = np.empty((len(wanted), *self.images.shape[1:]), np.float32)
        done = 0
        for part in on_disk.parts(self.images) if rows is None else _runs(wanted):
            binary = binarized_once(self.images, part, binarization, seed)
            drawn[done : done + len(binary)] = binary
            done += len(binary)
        return drawn

    def mean_image(self, binarization: Binarization = "dynamic") -> np.ndarray:
        """Mean over all images of what each pixel is expected to be: `[height, width, channels]` float32 in [0, 1]."""
        # Dynamically binarized images have the mean of the grey ones.
        kind: Binarization = "threshold" if binarization == "threshold" else "none"
        total = np.zeros(self.images.shape[1:], np.float32)
        for part in on_disk.parts(self.images):
            # One after the other, so that the sum is the same whatever the parts are.
            for image in binarized_once(self.images, part, kind, HELD_OUT_SEED):
                total += image
        return total / len(self)

    def batches(
        self,
        batch_size: int,
        *,
        binarization: Binarization = "dynamic",
        seed: int = 0,
        initial_epoch: int = 0,
        drop_remainder: bool = False,
        conditional: bool = True,
        share: tuple[int, int] = (0, 1),
        labelled_per_batch: int | None = None,
    ) -> tf.data.Dataset:
        """Batches `((image, one_hot), image)` for `fit`, `evaluate` and `predict`.

        The training split is shuffled, and binarized afresh, in each epoch: iterating over the result once is one
        epoch, and its batches are a function of (`seed`, epoch) alone. If some of its images have no label, and labels
        are asked for, an epoch is one pass over those, and each batch begins with labelled ones, which come again
        and again. The other splits keep their order, and are one draw, `binarized(binarization, seed)`.

        The result counts its own iterations in its attribute `epochs`: a look with `next(iter(...))` begins an epoch
        too, and a second `fit` on it goes on where the first has stopped. Ask for new batches to start again.

        Args:
            batch_size: Images in a batch, >= 1; fewer images than that are one smaller batch.
            binarization: As for `binarized`.
            seed: Seed of order and binarization, in [0, 2**31). Leave it at its default for validation and test, so
                that bounds of different models are measured on the same images.
            initial_epoch: Epoch of the first iteration, to continue an earlier training.
            drop_remainder: Whether to leave out the last batch if it is smaller than the others.
            conditional: Whether to give labels; without, the batches are `(image, image)`.
            share: `(i, n)` for the i-th of n equal parts, from 0, of each batch: that of one of n workers. Of the
                training split, and with `drop_remainder`.
            labelled_per_batch: Labelled images in each batch, where others have no label; None for their share of the
                split, but at least a sixteenth.

        Returns:
            `tf.data.Dataset` with image `[batch, height, width, channels]` float32 in [0, 1], one_hot
            `[batch, num_classes]` float32, a row of zeros for an image without label.

        Raises:
            TypeError: If a number is not an integer.
            ValueError: If `batch_size`, `binarization`, `seed`, `initial_epoch`, `share` or `labelled_per_batch` is out
                of range.
        """
        batch_size, seed = checks.integer("batch_size", batch_size, 1), checks.seed("seed", seed)
        initial_epoch = checks.integer("initial_epoch", initial_epoch, 0)
        checks.choice("binarization", binarization, typing.get_args(Binarization))
        if labelled_per_batch is not None:
            checks.integer("labelled_per_batch", labelled_per_batch, 1)
        if not isinstance(share, Sequence) or len(share) != 2:
            raise TypeError(f"share: expected a pair (i, n) of integers, got {share!r}")
        index, parts = checks.integer("share", share[0], 0), checks.integer("share", share[1], 1)
        if not 0 <= index < parts or batch_size % parts or (parts > 1 and (self.name != "train" or not drop_remainder)):
            raise ValueError(
                f"share: expected (i, n) with 0 <= i < n, a batch size that n divides, the training split and "
                f"drop_remainder, got {share} of {batch_size} {self.name} images"
            )
        labelled = self._labelled_per_batch(batch_size, labelled_per_batch) if conditional and self._mixes() else None
        settings = BatchSettings(batch_size, binarization, seed, len(self), drop_remainder, conditional, labelled)
        steps = self.num_batches(
            batch_size,
            drop_remainder=drop_remainder,
            conditional=conditional,
            labelled_per_batch=labelled_per_batch,
        )
        if not steps:
            advice = "use a smaller batch, or drop_remainder=False" if len(self) else "give more images"
            raise ValueError(
                f"batch_size: expected at least one batch of {len(self)} {self.name} images, got none of "
                f"{batch_size}; {advice}"
            )
        epochs = EpochCounter(initial_epoch, steps, settings)
        if self.name == "train":
            dataset = shuffled_epochs(self.images, self.labels, self.num_classes, epochs, share)
        elif isinstance(self.images, RowsOnDisk):
            dataset = in_order(self.images, self.labels, self.num_classes, settings)
        else:
            arrays = (self.binarized(binarization, seed), self.one_hot())
            dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size, drop_remainder=drop_remainder)
        form = _labelled if conditional else _unlabelled
        dataset = dataset.map(form, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = without_tuning(dataset.prefetch(tf.data.AUTOTUNE))
        if self.name == "train":
            dataset.epochs = epochs
        return dataset

    def num_batches(
        self,
        batch_size: int,
        *,
        drop_remainder: bool = False,
        conditional: bool = True,
        labelled_per_batch: int | None = None,
    ) -> int:
        """Number of the `batches` with these arguments.

        Raises:
            TypeError: If a number is of the wrong kind.
            ValueError: If a number is out of range.
        """
        size, rows = len(self), checks.integer("batch_size", batch_size, 1)
        if conditional and self._mixes():
            size = int(np.sum(self.labels == UNLABELLED))
            rows -= self._labelled_per_batch(batch_size, labelled_per_batch)
        return size // rows if drop_remainder else -(-size // rows)

    def _numbers(self, name: str, rows: Any) -> np.ndarray:
        """Numbers of images, `[m]` int64, of what was given as such or as a mask."""
        given, size = array_checks.array(name, rows), len(self)
        if given.size and given.dtype.kind not in "biu":
            raise TypeError(f"{name}: expected integers or a mask of bool, got {given.dtype}; give numbers of images")
        if given.ndim != 1 or (given.dtype == bool and len(given) != size):
            raise ValueError(
                f"{name}: expected [m] numbers of images, or a mask [{size}] of bool, got {given.dtype} "
                f"{list(given.shape)}"
            )
        if given.size and given.dtype != bool and not -size <= given.min() <= given.max() < size:
            raise IndexError(
                f"{name}: expected numbers below {size}, as there are {size} {self.name} images, got {given.min()} to "
                f"{given.max()}"
            )
        return np.arange(size)[given if given.dtype == bool else given.astype(np.int64)]

    def _mixes(self) -> bool:
        """Whether batches are made of labelled and unlabelled images."""
        return self.name == "train" and self.has_unlabelled()

    def _labelled_per_batch(self, batch_size: int, given: int | None) -> int:
        # As of the images that there are: each labelled one may be repeated, but not for more than that.
        size = min(batch_size, len(self))
        in_all = size * int(np.sum(self.labels != UNLABELLED)) // len(self)
        number = max(1, size // 16, in_all) if given is None else checks.integer("labelled_per_batch", given, 1)
        if number >= batch_size:
            raise ValueError(
                f"labelled_per_batch: expected less than batch_size, {batch_size}, got {number}; the other "
                "images of a batch have no label"
            )
        return number


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A labelled set of images in three splits.

    Attributes:
        name: Where it comes from, as given to `load_dataset`.
        class_names: Name of each class, in the order of the labels.
        train: Split for training.
        validation: Split for choices made during training.
        test: Split for the numbers that are reported.
        split_off: Which of the images that the source has for training became the validation split, `[n]` bool; None if
            the source has one.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    split_off: np.ndarray | None = None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split):,} {split.name}" for split in (self.train, self.validation, self.test))
        size = "x".join(map(str, self.image_shape))
        few = f", {np.sum(self.train.labels != UNLABELLED):,} labels" if self.train.has_unlabelled() else ""
        return f"{self.name}: {sizes} images of {size}, {self.num_classes} classes{few}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """SHA-256 of all images, labels and names of classes, in hexadecimal digits."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(repr(split.images.shape).encode())
            for part in on_disk.parts(split.images):
                digest.update(np.ascontiguousarray(split.images[part]).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    def class_probabilities(self) -> np.ndarray:
        """p(y), the share of each class in the labels of the training split: `[num_classes]` float64."""
        labels = self.train.labels[self.train.labels != UNLABELLED]
        return np.bincount(labels, minlength=self.num_classes) / len(labels)

    def with_few_labels(self, num_labels: int, seed: int = 0) -> "Dataset":
        """The same images with few labels: the same number of training images of each class, and all test images.

        Training images are looked at in an order that is a function of the seed, until each class has its share. Labels
        that come after that are not looked at, and so decide nothing: if the validation split was split off by classes,
        it goes back, and another of that size is made of images without label.

        Args:
            num_labels: Number of training images that keep their label, a multiple of the number of classes.
            seed: Seed of the choice.

        Returns:
            The data set; label -1 stands for none.

        Raises:
            TypeError: If a value is not an integer.
            ValueError: If `num_labels` is no multiple of the number of classes, there are not as many images, or not
                enough are left without label for the validation split and at least one for training.
        """
        images, labels = self._source()
        for_validation = 0 if self.split_off is None else len(self.validation)
        labels = splits.few_labels(labels, self.class_names, num_labels, seed, for_validation)
        train = dataclasses.replace(self.train, images=images, labels=labels)
        validation = dataclasses.replace(self.validation, labels=np.full_like(self.validation.labels, UNLABELLED))
        if self.split_off is not None:
            train, validation = train.divided(splits.split_off(self.name, labels, len(validation)), "validation")
        return dataclasses.replace(self, train=train, validation=validation, split_off=None)

    def _source(self) -> tuple[Images, np.ndarray]:
        """Images and labels that the source has for training, in its order."""
        train, validation = self.train, self.validation
        if self.split_off is None:
            return train.images, train.labels
        images = on_disk.merged_images(train.images, validation.images, self.split_off)
        return images, on_disk.merged(train.labels, validation.labels, self.split_off)


def make_dataset(
    name: str,
    class_names: Sequence[str | int] | np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Validates images and labels and splits off what is missing.

    Without a test split, a tenth of each class of `train` becomes it; without a validation split, likewise, at most
    5,000 images in all. The choice is seeded and always the same.

    Args:
        name: Name of the data set, for messages.
        class_names: Name of each class, in the order of the labels, of printable characters; or integers, whose digits
            are the names.
        train: Images `[n, height, width]` or `[n, height, width, channels]`, of an integer type in [0, 255], of a float
            type in [0, 1] or bool; and integer labels `[n]` in [0, len(class_names)), or -1 for none. A `np.memmap` of
            uint8 images stays on disk, and may be larger than the memory.
        validation: The same, or None.
        test: The same, with all labels; or None, if all training images have one.

    Returns:
        The data set, its images `[n, height, width, channels]` uint8.

    Raises:
        TypeError: If images, labels or names are of the wrong kind.
        ValueError: If shapes or values do not fit, a class has no training image, or a split would be empty.
    """
    class_names = _checked_class_names(name, class_names)
    given: dict[str, Any] = {"train": train, "validation": validation, "test": test}
    pairs = {split: pair for split, pair in given.items() if split == "train" or pair is not None}
    for split, pair in pairs.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            got = f"{len(pair)} of them" if isinstance(pair, (tuple, list)) else type(pair).__name__
            raise TypeError(f"{name}: {split}: expected a pair (images, labels), got {got}")
    pixels = {split: array_checks.pixels(f"{name}: {split} images", images) for split, (images, _) in pairs.items()}
    shape = pixels["train"].shape[1:]
    made = {}
    for split, (_, labels) in pairs.items():
        # Taken out, so that nothing holds it in memory when it is divided below.
        images = pixels.pop(split)
        if images.shape[1:] != shape:
            raise ValueError(
                f"{name}: {split} images: expected the shape of the train images, {shape}, got {images.shape[1:]}"
            )
        labels = _checked_labels(f"{name}: {split} labels", labels, len(images), len(class_names), split != "test")
        made[split] = Split(split, images, labels, len(class_names))
    del images
    if "test" not in made and made["train"].has_unlabelled():
        raise ValueError(
            f"{name}: expected test images and their labels where training images have none (label {UNLABELLED}), got "
            "none; give test_images and test_labels in an .npz"
        )
    split_off = None
    for split, limit in (("test", None), ("validation", 5000)):
        if split not in made:
            size = len(made["train"])
            size = min(round(0.1 * size), size if limit is None else limit)
            split_off = splits.split_off(name, made["train"].labels, size)
            made["train"], made[split] = made["train"].divided(split_off, split)
    labels = made["train"].labels
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(class_names))
    if not counts.all():
        missing = int(np.argmin(counts))
        moved = sum(int(np.sum(split.labels == missing)) for split in made.values())
        hint = (
            f"as its {moved} are in other splits; add images, or give the splits yourself in an .npz"
            if moved
            else "with its label; the first class has the label 0"
        )
        raise ValueError(
            f"{name}: expected at least one training image of each class, got none of {class_names[missing]!r}, {hint}"
        )
    return Dataset(name, class_names, **made, split_off=split_off if validation is None else None)


def _checked_class_names(name: str, given: Any) -> tuple[str, ...]:
    # A set has another order in each process.
    if isinstance(given, (set, frozenset)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{name}: class_names: expected a list of them, one for each class, got {type(given).__name__}")
    # Of an array, as plain objects: the text of NumPy has another `repr`, and so another fingerprint.
    items = given.tolist() if isinstance(given, np.ndarray) else list(given)
    if not isinstance(items, list) or not items:
        raise ValueError(f"{name}: class_names: expected a list of at least one class, got {items!r}")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (str, numbers.Integral)):
            raise TypeError(
                f"{name}: class_names: expected text or integers, got {one_line(repr(item), 100)} of type "
                f"{type(item).__name__}"
            )
    class_names = tuple(str(item) for item in items)
    for class_name in class_names:
        checks.class_name(name, class_name)
    twice = [class_name for class_name, count in collections.Counter(class_names).items() if count > 1]
    if twice:
        raise ValueError(f"{name}: expected class names that differ, got {twice[0]!r} more than once")
    return class_names


def _checked_labels(name: str, labels: np.ndarray, size: int, num_classes: int, none_too: bool) -> np.ndarray:
    array_checks.without_mask(name, labels)
    labels = array_checks.array(name, labels)
    if labels.shape != (size,):
        hint = "; of one-hot rows give argmax(axis=1)" if labels.ndim == 2 else ""
        raise ValueError(f"{name}: expected shape [{size}], one for each image, got {list(labels.shape)}{hint}")
    labels = array_checks.integers(name, labels)
    given = labels[labels != UNLABELLED] if none_too else labels
    if given.size:
        array_checks.labels(name, given, num_classes)
    return labels


def _runs(rows: np.ndarray) -> list[slice]:
    """Slices of consecutive numbers."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs if run.size]


@tf.autograph.experimental.do_not_convert
def _labelled(image: tf.Tensor, one_hot: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
    return (image, one_hot), image


@tf.autograph.experimental.do_not_convert
def _unlabelled(image: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    del one_hot
    return image, image
