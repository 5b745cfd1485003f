"""Keras losses and metrics: the dress of `objectives` for `compile`.

`y_true` is the image, `y_pred` what the model returns, a `CVAEOutput`. The losses give one value for each image and
Keras takes the mean over the batch; the metrics are means over the epoch in which every image counts the same, so a
ragged last batch changes nothing. All are in nats per image.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfp_cvae import checks, objectives
from tfp_cvae.outputs import SemiSupervisedOutput


class _LossOfImages(keras.losses.Loss):
    """A loss with one value for each image."""

    def __call__(self, y_true: tf.Tensor, y_pred: Any, sample_weight: tf.Tensor | None = None) -> tf.Tensor:
        return super().__call__(y_true, y_pred, _checked_weight(sample_weight))


@keras.saving.register_keras_serializable("tfp_cvae")
class NegativeELBO(_LossOfImages):
    """Negative evidence lower bound, D + R, with the KL in closed form where it has one.

        loss = D + kl_weight * R

    With `free_bits` the rate is replaced by sum_j max(free_bits, mean over the batch of R_j), j over latent dimensions
    (Kingma et al. 2016, eq. 15), which depends on the batch, all images of which count the same in it, whatever their
    sample_weight. Neither option changes what the metrics report.

    Args:
        kl_weight: Weight of the rate, >= 0; 1 is the bound. `callbacks.KLWarmUp` raises it to this during training.
        free_bits: Rate in nats that each latent dimension has for free, >= 0.
        **kwargs: Of `keras.losses.Loss`.

    Attributes:
        kl_weight: Weight of the rate at the moment, a `tf.Variable`.
        full_kl_weight: The weight that was given, with which the loss is saved.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If it is negative or not finite.
    """

    def __init__(
        self, *, kl_weight: float = 1.0, free_bits: float = 0.0, name: str = "negative_elbo", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.full_kl_weight = checks.number("kl_weight", kl_weight, 0)
        self.kl_weight = tf.Variable(self.full_kl_weight, trainable=False, dtype=tf.float32, name="kl_weight")
        self.free_bits = checks.number("free_bits", free_bits, 0)

    @tf.autograph.experimental.do_not_convert
    def call(self, y_true: tf.Tensor, y_pred: Any) -> tf.Tensor:
        """Loss of each image.

        Args:
            y_true: Image, `[batch, height, width, channels]` float32, in {0, 1}.
            y_pred: Model output.

        Returns:
            `[batch]` float32, nats per image.
        """
        image = _checked_image(y_true, y_pred)
        if self.free_bits:
            per_dimension = tf.reduce_mean(objectives.rate_per_dimension(y_pred), axis=0)
            rate = tf.reduce_sum(tf.maximum(per_dimension, self.free_bits))
        else:
            rate = objectives.rate(y_pred)
        return objectives.distortion(image, y_pred) + tf.cast(self.kl_weight, rate.dtype) * rate

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kl_weight": self.full_kl_weight, "free_bits": self.free_bits}


@keras.saving.register_keras_serializable("tfp_cvae")
class NegativeIWAE(_LossOfImages):
    """Negative importance-weighted bound, -log 1/K sum_k w_k, with K the model's `num_samples`.

    Source: Burda et al. 2015, eq. 8. Of a `SemiSupervisedCVAE`, q(y|x) has no part in it, and learns nothing.

    Args:
        **kwargs: Of `keras.losses.Loss`.
    """

    def __init__(self, name: str = "negative_iwae", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def call(self, y_true: tf.Tensor, y_pred: Any) -> tf.Tensor:
        """Loss of each image; arguments and result as of `NegativeELBO.call`."""
        return -objectives.iwae(_checked_image(y_true, y_pred), y_pred)


@keras.saving.register_keras_serializable("tfp_cvae")
class SemiSupervisedNegativeELBO(NegativeELBO):
    """Negative evidence lower bound of a `SemiSupervisedCVAE`, and the classification term.

        loss = D + kl_weight * R - classification_weight * log q(y|x), the last where there is a label

    With a label D + R is L(x,y) of the source, without it is U(x), both of which have p(y) in them. As Keras takes the
    mean over a batch, labelled images count by their share of it, l of B images, which may be more than their share of
    the data, by which eq. 9 counts them. The weight alpha = 0.1 N of the source is a classification_weight of
    0.1 B / l, if labelled images are few.

    Source: Kingma, Rezende, Mohamed and Welling 2014, eq. 6, 7 and 9.

    Args:
        classification_weight: Weight of the classification term, >= 0.
        kl_weight: As of `NegativeELBO`; of the rate with the part of the label.
        free_bits: As of `NegativeELBO`; the label counts as a dimension.
        **kwargs: Of `keras.losses.Loss`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If it is negative or not finite.
    """

    def __init__(
        self,
        *,
        classification_weight: float = 30.0,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        name: str = "semi_supervised_negative_elbo",
        **kwargs: Any,
    ) -> None:
        super().__init__(kl_weight=kl_weight, free_bits=free_bits, name=name, **kwargs)
        self.classification_weight = checks.number("classification_weight", classification_weight, 0)
        self.label_gradient = tf.Variable(1.0, trainable=False, dtype=tf.float32, name="label_gradient")

    @tf.autograph.experimental.do_not_convert
    def call(self, y_true: tf.Tensor, y_pred: Any) -> tf.Tensor:
        """Loss of each image.

        Args:
            y_true: Image, `[batch, height, width, channels]` float32, in {0, 1}.
            y_pred: Output of a `SemiSupervisedCVAE`.

        Returns:
            `[batch]` float32, nats per image.

        Raises:
            TypeError: If the output is that of another model.
        """
        if not isinstance(y_pred, SemiSupervisedOutput):
            raise TypeError(
                "loss: expected a SemiSupervisedCVAE (build_semi_supervised_cvae) for SemiSupervisedNegativeELBO, got "
                f"the output {type(y_pred).__name__} of another model; use NegativeELBO for a CVAE"
            )
        bound = super().call(y_true, y_pred.with_label_gradient(self.label_gradient))
        return bound + self.classification_weight * objectives.label_surprise(y_pred)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classification_weight": self.classification_weight}


def _checked_image(y_true: tf.Tensor, y_pred: Any) -> tf.Tensor:
    y_true = tf.cast(y_true, tf.float32)
    # A label in its place would be broadcast over the pixels without a word.
    if not y_true.shape.is_compatible_with(y_pred.shape):
        raise ValueError(f"y: expected the image again, shape {list(y_pred.shape)}, got {list(y_true.shape)}")
    return tf.ensure_shape(y_true, y_pred.shape)


def _checked_weight(sample_weight: tf.Tensor | None) -> tf.Tensor | None:
    if sample_weight is None:
        return None
    shape = tf.convert_to_tensor(sample_weight).shape
    # Weights of pixels would be broadcast over the losses of the images without a word.
    if shape.rank is not None and (shape.rank > 2 or shape[1:].num_elements() not in (None, 1)):
        raise ValueError(f"sample_weight: expected [batch], a weight for each image, got shape {shape.as_list()}")
    return sample_weight


class _BoundMetric(keras.metrics.Mean):
    """Mean of an objective over all images of an epoch."""

    objective: Callable[[tf.Tensor, Any], tf.Tensor]

    @tf.autograph.experimental.do_not_convert
    def update_state(self, y_true: tf.Tensor, y_pred: Any, sample_weight: tf.Tensor | None = None) -> Any:
        values = type(self).objective(_checked_image(y_true, y_pred), y_pred)
        return super().update_state(values, sample_weight=_checked_weight(sample_weight))


@keras.saving.register_keras_serializable("tfp_cvae")
class ELBO(_BoundMetric):
    """Evidence lower bound, always the true one: no KL weight, no free bits, whatever the loss is."""

    objective = staticmethod(objectives.elbo)
    # Whatever its name is, `fit` refuses a callback that would take the lowest for the best.
    is_to_rise = True

    def __init__(self, name: str = "elbo", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)


@keras.saving.register_keras_serializable("tfp_cvae")
class Rate(_BoundMetric):
    """Rate KL(q(z|x,y) || p(z|y))."""

    objective = staticmethod(lambda image, output: objectives.rate(output))

    def __init__(self, name: str = "rate", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)


@keras.saving.register_keras_serializable("tfp_cvae")
class Distortion(_BoundMetric):
    """Distortion -E_q[log p(x|z,y)]."""

    objective = staticmethod(objectives.distortion)

    def __init__(self, name: str = "distortion", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
