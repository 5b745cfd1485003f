"""A prior p(z|y) that is as flexible as the aggregate of the posteriors asks for: a normalizing flow."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfp_cvae import checks
from tfp_cvae.layers import SerializableDistributionLambda, SiLU, dtype_policy
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
        `tfd.TransformedDistribution` with batch shape `[batch]` and event shape `[d]`. As a tensor it is the mean of
        the N(0, I) that it transforms, as its own has no closed form.

    Raises:
        TypeError: If a size is not an integer, or a `convert_to_tensor_fn` is given.
        ValueError: If `event_shape` is less than 2, another size less than 1, or an `activity_regularizer` is given.
    """

    def __init__(self, event_shape: int, depth: int = 8, width: int = 128, **kwargs: Any) -> None:
        # Each half moves the other.
        super().__init__(self._distribution, checks.integer("event_shape", event_shape, 2), **kwargs)
        self.depth = checks.integer("depth", depth, 1)
        self.width = checks.integer("width", width, 1)

    def build(self, input_shape: tf.TensorShape) -> None:
        read = self.event_shape // 2
        # They are part of the density.
        with dtype_policy("float32"):
            self.conditioners = [
                _conditioner(read, input_shape[-1], self.width, self.event_shape - read) for _ in range(self.depth)
            ]
        super().build(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "depth": self.depth, "width": self.width}

    @staticmethod
    def _to_tensor(flow: tfd.Distribution) -> tf.Tensor:
        return flow.distribution.mean()

    def _distribution(self, one_hot: tf.Tensor) -> tfd.Distribution:
        loc = tf.zeros([tf.shape(one_hot)[0], self.event_shape])
        # As a function, or Keras would track the networks a second time, through the distribution that it keeps.
        couplings = _Couplings(lambda index, inputs: self.conditioners[index](inputs), self.depth, one_hot)
        # Not a tfd.MultivariateNormalDiag, whose density keeps the graph in which it is asked for: it is a bijector's.
        return _Flow(tfd.Independent(tfd.Normal(loc, 1.0), 1), couplings)


class _Flow(tfd.TransformedDistribution):
    """`tfd.TransformedDistribution` whose density undoes the couplings once, where that does it twice."""

    def _log_prob(self, vector: tf.Tensor) -> tf.Tensor:
        noise, log_det = self.bijector.undo(vector)
        return self.distribution.log_prob(noise) + log_det


class _Couplings(tfb.Bijector):
    """Affine couplings, which `inverse` undoes from the first to the last.

    The same as a `tfb.Chain` of `tfb.RealNVP`, in a graph of a fraction of the size.

    Args:
        conditioner: From the number of a coupling and [the half that it reads, label] to shift and raw log-scale.
        depth: Number of couplings.
        one_hot: `[batch, num_classes]` float.
    """

    def __init__(
        self, conditioner: Callable[[int, list[tf.Tensor]], tf.Tensor], depth: int, one_hot: tf.Tensor
    ) -> None:
        self._conditioner = conditioner
        self._depth = depth
        self._one_hot = one_hot
        super().__init__(forward_min_event_ndims=1, name="couplings")

    def _forward(self, noise: tf.Tensor) -> tf.Tensor:
        vector, one_hot, shape = self._rows(noise)
        for index in reversed(range(self._depth)):
            read, moved = _halves(vector, index)
            shift, log_scale = self._shift_and_log_scale(index, read, one_hot)
            vector = _joined(read, moved * tf.exp(log_scale) + shift, index)
        return tf.reshape(vector, shape)

    def _inverse(self, vector: tf.Tensor) -> tf.Tensor:
        return self.undo(vector)[0]

    def _inverse_log_det_jacobian(self, vector: tf.Tensor) -> tf.Tensor:
        return self.undo(vector)[1]

    def undo(self, vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The noise that becomes a vector, and the log-determinant."""
        noise, one_hot, shape = self._rows(vector)
        log_det = tf.zeros([])
        for index in range(self._depth):
            read, moved = _halves(noise, index)
            shift, log_scale = self._shift_and_log_scale(index, read, one_hot)
            noise = _joined(read, (moved - shift) * tf.exp(-log_scale), index)
            log_det -= tf.reduce_sum(log_scale, axis=-1)
        return tf.reshape(noise, shape), tf.reshape(log_det, shape[:-1])

    def _rows(self, vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Vectors of any shape that broadcasts with the labels as `[rows, d]`, the label of each row, and the shape."""
        batch_shape = tf.broadcast_dynamic_shape(tf.shape(vector)[:-1], tf.shape(self._one_hot)[:-1])
        rows, shapes = [], []
        for tensor in (vector, self._one_hot):
            size = tensor.shape[-1]
            shapes.append(tf.concat([batch_shape, [size]], axis=0))
            rows.append(tf.reshape(tf.broadcast_to(tensor, shapes[-1]), [-1, size]))
        return rows[0], rows[1], shapes[0]

    def _shift_and_log_scale(self, index: int, read: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shift, raw = tf.split(self._conditioner(index, [read, one_hot]), 2, axis=-1)
        # Bounded, so that no step of the optimizer can make a density explode.
        return shift, 2 * tf.tanh(raw / 2)


def _halves(vector: tf.Tensor, index: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The half that a coupling reads, of size d // 2, and the one that it moves: they take turns."""
    size = vector.shape[-1]
    if index % 2 == 0:
        read, moved = tf.split(vector, [size // 2, size - size // 2], axis=-1)
    else:
        moved, read = tf.split(vector, [size - size // 2, size // 2], axis=-1)
    return read, moved


def _joined(read: tf.Tensor, moved: tf.Tensor, index: int) -> tf.Tensor:
    return tf.concat([read, moved] if index % 2 == 0 else [moved, read], axis=-1)


def flow_prior(num_classes: int, latent_size: int) -> keras.Model:
    """Prior p(z|y): a flow of affine couplings that know the label, which starts as N(0, I).

    Args:
        num_classes: Number of classes, >= 1.
        latent_size: Size of z, >= 2.

    Returns:
        From `one_hot`, `[batch, num_classes]`, to a `CouplingFlow` layer.
    """
    one_hot = keras.Input((num_classes,), name="one_hot")
    return keras.Model(one_hot, CouplingFlow(latent_size)(one_hot), name="prior")


def stacked_prior(num_classes: int, latent_size: int) -> keras.Model:
    """Prior p(z2) p(z1|z2,y) of M1+M2, with p(z2) = N(0, I): a flow with a single coupling, which starts as N(0, I).

    Args:
        num_classes: Number of classes.
        latent_size: Size of z1, and of z2.

    Returns:
        From `one_hot`, `[batch, num_classes]`, to a `CouplingFlow` layer over [z2, z1].
    """
    one_hot = keras.Input((num_classes,), name="one_hot")
    return keras.Model(one_hot, CouplingFlow(2 * latent_size, depth=1)(one_hot), name="prior")


def _conditioner(read: int, num_classes: int, width: int, moved: int) -> keras.Model:
    """Network from the half that is read and the label to shift and raw log-scale of the half that is moved."""
    half, one_hot = keras.Input((read,)), keras.Input((num_classes,))
    hidden = half
    for _ in range(2):
        hidden = add_label(keras.layers.Dense(width, use_bias=False)(hidden), one_hot)
        hidden = SiLU()(hidden)
    return keras.Model([half, one_hot], keras.layers.Dense(2 * moved, kernel_initializer="zeros")(hidden))
