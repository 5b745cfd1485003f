"""Distribution layers that Keras can save and load with `safe_mode` on.

They compute in float32 whatever the dtype policy of the network before them.

They follow the convention of `tfp.layers`: a layer maps a tensor of parameters to a distribution, and the static
method `params_size` says how many parameters a preceding `Dense` layer has to deliver. The layers of `tfp.layers` hold
a lambda, which Keras refuses to load from a `.keras` file; these hold only their event shape.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfp_cvae import checks

# softplus(_UNIT_SCALE) = 1: a network whose raw output is zero starts at unit scale.
_UNIT_SCALE = math.log(math.expm1(1.0))


class SerializableDistributionLambda(tfp.layers.DistributionLambda):
    """`DistributionLambda` whose configuration is its event shape, and whose tensor value is the mean.

    Of a `CouplingFlow`, whose mean has no closed form, it is that of N(0, I), from which the flow starts.

    Raises:
        TypeError: If it is given a `convert_to_tensor_fn`.
        ValueError: If it is given an `activity_regularizer`.
    """

    def __init__(self, make_distribution_fn: Any, event_shape: Any, **kwargs: Any) -> None:
        if "convert_to_tensor_fn" in kwargs:
            # Nor from a file: TFP makes whatever layer one names, and unpickles its function.
            raise TypeError(
                f"convert_to_tensor_fn: expected none, as a distribution of {type(self).__name__} is its mean where a "
                f"tensor is expected, got {type(kwargs['convert_to_tensor_fn']).__name__}; call sample() for a sample"
            )
        if kwargs.get("activity_regularizer") is not None:
            # As in examples of TFP, whose loss is the distortion alone.
            raise ValueError(
                f"activity_regularizer: expected none, as the losses of tfp_cvae have the KL already (kl_weight), got "
                f"{type(kwargs['activity_regularizer']).__name__}; leave it out, or the KL would be counted twice"
            )
        self.event_shape = event_shape
        kwargs = {"dtype": "float32", **kwargs}
        super().__init__(make_distribution_fn, self._to_tensor, **kwargs)

    @staticmethod
    def _to_tensor(distribution: tfd.Distribution) -> tf.Tensor:
        return distribution.mean()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # The parent remembers in an attribute who has called `call`, which two threads would change for each other.
        distribution, _ = super(tfp.layers.DistributionLambda, self).__call__(inputs, *args, **kwargs)
        return distribution

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # Both, so that Keras can follow either.
        distribution, value = super(tfp.layers.DistributionLambda, self).call(inputs, *args, **kwargs)
        self._most_recently_built_distribution_vars = distribution.variables
        return distribution, value

    def _check_size(self, found: int | None) -> None:
        """Raises ValueError unless there are as many parameters of each distribution as `params_size` says."""
        expected = self.params_size(self.event_shape)
        if found not in (None, expected):
            raise ValueError(
                f"params: expected {expected} for each distribution of {type(self).__name__}, got {found}; its "
                "params_size says how many the layer before has to deliver"
            )

    def get_config(self) -> dict[str, Any]:
        # The parent's configuration pickles its functions. The base layer's does not.
        return {**keras.layers.Layer.get_config(self), "event_shape": self.event_shape}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SerializableDistributionLambda":
        del custom_objects
        return cls(**config)


@keras.saving.register_keras_serializable("tfp_cvae")
class MultivariateNormalDiag(SerializableDistributionLambda):
    """Turns parameters into N(loc, diag(scale)^2), as `tfd.MultivariateNormalDiag`.

    The parameters are `[loc, raw]` along the last axis, and `scale = softplus(raw + log(e - 1))`, so that `raw = 0` is
    unit scale.

    Args:
        event_shape: Size d of the vector.
        **kwargs: Of `keras.layers.Layer`.

    Call args:
        params: `[batch, 2 * d]` float.

    Returns:
        `tfd.MultivariateNormalDiag` with batch shape `[batch]` and event shape `[d]`. As a tensor it is its mean.

    Raises:
        TypeError: If `event_shape` is of another kind, or a `convert_to_tensor_fn` is given.
        ValueError: If `event_shape` is less than 1, there are not as many parameters, or an `activity_regularizer` is
            given.
    """

    def __init__(self, event_shape: int, **kwargs: Any) -> None:
        def make_distribution(params: tf.Tensor) -> tfd.Distribution:
            self._check_size(params.shape[-1])
            loc, raw = tf.split(params, 2, axis=-1)
            return tfd.MultivariateNormalDiag(loc=loc, scale_diag=tf.nn.softplus(raw + _UNIT_SCALE))

        super().__init__(make_distribution, checks.integer("event_shape", event_shape, 1), **kwargs)

    @staticmethod
    def params_size(event_shape: int) -> int:
        """Number of parameters of one distribution: d means and d raw scales."""
        return 2 * event_shape


class _Bernoulli(tfd.Bernoulli):
    """`tfd.Bernoulli` of finite logits l, with one logarithm for each pixel x where that has two.

    log p(x) = x l - log(1 + exp(l))
    """

    def _log_prob(self, event: tf.Tensor) -> tf.Tensor:
        logits = self.logits_parameter()
        return tf.cast(event, logits.dtype) * logits - tf.nn.softplus(logits)


def independent_bernoulli(logits: tf.Tensor, event_rank: int = 3) -> tfd.Distribution:
    """Independent Bernoulli pixels.

    Args:
        logits: `[..., *event_shape]` float, finite.
        event_rank: Number of dimensions of an event.

    Returns:
        `tfd.Independent(tfd.Bernoulli)`.
    """
    return tfd.Independent(_Bernoulli(logits=logits, dtype=logits.dtype), reinterpreted_batch_ndims=event_rank)


@keras.saving.register_keras_serializable("tfp_cvae")
class IndependentBernoulli(SerializableDistributionLambda):
    """Turns logits into independent Bernoulli pixels, as `tfd.Independent(tfd.Bernoulli)`.

    Args:
        event_shape: Shape of an image, `[height, width, channels]`.
        **kwargs: Of `keras.layers.Layer`.

    Call args:
        params: Logits, `[batch, height * width * channels]` or already `[batch, height, width, channels]`, float.

    Returns:
        `tfd.Independent(tfd.Bernoulli)` with batch shape `[batch]` and event shape `[height, width, channels]`. As a
        tensor it is its mean: pixel probabilities in [0, 1].

    Raises:
        TypeError: If `event_shape` is of another kind, or a `convert_to_tensor_fn` is given.
        ValueError: If `event_shape` is less than 1, there are not as many parameters, or an `activity_regularizer` is
            given.
    """

    def __init__(self, event_shape: Sequence[int], **kwargs: Any) -> None:
        shape = tuple(checks.integer("event_shape", size, 1) for size in event_shape)

        def make_distribution(params: tf.Tensor) -> tfd.Distribution:
            self._check_size(params.shape[1:].num_elements())
            logits = tf.reshape(params, (-1, *shape))
            return independent_bernoulli(logits, event_rank=len(shape))

        super().__init__(make_distribution, shape, **kwargs)

    @staticmethod
    def params_size(event_shape: Sequence[int]) -> int:
        """Number of logits of one image: one for each pixel and channel."""
        return int(np.prod(event_shape))


@keras.saving.register_keras_serializable("tfp_cvae")
class OneHotCategorical(SerializableDistributionLambda):
    """Turns logits into a distribution over classes, as `tfd.OneHotCategorical`.

    Args:
        event_shape: Number of classes.
        **kwargs: Of `keras.layers.Layer`.

    Call args:
        params: Logits, `[batch, num_classes]` float.

    Returns:
        `tfd.OneHotCategorical` with batch shape `[batch]` and event shape `[num_classes]`. As a tensor it is its mean:
        the probabilities.

    Raises:
        TypeError: If `event_shape` is of another kind, or a `convert_to_tensor_fn` is given.
        ValueError: If `event_shape` is less than 1, there are not as many parameters, or an `activity_regularizer` is
            given.
    """

    def __init__(self, event_shape: int, **kwargs: Any) -> None:
        def make_distribution(params: tf.Tensor) -> tfd.Distribution:
            self._check_size(params.shape[-1])
            return tfd.OneHotCategorical(logits=params, dtype=params.dtype)

        super().__init__(make_distribution, checks.integer("event_shape", event_shape, 1), **kwargs)

    @staticmethod
    def params_size(event_shape: int) -> int:
        """Number of parameters of one distribution: a logit for each class."""
        return event_shape


@keras.saving.register_keras_serializable("tfp_cvae")
class PixelBias(keras.layers.Layer):
    """Adds one trainable bias to each logit of an image, whatever network produced it.

    Set to the log-odds of the mean training image, it spares the network the first epochs, in which it would learn just
    that. The sum is in float32, as that of a distribution layer.

    Call args:
        inputs: Logits, `[batch, ...]` float.

    Returns:
        Tensor of the same shape.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})

    def build(self, input_shape: tf.TensorShape) -> None:
        self.bias = self.add_weight(name="bias", shape=input_shape[1:], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + self.bias


@keras.saving.register_keras_serializable("tfp_cvae")
class SiLU(keras.layers.Layer):
    """Sigmoid-weighted linear unit x * sigmoid(x) (Elfwing et al. 2018), also called swish.

    The activation "silu" of Keras, but with the gradient that TensorFlow derives by itself. For every graph with a
    custom gradient, which that one has, an entry stays in a table of TensorFlow, so that a process that goes on
    building, loading and evaluating models grows without end. In float32 unless it is given another dtype: TensorFlow's
    kernels for bfloat16 take twice the time on a CPU.

    Call args:
        inputs: Tensor of any shape, float.

    Returns:
        Tensor of the same shape.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.sigmoid(inputs)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Has layers that are made in it follow a dtype policy of Keras, such as "mixed_bfloat16"."""
    before = keras.mixed_precision.global_policy()
    if before.name == name:
        # Setting it would keep it from following `set_floatx`.
        yield
        return
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        # None, as at first, follows `set_floatx`.
        keras.mixed_precision.set_global_policy(None if before.name == keras.backend.floatx() else before)


def clear_bijector_cache() -> None:
    """Forgets what bijectors have computed in graphs, and so the graphs themselves.

    TensorFlow Probability has one such cache for all bijectors of a process, among them those inside of normal
    distributions, and an entry whose tensors belong to a graph keeps that graph for ever. Entries of eager tensors,
    which go with them, stay.
    """
    storage = tfb.Bijector._cache.storage
    for key, (inputs, outputs, attributes, _) in list(storage.items()):
        # Without outputs where a determinant alone was asked for, or another thread is computing them.
        references = [reference for reference in (key, inputs, outputs) if reference is not None]
        # A determinant is among the attributes, and may be of a graph where the value is not.
        tensors = tf.nest.flatten([[reference() for reference in references], list(attributes.values())])
        if not any(tf.is_symbolic_tensor(tensor) for tensor in tensors):
            continue
        # An entry deletes itself when one of its tensors goes, which is an error once it is not there any more.
        for reference in references:
            reference.cancel()
        storage.pop(key, None)
