"""Checks of the batches that `fit`, `evaluate` and `predict` are given, each as it comes."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfp_cvae.batches import EpochCounter

_SUM_TOLERANCE = 1e-3


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


def checked_dataset(data: Any, takes_unlabelled: bool, with_target: bool) -> Any:
    """A `tf.data.Dataset` that stops with an error at an input that is out of range; anything else as it is.

    Images are to be in [0, 1], those that are given again as the target as well, and rows of labels to be in [0, 1],
    too, and to sum to 1; or, if images without label are taken, to be one-hot or 0.
    """
    uses = {"its method batches, as in batches(128)": data, "train.batches(128)": getattr(data, "train", None)}
    for use, part in uses.items():
        if callable(getattr(part, "batches", None)):
            raise TypeError(f"x: expected batches, got {data!r}; use {use}")
    if not takes_unlabelled and "labelled_per_batch" in getattr(getattr(data, "epochs", None), "settings", ()):
        raise ValueError(
            "x: expected images that all have a label, got batches with some that have none; use a "
            "SemiSupervisedCVAE (build_semi_supervised_cvae)"
        )
    # Batches of the training split, known by their `epochs`, are in [0, 1] as they are made.
    if not isinstance(data, tf.data.Dataset) or isinstance(getattr(data, "epochs", None), EpochCounter):
        return data
    if with_target and keras.utils.unpack_x_y_sample_weight(data.element_spec)[1] is None:
        # Keras would leave out loss and metrics, and report 0.
        raise ValueError(
            "y: expected batches ((image, one_hot), image), or (image, image) without classes, got no target; give "
            "the image again"
        )

    @tf.autograph.experimental.do_not_convert
    def check(x: Any, *rest: Any) -> Any:
        assertions: list[tf.Operation] = []
        targets = tf.nest.flatten(rest[0])[:1] if rest and with_target else []
        named = [
            *zip(("image", "one_hot"), tf.nest.flatten(x), strict=False),
            *(("y (the image again)", y) for y in targets),
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
                    holds &= tf.reduce_all(tf.abs(sums - 1) < _SUM_TOLERANCE)
            message = f"{name}: expected {expected}"
            # One after the other, so that the first of them is told.
            with tf.control_dependencies(assertions):
                assertions.append(_stopped_unless(holds, message, advice, tensor, of_grey=name != "one_hot"))
        with tf.control_dependencies(assertions):
            return tf.nest.map_structure(tf.identity, (x, *rest))

    return data.map(check)


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
