"""A prior p(z|y) that is as flexible as the aggregate of the posteriors asks for: a normalizing flow."""

import functools
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfp_cvae.layers import SerializableDistributionLambda
from tfp_cvae.networks import add_label


@keras.saving.register_keras_serializable("tfp_cvae")
class CouplingFlow(SerializableDistributionLambda):
    """Turns a one-hot label into a flow of affine couplings, as `tfd.TransformedDistribution` of N(0, I).

    Each coupling moves one half of the vector by what a network reads from the other half a and the label y,

        b  ->  b * exp(s(a, y)) + t(a, y),    |s| < 2,

    and the halves take turns. Density and samples cost the same. It starts as N(0, I).

    Source: Dinh et al. 2017, "Density estimation using Real NVP", section 3.2; as the prior of a VAE, Chen et al. 2017,
    "Variational lossy autoencoder".

    Args:
        event_shape: Size d of the vector, >= 2.
        depth: Number of couplings.
        width: Units of the two hidden layers of each network.
        **kwargs: Of `keras.layers.Layer`.

    Call args:
        one_hot: `[batch, num_classes]` float.

    Returns:
        `tfd.TransformedDistribution` with batch shape `[batch]` and event shape `[d]`. As a tensor it is the image of
        the mean of N(0, I), as its own mean has no closed form.

    Raises:
        ValueError: If `event_shape` is less than 2.
    """

    def __init__(self, event_shape: int, depth: int = 8, width: int = 128, **kwargs: Any) -> None:
        if event_shape < 2:
            raise ValueError(f"event_shape: expected at least 2, as each half moves the other, got {event_shape}")
        super().__init__(
            self._distribution,
            int(event_shape),
            convert_to_tensor_fn=lambda flow: flow.bijector.forward(flow.distribution.mean()),
            **kwargs,
        )
        self.depth = depth
        self.width = width

    def build(self, input_shape: tf.TensorShape) -> None:
        masked = self.event_shape // 2
        # Negative sizes count from the end of the vector.
        self._masked = [masked if index % 2 == 0 else -masked for index in range(self.depth)]
        self.conditioners = [
            _conditioner(masked, input_shape[-1], self.width, self.event_shape - masked) for _ in self._masked
        ]
        super().build(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "depth": self.depth, "width": self.width}

    def _distribution(self, one_hot: tf.Tensor) -> tfd.Distribution:
        couplings = [
            tfb.RealNVP(num_masked=masked, shift_and_log_scale_fn=functools.partial(_apply, conditioner, one_hot))
            for masked, conditioner in zip(self._masked, self.conditioners, strict=True)
        ]
        loc = tf.zeros([tf.shape(one_hot)[0], self.event_shape])
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(loc=loc), tfb.Chain(couplings))


def flow_prior(num_classes: int, latent_size: int) -> keras.Model:
    """Prior p(z|y): a flow of affine couplings that know the label, which starts as N(0, I)."""
    one_hot = keras.Input((num_classes,), name="one_hot")
    return keras.Model(one_hot, CouplingFlow(latent_size)(one_hot), name="prior")


def _conditioner(masked: int, num_classes: int, width: int, units: int) -> keras.Model:
    """Network from the masked half and the label to shift and raw log-scale of the other half."""
    half, one_hot = keras.Input((masked,)), keras.Input((num_classes,))
    hidden = half
    for _ in range(2):
        hidden = add_label(keras.layers.Dense(width, use_bias=False)(hidden), one_hot)
        hidden = keras.layers.Activation("silu")(hidden)
    return keras.Model([half, one_hot], keras.layers.Dense(2 * units, kernel_initializer="zeros")(hidden))


def _apply(
    conditioner: keras.Model, one_hot: tf.Tensor, half: tf.Tensor, units: int, **kwargs: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Shift and log-scale for `[..., batch, masked]`, each `[..., batch, units]`."""
    del kwargs
    batch_shape = tf.shape(half)[:-1]
    one_hot = tf.broadcast_to(one_hot, tf.concat([batch_shape, tf.shape(one_hot)[-1:]], axis=0))
    flat = conditioner([tf.reshape(half, [-1, half.shape[-1]]), tf.reshape(one_hot, [-1, one_hot.shape[-1]])])
    shift, raw = tf.split(tf.reshape(flat, tf.concat([batch_shape, [2 * units]], axis=0)), 2, axis=-1)
    # Bounded, so that no step of the optimizer can make a density explode.
    return shift, 2 * tf.tanh(raw / 2)
