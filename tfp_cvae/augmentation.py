"""Images that are moved, slanted and bent a little, so that a classifier learns what does not matter."""

import numpy as np
import tensorflow as tf

# Numbers of the affine map, and of the points of a grid, each way, at which the displacements are drawn.
_NUM_AFFINE, _GRID = 6, 5

# Random numbers for each image.
NUM_RANDOM = _NUM_AFFINE + 2 * _GRID**2

# Standard deviations: of an angle in radians, a shear, the logarithm of a scale, and a shift in parts of the image.
_ANGLE, _SHEAR, _LOG_SCALE, _SHIFT = 0.18, 0.15, 0.08, 0.055

# Standard deviation of a displacement, in parts of the shorter side, and of the weights of a point, in parts of a side.
_BEND, _REACH = 0.036, 0.175


@tf.autograph.experimental.do_not_convert
def deform(image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Deforms each image by an affine map and a smooth displacement; what comes from outside is 0.

        result(p) = image(A(p) + d(p)),  p from the centre of the image,  d(p) = 0.036 size sum_g noise_g w_g(p)

    where size is that of the shorter side, and w_g are Gaussian weights of the points g of a grid, with
    sum_g w_g(p)^2 = 1. Between pixels it is bilinear.

    Source: Simard, Steinkraus and Platt 2003, "Best practices for convolutional neural networks applied to visual
    document analysis", section 2, whose displacements are a smoothed random number for each pixel.

    Args:
        image: `[batch, height, width, channels]` float32.
        noise: `[batch, NUM_RANDOM]` float32, standard normal: of angle, shear, two scales and two shifts, each right
            and then down, and of the displacements at the grid, down and then right. A factor makes the deformations
            stronger or weaker: from 2 on images fold, and 0 leaves them as they are.

    Returns:
        `[batch, height, width, channels]` float32.
    """
    height, width = image.shape[1:3]
    angle, shear, scale_x, scale_y, shift_x, shift_y = tf.unstack(
        noise[:, :_NUM_AFFINE, tf.newaxis, tf.newaxis], axis=1
    )
    angle, shear = _ANGLE * angle, _SHEAR * shear
    scale_x, scale_y = tf.exp(_LOG_SCALE * scale_x), tf.exp(_LOG_SCALE * scale_y)
    grid = tf.reshape(_BEND * min(height, width) * noise[:, _NUM_AFFINE:], [-1, 2, _GRID, _GRID])
    bend_y, bend_x = tf.unstack(tf.einsum("bkij,yi,xj->bkyx", grid, _weights(height), _weights(width)), axis=1)

    # The place in the image, from its centre, at which each pixel of the result is read.
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y, x = tf.range(height, dtype=tf.float32)[:, tf.newaxis] - centre_y, tf.range(width, dtype=tf.float32) - centre_x
    y, x = (
        scale_y * (tf.sin(angle) * x + tf.cos(angle) * y) + _SHIFT * height * shift_y + bend_y,
        scale_x * (tf.cos(angle) * x + (shear - tf.sin(angle)) * y) + _SHIFT * width * shift_x + bend_x,
    )
    return _bilinear(image, centre_y + y, centre_x + x)


def _weights(size: int) -> np.ndarray:
    """Weights of the points of the grid at each pixel of one axis, `[size, _GRID]` float32."""
    distance = np.linspace(0, 1, size)[:, np.newaxis] - np.linspace(0, 1, _GRID)
    weights = np.exp(-0.5 * (distance / _REACH) ** 2)
    return np.float32(weights / np.linalg.norm(weights, axis=1, keepdims=True))


def _bilinear(image: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Image at `y` and `x`, both `[batch, height, width]`, in pixels from the first one; 0 outside.

    As `tfp.math.batch_interp_regular_nd_grid` of the padded image, in a fifth of its time.
    """
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
