"""Encoder, decoder and prior networks: functional Keras models that end in a distribution layer.

Each builder takes the same arguments, so that a network is chosen by name. An encoder maps `[image, one_hot]` to
q(z|x,y), a decoder `[latent, one_hot]` to p(x|z,y), a prior `one_hot` to p(z|y). Without classes (`num_classes=0`) the
`one_hot` input is left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfp_cvae.layers import IndependentBernoulli, MultivariateNormalDiag, OneHotCategorical, PixelBias, SiLU

# Size of the dense layers between convolutions and latent, whatever the width.
_DENSE_UNITS = 256
_UNIT_NORMAL = {"class_name": "RandomNormal", "config": {"stddev": 1.0}}


class Networks(NamedTuple):
    """An encoder and a decoder that fit each other.

    Attributes:
        encoder: From `image` or `[image, one_hot]` to a `MultivariateNormalDiag` layer.
        decoder: From `latent` or `[latent, one_hot]` to an `IndependentBernoulli` layer.
    """

    encoder: keras.Model
    decoder: keras.Model


def mlp(image_shape: tuple[int, ...], num_classes: int, latent_size: int, width: int, depth: int) -> Networks:
    """Fully connected networks: `depth` hidden layers of `width` units each way, the label in the bias of each.

    Args:
        image_shape: (height, width, channels).
        num_classes: Number of classes; 0 without.
        latent_size: Size of z, >= 1.
        width: Units of a hidden layer.
        depth: Hidden layers each way.

    Returns:
        Encoder and decoder.
    """

    def hidden(tensor: tf.Tensor, one_hot: tf.Tensor | None) -> tf.Tensor:
        return _hidden_layers(tensor, one_hot, width, depth)

    return _dense_networks(hidden, image_shape, num_classes, latent_size)


def residual(image_shape: tuple[int, ...], num_classes: int, latent_size: int, width: int, depth: int) -> Networks:
    """Residual MLPs: `depth` pre-normalised blocks of `width` units each way (He et al. 2016, "Identity mappings").

    A block adds `Dense(silu(Dense(silu(LayerNorm(h)))))` to h; its last layer starts at zero, so that the network
    starts shallow. The arguments are those of `mlp`.
    """

    def hidden(tensor: tf.Tensor, one_hot: tf.Tensor | None) -> tf.Tensor:
        tensor = add_label(keras.layers.Dense(width)(tensor), one_hot)
        for _ in range(depth):
            branch = keras.layers.LayerNormalization()(tensor)
            branch = SiLU()(branch)
            branch = add_label(keras.layers.Dense(width, kernel_initializer="he_normal")(branch), one_hot)
            branch = SiLU()(branch)
            branch = keras.layers.Dense(width, kernel_initializer="zeros")(branch)
            tensor = keras.layers.Add()([tensor, branch])
        return SiLU()(keras.layers.LayerNormalization()(tensor))

    return _dense_networks(hidden, image_shape, num_classes, latent_size)


def conv(image_shape: tuple[int, ...], num_classes: int, latent_size: int, width: int, depth: int) -> Networks:
    """Residual convolutional networks at half and quarter resolution, `depth` blocks at each.

    `width` channels at half the image's height and width, twice as many at a quarter. The label enters as a bias of
    the channels, and again beside the dense layers, which have 256 units. The arguments are those of `mlp`.
    """
    height, width_, channels = image_shape
    half = (-(-height // 2), -(-width_ // 2))
    quarter = (-(-half[0] // 2), -(-half[1] // 2))

    image, one_hot = keras.Input(image_shape, name="image"), _one_hot_input(num_classes)
    tensor = _convolution(width, 5, strides=2)(image)
    tensor = add_label(tensor, one_hot)
    tensor = _residual_blocks(tensor, width, depth)
    tensor = _convolution(2 * width, 3, strides=2)(tensor)
    tensor = _residual_blocks(tensor, 2 * width, depth)
    tensor = keras.layers.Flatten()(SiLU()(tensor))
    tensor = tensor if one_hot is None else keras.layers.Concatenate()([tensor, one_hot])
    tensor = SiLU()(keras.layers.Dense(_DENSE_UNITS)(tensor))
    encoder = _encoder(image, one_hot, tensor, latent_size)

    latent, one_hot = keras.Input((latent_size,), name="latent"), _one_hot_input(num_classes)
    tensor = latent if one_hot is None else keras.layers.Concatenate()([latent, one_hot])
    tensor = SiLU()(keras.layers.Dense(_DENSE_UNITS)(tensor))
    tensor = tensor if one_hot is None else keras.layers.Concatenate()([tensor, one_hot])
    tensor = keras.layers.Dense(2 * width * quarter[0] * quarter[1])(tensor)
    tensor = keras.layers.Reshape((*quarter, 2 * width))(tensor)
    tensor = _residual_blocks(tensor, 2 * width, depth)
    tensor = _upsample(tensor, width, 3, half)
    tensor = add_label(tensor, one_hot)
    tensor = _residual_blocks(tensor, width, depth)
    tensor = _upsample(SiLU()(tensor), channels, 5, (height, width_))
    return Networks(encoder, _decoder(latent, one_hot, tensor, image_shape))


def stacked(m1: Networks, num_classes: int) -> Networks:
    """M1+M2: the networks of a plain VAE, and over its latent z1 the encoder of another, which has the label.

        z = [z2, z1],  q(z|x,y) = q(z1|x) q(z2|m(x),y),  p(x|z) = p(x|z1)

    with the mean m(x) of q(z1|x), so that z1 and z2 are independent given x and y. Only the hidden layers of `m1` are
    kept, and its heads are new. The decoder of z1, p(z1|z2,y), is part of the prior: a
    `flows.CouplingFlow` with a single coupling.

    Source: Kingma, Rezende, Mohamed and Welling 2014, section 2.1.

    Args:
        m1: Encoder and decoder without label.
        num_classes: Number of classes, >= 1.

    Returns:
        Encoder and decoder of z.
    """
    (latent_size,) = m1.decoder.input_shape[1:]
    image, one_hot = m1.encoder.input, _one_hot_input(num_classes)
    # The last two layers of an encoder make parameters of the hidden units, and a distribution of those.
    hidden = m1.encoder.layers[-2].input
    mean, raw_scale = _head(latent_size)(hidden), _head(latent_size)(hidden)
    hidden = _hidden_layers(mean, one_hot, width=128, depth=2)
    upper_mean, upper_raw_scale = _head(latent_size)(hidden), _head(latent_size)(hidden)
    params = keras.layers.Concatenate(dtype="float32")([upper_mean, mean, upper_raw_scale, raw_scale])
    encoder = keras.Model([image, one_hot], MultivariateNormalDiag(2 * latent_size)(params), name="encoder")

    latent = keras.Input((2 * latent_size,), name="latent")
    # z1 alone, as the second of two rows: a slice would be a layer that the reader of model files refuses.
    tensor = keras.layers.Cropping1D((1, 0))(keras.layers.Reshape((2, latent_size))(latent))
    logits = keras.Model(m1.decoder.input, m1.decoder.get_layer("pixel_bias").input)(keras.layers.Flatten()(tensor))
    return Networks(encoder, _decoder(latent, None, logits, m1.decoder.layers[-1].event_shape))


def label_prior(num_classes: int, latent_size: int) -> keras.Model:
    """Prior p(z|y): a diagonal normal for each class, which starts as N(0, I).

    Args:
        num_classes: Number of classes, >= 1.
        latent_size: Size of z, >= 1.

    Returns:
        From `one_hot`, `[batch, num_classes]`, to a `MultivariateNormalDiag` layer.
    """
    one_hot = keras.Input((num_classes,), name="one_hot")
    params = _head(MultivariateNormalDiag.params_size(latent_size), kernel_initializer="zeros", use_bias=False)(one_hot)
    return keras.Model(one_hot, MultivariateNormalDiag(latent_size)(params), name="prior")


def convolutional_classifier(image_shape: tuple[int, ...], num_classes: int, width: int = 16) -> keras.Model:
    """q(y|x): three convolutions, each with max pooling, which makes small shifts matter less, and a hidden layer.

    Args:
        image_shape: (height, width, channels).
        num_classes: Number of classes, >= 1.
        width: Channels of the first convolution; the others have twice and four times as many, as has the hidden layer.

    Returns:
        From `image`, `[batch, height, width, channels]`, to a `OneHotCategorical` layer.
    """
    tensor = image = keras.Input(image_shape, name="image")
    for filters, size in ((width, 5), (2 * width, 3), (4 * width, 3)):
        tensor = keras.layers.MaxPooling2D(padding="same")(_convolution(filters, size)(tensor))
        tensor = keras.layers.ReLU()(tensor)
    tensor = keras.layers.ReLU()(keras.layers.Dense(4 * width)(keras.layers.Flatten()(tensor)))
    logits = _head(OneHotCategorical.params_size(num_classes))(tensor)
    return keras.Model(image, OneHotCategorical(num_classes)(logits), name="classifier")


def _dense_networks(
    hidden: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor],
    image_shape: tuple[int, ...],
    num_classes: int,
    latent_size: int,
) -> Networks:
    image, one_hot = keras.Input(image_shape, name="image"), _one_hot_input(num_classes)
    encoder = _encoder(image, one_hot, hidden(keras.layers.Flatten()(image), one_hot), latent_size)

    latent, one_hot = keras.Input((latent_size,), name="latent"), _one_hot_input(num_classes)
    logits = keras.layers.Dense(IndependentBernoulli.params_size(image_shape), use_bias=False)(hidden(latent, one_hot))
    return Networks(encoder, _decoder(latent, one_hot, logits, image_shape))


def _hidden_layers(tensor: tf.Tensor, one_hot: tf.Tensor | None, width: int, depth: int) -> tf.Tensor:
    for _ in range(depth):
        tensor = keras.layers.Dense(width, use_bias=one_hot is None)(tensor)
        tensor = SiLU()(add_label(tensor, one_hot))
    return tensor


def _one_hot_input(num_classes: int) -> tf.Tensor | None:
    return keras.Input((num_classes,), name="one_hot") if num_classes else None


def _inputs(tensor: tf.Tensor, one_hot: tf.Tensor | None) -> list[tf.Tensor]:
    return [tensor] if one_hot is None else [tensor, one_hot]


def _encoder(image: tf.Tensor, one_hot: tf.Tensor | None, hidden: tf.Tensor, latent_size: int) -> keras.Model:
    params = _head(MultivariateNormalDiag.params_size(latent_size))(hidden)
    return keras.Model(_inputs(image, one_hot), MultivariateNormalDiag(latent_size)(params), name="encoder")


def _decoder(
    latent: tf.Tensor, one_hot: tf.Tensor | None, logits: tf.Tensor, image_shape: tuple[int, ...]
) -> keras.Model:
    logits = PixelBias(name="pixel_bias")(logits)
    return keras.Model(_inputs(latent, one_hot), IndependentBernoulli(image_shape)(logits), name="decoder")


def _head(size: int, **kwargs: object) -> keras.layers.Layer:
    """The few parameters of a normal or categorical distribution, in float32 whatever the dtype policy."""
    return keras.layers.Dense(size, dtype="float32", **kwargs)


def _convolution(filters: int, size: int, **kwargs: object) -> keras.layers.Layer:
    return keras.layers.Conv2D(filters, size, padding="same", **kwargs)


def add_label(tensor: tf.Tensor, one_hot: tf.Tensor | None) -> tf.Tensor:
    """Adds a learned bias for each class to the last axis, drawn as large as the activations it is added to.

    A label that is merely joined to many inputs starts out so weak that the latent learns to carry the class, and then
    p(z|y) does not know it.

    Args:
        tensor: `[batch, ..., units]`, symbolic.
        one_hot: `[batch, num_classes]`, symbolic; None without classes.

    Returns:
        As `tensor`, and `tensor` itself without classes.
    """
    if one_hot is None:
        return tensor
    bias = keras.layers.Dense(tensor.shape[-1], use_bias=False, kernel_initializer=_UNIT_NORMAL)(one_hot)
    bias = keras.layers.Reshape((*[1] * (len(tensor.shape) - 2), tensor.shape[-1]))(bias)
    return keras.layers.Add()([tensor, bias])


def _residual_blocks(tensor: tf.Tensor, channels: int, depth: int) -> tf.Tensor:
    for _ in range(depth):
        branch = _convolution(channels, 3)(SiLU()(tensor))
        branch = SiLU()(branch)
        branch = _convolution(channels, 3, kernel_initializer="zeros")(branch)
        tensor = keras.layers.Add()([tensor, branch])
    return tensor


def _upsample(tensor: tf.Tensor, filters: int, size: int, shape: tuple[int, int]) -> tf.Tensor:
    """Doubles height and width, then crops the row or column that an odd `shape` has too many."""
    tensor = keras.layers.Conv2DTranspose(filters, size, strides=2, padding="same")(tensor)
    excess = tensor.shape[1] - shape[0], tensor.shape[2] - shape[1]
    return keras.layers.Cropping2D(((0, excess[0]), (0, excess[1])))(tensor) if any(excess) else tensor


class Builder(NamedTuple):
    """A function that builds networks, with the width and depth that suit it."""

    build: Callable[[tuple[int, ...], int, int, int, int], Networks]
    width: int
    depth: int


BUILDERS = {"mlp": Builder(mlp, 500, 2), "residual": Builder(residual, 512, 2), "conv": Builder(conv, 32, 1)}
