"""Batches of images: for training shuffled and binarized afresh in each epoch, functions of (seed, epoch) alone.

Images on disk are read a batch at a time, some batches ahead, and give the same batches as those in memory.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_cvae.config import Binarization
from tfp_cvae.on_disk import Images, RowsOnDisk
from tfp_cvae.splits import UNLABELLED

# Number of the generator of `tf.random` that is the same on all devices.
_PHILOX = 1


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """What decides the batches of a split, checked.

    Attributes:
        batch_size: Images in a batch.
        binarization: As for `Split.batches`.
        seed: Seed of order and binarization.
        images: Number of images in the split.
        drop_remainder: Whether the last batch is left out if it is smaller.
        conditional: Whether there are labels.
        labelled_per_batch: Labelled images in each batch, where the others have no label; else None.
    """

    batch_size: int
    binarization: Binarization
    seed: int
    images: int
    drop_remainder: bool
    conditional: bool
    labelled_per_batch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, without what is None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass
class EpochCounter:
    """The `epochs` of batches of the training split.

    Attributes:
        next: Number of the epoch that the next iteration over the batches is, from 0.
        steps: Number of batches in an epoch.
        settings: What decides the batches.
    """

    next: int
    steps: int
    settings: BatchSettings


def shuffled_epochs(
    images: Images, labels: np.ndarray, num_classes: int, epochs: EpochCounter, share: tuple[int, int] = (0, 1)
) -> tf.data.Dataset:
    """Batches of which each iteration is the next epoch.

    Args:
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` integer; -1 where there is none.
        num_classes: Number of classes.
        epochs: Has the settings of the batches, and counts the iterations.
        share: `(i, n)` for the i-th of n equal parts of each batch.

    Returns:
        `tf.data.Dataset` of image `[batch / n, height, width, channels]` float32 in [0, 1], one_hot
        `[batch / n, num_classes]` float32.
    """
    settings = epochs.settings
    rows = settings.batch_size // share[1]
    first = share[0] * rows
    static_rows = rows if settings.drop_remainder else None
    read, all_labels = _reader(images), tf.constant(labels)

    def next_epoch() -> Iterator[int]:
        epochs.next += 1
        yield epochs.next - 1

    @tf.autograph.experimental.do_not_convert
    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.random.experimental.stateless_fold_in(tf.constant([settings.seed, 0], tf.int32), epoch)
        if settings.labelled_per_batch is None:
            whole_batch = _order(tf.range(len(images)), settings.batch_size, epoch_seed)
        else:
            sizes = settings.labelled_per_batch, settings.batch_size - settings.labelled_per_batch
            whole_batch = _mixed_order(labels != UNLABELLED, *sizes, epoch_seed)

        def one_batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            index = whole_batch(step)[first : first + rows]
            index.set_shape([static_rows])
            step_seed = tf.random.experimental.stateless_fold_in(epoch_seed, step)
            image = _binarize(read(index), settings.binarization, step_seed, first)
            return image, tf.one_hot(tf.gather(all_labels, index), num_classes)

        return tf.data.Dataset.range(epochs.steps, output_type=tf.int32).map(
            one_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    dataset = tf.data.Dataset.from_generator(next_epoch, output_signature=tf.TensorSpec([], tf.int32))
    return dataset.flat_map(one_epoch).apply(tf.data.experimental.assert_cardinality(epochs.steps))


def in_order(images: RowsOnDisk, labels: np.ndarray, num_classes: int, settings: BatchSettings) -> tf.data.Dataset:
    """Batches of images on disk in their order, binarized once.

    Args:
        images: `[n, height, width, channels]` uint8.
        labels: `[n]` integer; -1 where there is none.
        num_classes: Number of classes.
        settings: Of the batches.

    Returns:
        As of `shuffled_epochs`.
    """
    all_labels = tf.constant(labels)

    def draw(index: np.ndarray) -> np.ndarray:
        rows = slice(int(index[0]), int(index[-1]) + 1)
        return binarized_once(images, rows, settings.binarization, settings.seed)

    @tf.autograph.experimental.do_not_convert
    def one_batch(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = _computed(draw, index, images, tf.float32)
        return image, tf.one_hot(tf.gather(all_labels, index), num_classes)

    index = tf.data.Dataset.range(len(images)).batch(settings.batch_size, settings.drop_remainder)
    return index.map(one_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def without_tuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same elements, with a parallelism that `tf.data` does not tune meanwhile.

    The thread that tunes it sleeps longer each time, up to a minute. The end of an iterator wakes it and waits for it,
    but it may look a moment before it is told to stop, and then sleep on: `fit` stands still between two epochs, for up
    to as long as an epoch takes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def binarized_once(images: Images, rows: slice, binarization: Binarization, seed: int) -> np.ndarray:
    """Consecutive images, binarized in the one draw of all: whichever they are, it is the same for each.

    Args:
        images: `[n, height, width, channels]` uint8.
        rows: Which of them.
        binarization: As for `Split.binarized`.
        seed: Seed of the draw.

    Returns:
        `[rows, height, width, channels]` float32.
    """
    grey = images[rows]
    if binarization == "none":
        return grey / np.float32(255)
    if binarization == "threshold":
        return (grey >= 128).astype(np.float32)
    before = rows.start * math.prod(images.shape[1:])
    generator = np.random.PCG64(seed)
    # Two numbers of float32 come of each of its steps.
    generator.advance(before // 2)
    uniform = np.random.Generator(generator)
    uniform.random(before % 2, np.float32)
    return (uniform.random(grey.shape, np.float32) * 255 < grey).astype(np.float32)


def _reader(images: Images) -> Callable[[tf.Tensor], tf.Tensor]:
    """Function from indices to those images."""
    if not isinstance(images, RowsOnDisk):
        all_images = tf.constant(images)
        return lambda index: tf.gather(all_images, index)
    return lambda index: _computed(images.__getitem__, index, images, tf.uint8)


def _computed(
    function: Callable[[np.ndarray], np.ndarray], index: tf.Tensor, images: Images, dtype: tf.DType
) -> tf.Tensor:
    """What a function of NumPy makes of indices of images: as many images."""
    computed = tf.numpy_function(function, [index], dtype, stateful=False)
    return tf.ensure_shape(computed, [*index.shape, *images.shape[1:]])


def _order(index: tf.Tensor, batch_size: int, seed: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """Function from a step to the indices of its batch, of which each comes once in an epoch."""
    order = tf.random.experimental.stateless_shuffle(index, seed)
    return lambda step: order[step * batch_size : (step + 1) * batch_size]


def _mixed_order(
    has_label: np.ndarray, num_labelled: int, num_unlabelled: int, seed: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Function from a step to the indices of its batch: labelled images, which repeat, then unlabelled."""
    labelled, unlabelled = (tf.constant(np.flatnonzero(which), tf.int32) for which in (has_label, ~has_label))
    again = tf.random.experimental.stateless_shuffle(labelled, tf.random.experimental.stateless_fold_in(seed, -1))
    once = _order(unlabelled, num_unlabelled, seed)

    def whole_batch(step: tf.Tensor) -> tf.Tensor:
        place = (step * num_labelled + tf.range(num_labelled)) % int(has_label.sum())
        return tf.concat([tf.gather(again, place), once(step)], axis=0)

    return whole_batch


def _binarize(images: tf.Tensor, binarization: Binarization, seed: tf.Tensor, first: int) -> tf.Tensor:
    """Binarizes rows of a batch, of which `first` is the number of the first one."""
    if binarization == "threshold":
        return tf.cast(images >= 128, tf.float32)
    if binarization == "none":
        return tf.cast(images, tf.float32) / 255
    shape = tf.shape(images)
    random = random_bytes(seed, shape, first)
    return tf.cast(is_ink(images, random, random_ties(seed, shape[:2], first)), tf.float32)


def is_ink(grey: tf.Tensor, random: tf.Tensor, ties: tf.Tensor) -> tf.Tensor:
    """Which pixels are 1, each with probability grey / 255, from a random byte for each.

        1  if random < grey, or random = grey and tie < grey

    The first has the probability grey / 256, the second grey / 255 / 256, and so both together have grey / 255. As one
    byte in 256 needs it, a row of pixels has one tie: the variance of a sum over m values in a row is at most
    1 + (m - 1) / 65536 times that of independent ones.

    Args:
        grey: `[n, height, ...]` uint8.
        random: `[n, height, ...]` uint8, uniform in 0 to 255.
        ties: `[n, height]` uint8, uniform in 0 to 254.

    Returns:
        `[n, height, ...]` bool.
    """
    for _ in range(grey.shape.rank - 2):
        ties = ties[..., tf.newaxis]
    return (random < grey) | ((random == grey) & (ties < grey))


def random_bytes(seed: tf.Tensor, shape: tf.Tensor, first: int) -> tf.Tensor:
    """Rows of the bytes of `tf.random.stateless_uniform`, from the row `first` on, without those before it.

    Args:
        seed: `[2]` integer.
        shape: Shape of the rows that are wanted, `[rows, ...]` of known rank, int32.
        first: Number of rows before them.

    Returns:
        uint8, uniform in 0 to 255, of that shape.
    """
    key, counter, skipped = _philox(seed, 0, shape, first, 16)
    size = tf.reduce_prod(shape)
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[(skipped + size + 3) // 4], key=key, counter=counter, alg=_PHILOX, dtype=tf.uint32
    )
    drawn = tf.reshape(tf.bitcast(words, tf.uint8), [-1])
    return tf.reshape(drawn[skipped : skipped + size], shape)


def random_ties(seed: tf.Tensor, shape: tf.Tensor, first: int) -> tf.Tensor:
    """Numbers that have nothing to do with the bytes of the same seed.

    Args:
        seed: As for `random_bytes`, and so are the others.
        shape: Shape of the rows that are wanted.
        first: Number of rows before them.

    Returns:
        uint8, uniform in 0 to 254, of that shape.
    """
    key, counter, skipped = _philox(seed, 1, shape, first, 4)
    size = skipped + tf.reduce_prod(shape)
    drawn = tf.raw_ops.StatelessRandomUniformIntV2(
        shape=[size], key=key, counter=counter, alg=_PHILOX, minval=0, maxval=255
    )
    return tf.reshape(tf.cast(drawn[skipped:], tf.uint8), shape)


def _philox(
    seed: tf.Tensor, stream: int, shape: tf.Tensor, first: int, at_once: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Where the generator is after `first` rows: its key, its counter, and how many numbers of that counter are over.

    It counts, and each value of its counter gives 128 bits: `at_once` numbers. Each stream has a value of the upper
    half of the counter for itself.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3 (Philox).
    """
    before = tf.constant(first, tf.uint64) * tf.cast(tf.reduce_prod(shape[1:]), tf.uint64)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter += tf.stack([before // at_once, tf.constant(stream, tf.uint64)])
    return key, counter, tf.cast(before % at_once, tf.int32)
