"""Images and labels in memory, validated, and the batches that `fit` takes."""

import dataclasses
import hashlib
import typing
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_cvae import checks
from tfp_cvae.batches import EpochCounter, shuffled_epochs
from tfp_cvae.config import Binarization

# Seed of the one draw in which validation and test images are binarized, for all runs alike.
HELD_OUT_SEED = 0

_CHUNK = 8192


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One split of a data set: images with their labels, read-only.

    Attributes:
        name: "train", "validation" or "test".
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` int64, in [0, num_classes).
        num_classes: Number of classes.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({self.name!r}: {len(self):,} images {'x'.join(map(str, self.images.shape[1:]))})"

    def one_hot(self) -> np.ndarray:
        """Labels as `[n, num_classes]` float32."""
        return np.eye(self.num_classes, dtype=np.float32)[self.labels]

    def binarized(self, binarization: Binarization = "dynamic", seed: int = HELD_OUT_SEED) -> np.ndarray:
        """One fixed draw of all images, a function of the seed alone.

        Args:
            binarization: "dynamic" draws each pixel as 1 with probability pixel/255; "threshold" is pixel >= 128;
                "none" is pixel/255, whose bounds in nats are not comparable with those of binary images.
            seed: Seed of the draw.

        Returns:
            `[n, height, width, channels]` float32 in {0, 1}, or in [0, 1] with "none".
        """
        checks.choice("binarization", binarization, typing.get_args(Binarization))
        if binarization == "none":
            return self.images / np.float32(255)
        if binarization == "threshold":
            return (self.images >= 128).astype(np.float32)
        generator = np.random.default_rng(seed)
        drawn = np.empty(self.images.shape, np.float32)
        for start in range(0, len(self), _CHUNK):
            chunk = self.images[start : start + _CHUNK]
            drawn[start : start + _CHUNK] = generator.random(chunk.shape, np.float32) * 255 < chunk
        return drawn

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
    ) -> tf.data.Dataset:
        """Batches `((image, one_hot), image)` for `fit`, `evaluate` and `predict`.

        The training split is shuffled, and binarized afresh, in each epoch: iterating over the result once is one
        epoch, and its batches are a function of (`seed`, epoch) alone. The other splits keep their order, and are one
        draw, `binarized(binarization, seed)`.

        The result counts its own iterations in its attribute `epochs`: a look with `next(iter(...))` begins an epoch
        too, and a second `fit` on it goes on where the first has stopped. Ask for new batches to start again.

        Args:
            batch_size: Images in a batch, >= 1 and at most the size of the split.
            binarization: As for `binarized`.
            seed: Seed of order and binarization. Leave it at its default for validation and test, so that bounds of
                different models are measured on the same images.
            initial_epoch: Epoch of the first iteration, to continue an earlier training.
            drop_remainder: Whether to leave out the last batch if it is smaller than the others.
            conditional: Whether to give labels; without, the batches are `(image, image)`.
            share: `(i, n)` for the i-th of n equal parts, from 0, of each batch: that of one of n workers. Of the
                training split, and with `drop_remainder`.

        Returns:
            `tf.data.Dataset` with image `[batch, height, width, channels]` float32 in [0, 1], one_hot
            `[batch, num_classes]` float32.

        Raises:
            ValueError: If `batch_size`, `binarization` or `share` is out of range.
        """
        if not 1 <= batch_size <= len(self):
            raise ValueError(
                f"batch_size: expected 1 to {len(self)}, the number of {self.name} images, got {batch_size}; "
                "use a smaller batch or more images"
            )
        checks.choice("binarization", binarization, typing.get_args(Binarization))
        index, parts = share
        if not 0 <= index < parts or batch_size % parts or (parts > 1 and (self.name != "train" or not drop_remainder)):
            raise ValueError(
                f"share: expected (i, n) with 0 <= i < n, a batch size that n divides, the training split and "
                f"drop_remainder, got {share} of {batch_size} {self.name} images"
            )
        settings = {"batch_size": batch_size, "binarization": binarization, "seed": seed, "images": len(self)}
        settings.update(drop_remainder=drop_remainder, conditional=conditional)
        steps = len(self) // batch_size if drop_remainder else -(-len(self) // batch_size)
        epochs = EpochCounter(initial_epoch, steps, settings)
        if self.name == "train":
            dataset = shuffled_epochs(self.images, self.one_hot(), epochs, share)
        else:
            arrays = (self.binarized(binarization, seed), self.one_hot())
            dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size, drop_remainder=drop_remainder)
        form = _labelled if conditional else _unlabelled
        dataset = dataset.map(form, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.prefetch(tf.data.AUTOTUNE)
        if self.name == "train":
            dataset.epochs = epochs
        return dataset


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A labelled set of images in three splits.

    Attributes:
        name: Where it comes from, as given to `load_dataset`.
        class_names: Name of each class, in the order of the labels.
        train: Split for training.
        validation: Split for choices made during training.
        test: Split for the numbers that are reported.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def __repr__(self) -> str:
        splits = ", ".join(f"{len(split):,} {split.name}" for split in (self.train, self.validation, self.test))
        size = "x".join(map(str, self.image_shape))
        return f"{self.name}: {splits} images of {size}, {self.num_classes} classes"

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
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    def class_probabilities(self) -> np.ndarray:
        """p(y), the share of each class in the training split: `[num_classes]` float64."""
        return np.bincount(self.train.labels, minlength=self.num_classes) / len(self.train)


def make_dataset(
    name: str,
    class_names: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Validates images and labels and splits off what is missing.

    Without a test split, a tenth of each class of `train` becomes it; without a validation split, likewise, at most
    5,000 images in all. The choice is seeded and always the same.

    Args:
        name: Name of the data set, for messages.
        class_names: Name of each class, in the order of the labels.
        train: Images `[n, height, width]` or `[n, height, width, channels]`, of an integer type in [0, 255], of a float
            type in [0, 1] or bool; and integer labels `[n]` in [0, len(class_names)).
        validation: The same, or None.
        test: The same, or None.

    Raises:
        TypeError: If images or labels are of the wrong kind.
        ValueError: If shapes or values do not fit, a class has no training image, or a split would be empty.
    """
    checked = {
        split: (checks.pixels(f"{name}: {split} images", pair[0]), pair[1])
        for split, pair in (("train", train), ("validation", validation), ("test", test))
        if pair is not None
    }
    shape = checked["train"][0].shape[1:]
    for split, (images, labels) in checked.items():
        if images.shape[1:] != shape:
            raise ValueError(
                f"{name}: {split} images: expected the shape of the train images, {shape}, got {images.shape[1:]}"
            )
        checked[split] = images, _checked_labels(f"{name}: {split} labels", labels, len(images), len(class_names))
    for split, limit in (("test", None), ("validation", 5000)):
        if split not in checked:
            checked["train"], checked[split] = _split_off(name, *checked["train"], limit)
    counts = np.bincount(checked["train"][1], minlength=len(class_names))
    if not counts.all():
        missing = class_names[int(np.argmin(counts))]
        raise ValueError(f"{name}: expected at least one training image of each class, got none of {missing!r}")
    splits = {}
    for split, (images, labels) in checked.items():
        images.flags.writeable = labels.flags.writeable = False
        splits[split] = Split(split, images, labels, len(class_names))
    return Dataset(name, tuple(class_names), **splits)


def _split_off(
    name: str, images: np.ndarray, labels: np.ndarray, limit: int | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Splits a tenth of each class off: `(kept, split off)`, each in the original order."""
    size = min(round(0.1 * len(images)), len(images) if limit is None else limit)
    if size == 0:
        raise ValueError(
            f"{name}: expected at least 10 images, of which a tenth is split off for validation and test, "
            f"got {len(images)}; add images, or give the splits yourself in an .npz"
        )
    # A share of each class, rounded so that they make up the size.
    classes, counts = np.unique(labels, return_counts=True)
    share = size * counts / len(labels)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    generator = np.random.default_rng(0)
    chosen = np.zeros(len(images), bool)
    for label, count in zip(classes, quota, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    return (images[~chosen], labels[~chosen]), (images[chosen], labels[chosen])


def _checked_labels(name: str, labels: np.ndarray, size: int, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (size,):
        raise ValueError(f"{name}: expected shape [{size}], one for each image, got {list(labels.shape)}")
    labels = checks.integers(name, labels)
    checks.labels(name, labels, num_classes)
    return labels


def _labelled(image: tf.Tensor, one_hot: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
    return (image, one_hot), image


def _unlabelled(image: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    del one_hot
    return image, image
