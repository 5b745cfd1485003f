"""Images that are moved, slanted and bent a little, so that a classifier learns what does not matter."""

import numpy as np
import tensorflow as tf

# Bends have random displacements at a grid of this many points each way.
_GRID = 5

# Standard deviation of the Gaussian weights of a point, in parts of the image.
_REACH = 0.175

# Random numbers for each image.
NUM_RANDOM = 6 + 2 * _GRID**2

# Standard deviations: of an angle and a shear, both in radians, of the logarithm of a scale, and of a shift and a bend
# in parts of the image.
_ANGLE, _SHEAR, _LOG_SCALE, _SHIFT, _BEND = 0.18, 0.15, 0.08, 0.055, 0.036


def random_deformation(image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Deforms each image by a random affine map and a smooth displacement; what comes from outside is 0.

        result(p) = image(A(p) + d(p)),  p from the centre of the image,  d(p) = bend * sum_g noise_g w_g(p)

    with Gaussian weights w of the points g of a grid, of which sum_g w_g(p)^2 = 1. Between pixels it is bilinear.

    Source: Simard, Steinkraus and Platt 2003, "Best practices for convolutional neural networks applied to visual
    document analysis", section 2, whose displacements are one smoothed random number for each pixel.

    Args:
        image: `[batch, height, width, channels]` float32.
        noise: `[batch, NUM_RANDOM]` float32, standard normal: of angle, shear, two scales and two shifts, and of the
            displacements of the grid, down and then right. A factor makes the deformations stronger or weaker; 0
            leaves the images as they are.

    Returns:
        `[batch, height, width, channels]` float32.
    """
    height, width = image.shape[1:3]
    angle, shear, scale_x, scale_y, shift_x, shift_y = tf.unstack(noise[:, :6, tf.newaxis, tf.newaxis], axis=1)
    angle, shear = _ANGLE * angle, _SHEAR * shear
    scale_x, scale_y = tf.exp(_LOG_SCALE * scale_x), tf.exp(_LOG_SCALE * scale_y)
    bend = tf.reshape(_BEND * noise[:, 6:], [-1, 2, _GRID, _GRID])
    bend_y, bend_x = tf.unstack(tf.einsum("bkij,yi,xj->bkyx", bend, _weights(height), _weights(width)), axis=1)

    # The place in the image, from its centre, at which each pixel of the result is read.
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y, x = tf.range(height, dtype=tf.float32)[:, tf.newaxis] - centre_y, tf.range(width, dtype=tf.float32) - centre_x
    y, x = (
        scale_y * (tf.sin(angle) * x + tf.cos(angle) * y) + height * (_SHIFT * shift_y + bend_y),
        scale_x * (tf.cos(angle) * x + (shear - tf.sin(angle)) * y) + width * (_SHIFT * shift_x + bend_x),
    )
    return _bilinear(image, centre_y + y, centre_x + x)


def _weights(size: int) -> np.ndarray:
    """Weights of the points of the grid at each pixel of one axis, `[size, _GRID]` float32."""
    distance = np.linspace(0, 1, size)[:, np.newaxis] - np.linspace(0, 1, _GRID)
    weights = np.exp(-0.5 * (distance / _REACH) ** 2)
    return np.float32(weights / np.linalg.norm(weights, axis=1, keepdims=True))


def _bilinear(image: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Image at `y` and `x`, both `[batch, height, width]`, in pixels from the first one; 0 outside."""
    height, width, channels = image.shape[1:]
    padded = tf.reshape(tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]]), [-1, (height + 2) * (width + 2), channels])
    y, x = tf.clip_by_value(y + 1, 0, height + 1), tf.clip_by_value(x + 1, 0, width + 1)
    top, left = tf.minimum(tf.floor(y), height), tf.minimum(tf.floor(x), width)
    down, right = (y - top)[..., tf.newaxis], (x - left)[..., tf.newaxis]
    first = tf.cast(top * (width + 2) + left, tf.int32)

    def row(start: int) -> tf.Tensor:
        at_left, at_right = (tf.gather(padded, first + start + column, batch_dims=1) for column in (0, 1))
        return at_left + right * (at_right - at_left)

    above, below = row(0), row(width + 2)
    return above + down * (below - above)
