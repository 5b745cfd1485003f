"""`test_data` has what the batches are; here is what they are drawn with."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_cvae.batches import uniform_rows


@pytest.mark.parametrize("shape", [(6, 8, 8, 1), (7, 3, 3, 1), (5, 1, 1, 3)])
def test_uniform_rows_are_those_of_the_whole_draw(shape):
    whole = tf.random.stateless_uniform(shape, [5, 7]).numpy()
    for first in range(shape[0]):
        rows = uniform_rows(tf.constant([5, 7]), tf.constant([shape[0] - first, *shape[1:]]), first)
        np.testing.assert_array_equal(rows, whole[first:])
