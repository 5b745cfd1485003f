"""Checks of the batches that `fit`, `evaluate` and `predict` are given, each as it comes."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfp_cvae.array_checks import SUM_TOLERANCE
from tfp_cvae.batches import EpochCounter

TARGET = "y (the image again)"


class CheckedSequence(keras.utils.Sequence):
    """A `Sequence` whose batches go through a check."""

    def __init__(self, sequence: keras.utils.Sequence, check: Callable[[Any], Any]) -> None:
        self._sequence = sequence
        self._check = check

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> Any:
        return self._check(self._sequence[index])

    def on_epoch_end(self) -> None:
        """Tells the `Sequence`, which may shuffle."""
        self._sequence.on_epoch_end()

    def __reduce__(self) -> Any:
        # To a process that is spawned goes the `Sequence` alone: the model, which checks, cannot be sent.
        return _itself, (self._sequence,)


def _itself(sequence: keras.utils.Sequence) -> keras.utils.Sequence:
    return sequence


def check_spec(name: str, spec: Any, shape: tuple[int, ...]) -> None:
    """Checks what a data set says of an array: a tensor of numbers, `[batch, *shape]`."""
    if not isinstance(spec, (tf.TensorSpec, tf.RaggedTensorSpec)):
        advice = "; use tf.sparse.to_dense" if isinstance(spec, tf.SparseTensorSpec) else ""
        raise TypeError(f"{name}: expected a tensor, got {spec!r:.80}{advice}")
    if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
        raise TypeError(f"{name}: expected numbers, got dtype {spec.dtype.name}")
    check_shape(name, spec.shape, shape)


def check_single(name: str, given: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError for None, or for arrays in a dict or the like, in the place of an array."""
    if _is_none(given):
        advice = "; of images without label a SemiSupervisedCVAE takes rows of 0" if name == "one_hot" else ""
        raise ValueError(f"{name}: expected an array {_with_batch(shape)}, got None{advice}")
    # Lists of numbers are as good as an array.
    if tf.nest.is_nested(given) and any(getattr(part, "shape", ()) != () for part in tf.nest.flatten(given)):
        raise ValueError(f"{name}: expected an array {_with_batch(shape)}, got a {type(given).__name__} of arrays")


def check_shape(name: str, given: tf.TensorShape, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a shape cannot be `[batch, *shape]`."""
    if not given[1:].is_compatible_with(shape):
        advice = "; batch it" if given.is_compatible_with(shape) else ""
        raise ValueError(f"{name}: expected shape {_with_batch(shape)}, got {given.as_list()}{advice}")


def check_is_batches(data: Any, takes_unlabelled: bool) -> None:
    """Refuses a split in the place of its batches, and batches with images without label if they are not taken."""
    uses = {"its method batches, as in batches(128)": data, "train.batches(128)": getattr(data, "train", None)}
    for use, part in uses.items():
        if callable(getattr(part, "batches", None)):
            raise TypeError(f"x: expected batches, got {data!r}; use {use}")
    epochs = getattr(data, "epochs", None)
    mixes = isinstance(epochs, EpochCounter) and epochs.settings.labelled_per_batch is not None
    if mixes and not takes_unlabelled:
        raise ValueError(
            "x: expected images that all have a label, got batches with some that have none; use a "
            "SemiSupervisedCVAE (build_semi_supervised_cvae)"
        )


def target_is_checked(spec: Any, shape: tuple[int, ...], *, strict: bool) -> bool:
    """Whether the target of a data set is images of this shape, by what the data set says; if `strict` it has to be."""
    try:
        if _is_none(spec):
            # Keras would leave out loss and metrics, and report 0.
            raise ValueError(
                "y: expected batches ((image, one_hot), image), or (image, image) without classes, got no target; give "
                "the image again"
            )
        check_spec(TARGET, tf.nest.flatten(spec)[0], shape)
    except (TypeError, ValueError):
        if strict:
            raise
        return False
    return True


def weight_is_checked(spec: Any) -> bool:
    """Whether a data set has weights, by what it says; they have to be a number for each image."""
    if _is_none(spec):
        return False
    if not isinstance(spec, tf.TensorSpec):
        raise TypeError(f"sample_weight: expected a tensor, got {spec!r:.80}")
    check_spec("sample_weight", spec, (1,) if spec.shape.rank == 2 else ())
    return True


def checked_dataset(
    data: tf.data.Dataset, takes_unlabelled: bool, *, inputs: bool, target: bool, sample_weight: bool
) -> tf.data.Dataset:
    """A data set that stops with an error at a batch that is out of range.

    Images are to be in [0, 1], those that are given again as the target as well, and rows of labels to be in [0, 1],
    too, and to sum to 1; or, if images without label are taken, to be one-hot or 0. Weights are to be finite and >= 0.

    Args:
        data: Batches.
        takes_unlabelled: Whether images without label are taken.
        inputs: Whether the inputs are an image, or an image and a label, of which that is to hold.
        target: Whether the target is the image.
        sample_weight: Whether there is a weight for each image.
    """
    # Batches of the training split, known by their `epochs`, are in [0, 1] as they are made.
    if isinstance(getattr(data, "epochs", None), EpochCounter):
        return data

    @tf.autograph.experimental.do_not_convert
    def check(x: Any, *rest: Any) -> Any:
        assertions: list[tf.Operation] = []
        named = [
            *(zip(("image", "one_hot"), tf.nest.flatten(x), strict=False) if inputs else ()),
            *([(TARGET, tf.nest.flatten(rest[0])[0])] if target else ()),
            *([("sample_weight", rest[1])] if sample_weight else ()),
        ]
        for name, given in named:
            tensor = tf.cast(given, tf.float32)
            expected, advice = "values in [0, 1]", "divide grey values by 255"
            # Written so that NaN fails it.
            holds = tf.reduce_all((tensor >= 0) & (tensor <= 1))
            if name == "one_hot":
                sums = tf.reduce_sum(tensor, axis=-1)
                if takes_unlabelled:
                    expected, advice = "rows that are one-hot, or 0 for no label", "give 0 where a label is not certain"
                    holds &= tf.reduce_all((tensor == 0) | (tensor == 1)) & tf.reduce_all(sums <= 1)
                else:
                    expected, advice = "rows in [0, 1] that sum to 1", "give one-hot rows"
                    holds &= tf.reduce_all(tf.abs(sums - 1) < SUM_TOLERANCE)
            elif name == "sample_weight":
                expected, advice = "finite values >= 0", "a weight is how often an image counts"
                holds = tf.reduce_all((tensor >= 0) & tf.math.is_finite(tensor))
            message = f"{name}: expected {expected}"
            # One after the other, so that the first of them is told.
            with tf.control_dependencies(assertions):
                assertions.append(_stopped_unless(holds, message, advice, tensor, of_grey=name in ("image", TARGET)))
        with tf.control_dependencies(assertions):
            return tf.nest.map_structure(lambda part: None if part is None else tf.identity(part), (x, *rest))

    return data.map(check)


def _is_none(part: Any) -> bool:
    """Whether a part of a batch is None, or a data set says so of it."""
    return part is None or isinstance(part, tf.NoneTensorSpec)


def _with_batch(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['batch', *map(str, shape)])}]"


def _stopped_unless(holds: tf.Tensor, message: str, advice: str, tensor: tf.Tensor, of_grey: bool) -> tf.Operation:
    """An assertion that looks for the extremes of a tensor, which it tells, only where it fails.

    Advice `of_grey` values is given where there is one above 1.
    """

    def stop() -> tf.Tensor:
        lowest, highest = tf.reduce_min(tensor), tf.reduce_max(tensor)
        advised = (highest > 1) | (not of_grey)
        told = [tf.where(advised, f"{message}; {advice}. Got:", f"{message}. Got:"), lowest, "to", highest]
        # Without the guard of `tf.debugging.Assert`, a second condition, of which TensorFlow would warn in each epoch.
        with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=told)]):
            return tf.constant(False)

    return tf.cond(holds, lambda: tf.constant(True), stop).op
