"""`test_data` has what the batches are; here is what they are drawn with."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_cvae import batches

SEED = tf.constant([5, 7])
SHAPES = [(6, 8, 8, 1), (7, 3, 3, 1), (5, 1, 1, 3)]


def words(number):
    """The first words of the generator."""
    drawn = tf.random.stateless_uniform([number], SEED, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    return drawn.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_random_bytes_are_those_of_the_whole_draw(shape):
    whole = words(-(-np.prod(shape) // 4)).view(np.uint8)[: np.prod(shape)].reshape(shape)
    for first in range(shape[0]):
        rows = batches.random_bytes(SEED, tf.constant([shape[0] - first, *shape[1:]]), first)
        np.testing.assert_array_equal(rows, whole[first:])


@pytest.mark.parametrize("shape", [(9, 28), (7, 3), (5, 1)])
def test_random_ties_are_those_of_the_whole_draw(shape):
    whole = batches.random_ties(SEED, tf.constant(shape), 0).numpy()
    for first in range(shape[0]):
        rows = batches.random_ties(SEED, tf.constant([shape[0] - first, *shape[1:]]), first)
        np.testing.assert_array_equal(rows, whole[first:])


def test_random_ties_are_uniform_and_not_from_the_words_of_the_bytes():
    ties = batches.random_ties(SEED, tf.constant([255, 1000]), 0).numpy().ravel()
    counts = np.bincount(ties, minlength=256)
    assert counts[255] == 0
    assert np.all(np.abs(counts[:255] - 1000) < 5 * np.sqrt(1000))
    assert np.mean(ties == words(len(ties)) % 255) < 0.01


def test_ink_has_the_probability_of_the_pixel():
    """Of all bytes and all ties, exactly as many as the grey value says."""
    grey = tf.cast(tf.range(256)[tf.newaxis, tf.newaxis], tf.uint8)
    random = tf.cast(tf.range(256)[tf.newaxis, :, tf.newaxis], tf.uint8)
    ties = tf.repeat(tf.cast(tf.range(255)[:, tf.newaxis], tf.uint8), 256, axis=1)
    ink = batches.is_ink(grey, random, ties)
    assert ink.shape == (255, 256, 256)
    np.testing.assert_array_equal(np.count_nonzero(ink, axis=(0, 1)), 256 * np.arange(256))


@pytest.mark.parametrize("grey", [128, 255])
def test_what_a_tie_decides(grey):
    shape = (4096, 16, 16, 1)
    ink = batches._binarize(tf.fill(shape, tf.constant(grey, tf.uint8)), "dynamic", SEED, 0).numpy() == 1
    random = batches.random_bytes(SEED, tf.constant(shape), 0).numpy()
    tied = random == grey
    np.testing.assert_array_equal(ink[~tied], (random < grey)[~tied])
    number, right = tied.sum(axis=(2, 3)), (tied & ink).sum(axis=(2, 3))
    decided = right[number > 0] / number[number > 0]
    # All of a row alike, and a row with the probability of the pixel.
    assert set(decided) <= {0.0, 1.0}
    expected = grey / 255
    assert abs(decided.mean() - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(decided))
