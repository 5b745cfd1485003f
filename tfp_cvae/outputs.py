"""What models return, and Keras hands to loss and metrics as `y_pred`: distributions and samples."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd


@dataclasses.dataclass(frozen=True, eq=False)
class CVAEOutput:
    """What `CVAE.__call__` returns.

    As a tensor or array it is the mean image: pixel probabilities `[batch, height, width, channels]`.

    Attributes:
        posterior: q(z|x,y), batch shape `[batch]`, event shape `[latent_size]`.
        prior: p(z|y), the same shapes; the batch shape of N(0, I) is `[]` without labels.
        latent: z_k ~ q(z|x,y), `[num_samples, batch, latent_size]` float32.
        likelihood: p(x|z_k,y), batch shape `[num_samples, batch]`, event shape `[height, width, channels]`.
    """

    posterior: tfd.Distribution
    prior: tfd.Distribution
    latent: tf.Tensor
    likelihood: tfd.Distribution
    _log_prior: tf.Tensor | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        # The parameters of a normal distribution are tensors, but a flow reads its weights when its density is asked
        # for: metrics, which Keras updates after the optimizer has changed the weights, would have that of another
        # prior than the loss.
        is_normal = isinstance(getattr(self.prior, "tensor_distribution", self.prior), tfd.MultivariateNormalDiag)
        object.__setattr__(self, "_log_prior", None if is_normal else self.prior.log_prob(self.latent))

    @property
    def log_prior(self) -> tf.Tensor:
        """Density log p(z_k|y), `[num_samples, batch]` float32, nats."""
        return self.prior.log_prob(self.latent) if self._log_prior is None else self._log_prior

    @property
    def shape(self) -> tf.TensorShape:
        """Static shape of the mean image."""
        return self.latent.shape[1:2].concatenate(self.likelihood.event_shape)

    @property
    def dtype(self) -> tf.DType:
        """Type of the mean image."""
        return self.likelihood.dtype

    def mean_image(self) -> tf.Tensor:
        """Pixel probabilities, the mean over the latent samples: `[batch, height, width, channels]` float32."""
        return tf.reduce_mean(self.likelihood.mean(), axis=0)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.mean_image(), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class SemiSupervisedOutput:
    """What `SemiSupervisedCVAE.__call__` returns.

    As a tensor or array it is the mean image, under the label of a labelled row, and under all labels as q(y|x) weighs
    them for the others.

    Attributes:
        one_hot: Labels that were given, `[batch, num_classes]` float32; rows of zeros where none was.
        label_posterior: q(y|x), `tfd.OneHotCategorical`, batch shape `[batch]`.
        given_each_label: The output of the CVAE for each image given each label: a batch of `batch * num_classes` rows,
            of which the row `i * num_classes + k` is image i with label k.
    """

    one_hot: tf.Tensor
    label_posterior: tfd.Distribution
    given_each_label: CVAEOutput

    @property
    def shape(self) -> tf.TensorShape:
        """Static shape of the mean image."""
        return self.one_hot.shape[:1].concatenate(self.given_each_label.shape[1:])

    @property
    def dtype(self) -> tf.DType:
        """Type of the mean image."""
        return self.given_each_label.dtype

    def with_label_gradient(self, weight: tf.Tensor) -> "SemiSupervisedOutput":
        """The same, through whose q(y|x) gradients flow back with a weight in [0, 1]."""
        logits = self.label_posterior.logits_parameter()
        logits = weight * logits + (1 - weight) * tf.stop_gradient(logits)
        return dataclasses.replace(self, label_posterior=tfd.OneHotCategorical(logits, dtype=logits.dtype))

    @property
    def labelled(self) -> tf.Tensor:
        """1 for a row with a label and 0 for one without, `[batch]` float32."""
        return tf.reduce_sum(self.one_hot, axis=-1)

    def label_weights(self) -> tf.Tensor:
        """w(y): all on the label that was given, or q(y|x), `[batch, num_classes]` float32."""
        return self.one_hot + (1 - self.labelled[:, tf.newaxis]) * self.label_posterior.mean()

    def label_rate(self) -> tf.Tensor:
        """KL(w(y) || p(y)) with the uniform p(y), `[batch]` float32, nats per image."""
        return math.log(self.one_hot.shape[-1]) - (1 - self.labelled) * self.label_posterior.entropy()

    def log_label_prior(self) -> tf.Tensor:
        """Log p(y) of the labels that a row can have, and -infinity of the others, `[batch, num_classes]` float32."""
        possible = self.one_hot + (1 - self.labelled[:, tf.newaxis])
        return tf.math.log(possible) - math.log(self.one_hot.shape[-1])

    def for_each_label(self, image: tf.Tensor) -> tf.Tensor:
        """Images as the rows of `given_each_label`: `[batch * num_classes, height, width, channels]`."""
        return tf.repeat(image, self.one_hot.shape[-1], axis=0)

    def by_label(self, values: tf.Tensor) -> tf.Tensor:
        """Values of the rows of `given_each_label`, `[batch * num_classes, ...]`, as `[batch, num_classes, ...]`."""
        return tf.reshape(values, tf.concat([[-1, self.one_hot.shape[-1]], tf.shape(values)[1:]], axis=0))

    def expectation(self, values: tf.Tensor) -> tf.Tensor:
        """sum_y w(y) v(y) of values of the rows of `given_each_label`, `[batch * num_classes, ...]`: `[batch, ...]`."""
        return tf.einsum("bk,bk...->b...", self.label_weights(), self.by_label(values))

    def mean_image(self) -> tf.Tensor:
        """Pixel probabilities, the mean over labels and latent samples: `[batch, height, width, channels]` float32."""
        return self.expectation(self.given_each_label.mean_image())

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.mean_image(), dtype)


def _as_tensor(
    output: CVAEOutput | SemiSupervisedOutput, dtype: tf.DType | None = None, name: Any = None, as_ref: Any = False
) -> tf.Tensor:
    if dtype is not None and not dtype.is_floating:
        raise TypeError(f"output: expected a floating dtype for the mean image, got {dtype.name}")
    return tf.cast(output.mean_image(), dtype or output.dtype)


for _kind in (CVAEOutput, SemiSupervisedOutput):
    tf.register_tensor_conversion_function(_kind, _as_tensor)
