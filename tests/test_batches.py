"""`test_data` has what the batches are; here is what they are drawn with."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_cvae.batches import is_ink, random_bytes


@pytest.mark.parametrize("shape", [(6, 8, 8, 1), (7, 3, 3, 1), (5, 1, 1, 3)])
def test_random_bytes_are_those_of_the_whole_draw(shape):
    number = -(-np.prod(shape) // 4)
    words = tf.random.stateless_uniform([number], [5, 7], minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    whole = words.numpy().view(np.uint8)[: np.prod(shape)].reshape(shape)
    for first in range(shape[0]):
        rows = random_bytes(tf.constant([5, 7]), tf.constant([shape[0] - first, *shape[1:]]), first)
        np.testing.assert_array_equal(rows, whole[first:])


def test_ink_has_the_probability_of_the_pixel():
    """Of all bytes and all ties, exactly as many as the grey value says."""
    grey, ties = tf.range(256), tf.range(255)
    random = tf.cast(grey[tf.newaxis, :, tf.newaxis], tf.uint8)
    ink = is_ink(tf.cast(grey[tf.newaxis, tf.newaxis], tf.uint8), random, tf.cast(ties, tf.uint8))
    assert ink.shape == (255, 256, 256)
    np.testing.assert_array_equal(np.count_nonzero(ink, axis=(0, 1)), 256 * np.arange(256))
