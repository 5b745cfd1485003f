"""Images that are moved and slanted a little, so that a classifier learns what does not matter."""

import tensorflow as tf

# Random numbers for each image.
NUM_RANDOM = 6

# Standard deviations: of an angle and a shear, both in radians, of the logarithm of a scale, and of a shift in parts of
# the image.
_ANGLE, _SHEAR, _LOG_SCALE, _SHIFT = 0.18, 0.15, 0.08, 0.055


def random_affine(image: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Maps each image by a random affine transformation, with bilinear interpolation; what comes from outside is 0.

    Args:
        image: `[batch, height, width, channels]` float32.
        noise: `[batch, NUM_RANDOM]` float32, standard normal: of angle, shear, two scales and two shifts. A factor
            makes the transformations stronger or weaker; 0 leaves the images as they are.

    Returns:
        `[batch, height, width, channels]` float32.
    """
    height, width = image.shape[1:3]
    angle, shear, scale_x, scale_y, shift_x, shift_y = tf.unstack(noise, axis=1)
    angle, shear = _ANGLE * angle, _SHEAR * shear
    scale_x, scale_y = tf.exp(_LOG_SCALE * scale_x), tf.exp(_LOG_SCALE * scale_y)
    # From a pixel of the result to the place in the image where it is read, both from the centre.
    matrix = [
        [scale_x * tf.cos(angle), scale_x * (shear - tf.sin(angle))],
        [scale_y * tf.sin(angle), scale_y * tf.cos(angle)],
    ]
    x, y = (width - 1) / 2, (height - 1) / 2
    (xx, xy), (yx, yy) = matrix
    origin_x = x - xx * x - xy * y + _SHIFT * width * shift_x
    origin_y = y - yx * x - yy * y + _SHIFT * height * shift_y
    zero = tf.zeros_like(angle)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image,
        transforms=tf.stack([xx, xy, origin_x, yx, yy, origin_y, zero, zero], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
