"""The noise of training against NumPy, Python's own quantiles and the published numbers of its generator."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import threefry_normal

from tfp_cvae.noise import standard_normal, standard_normal_rows, threefry

KEY = (0x13198A2E, 0x03707344)


def words(*values):
    return tuple(tf.constant(value, tf.uint32) for value in values)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        (KEY, (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_published_words(key, counter, expected, jit_compile):
    """Those that come with the authors' own implementation, Random123."""
    found = tf.function(threefry, jit_compile=jit_compile)(words(*key), words(*counter))
    assert tuple(int(word) for word in found) == expected


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_rows_are_quantiles_of_the_words(size, jit_compile):
    rows = [0, 3, 2**31 - 1]
    noise = tf.function(standard_normal_rows, jit_compile=jit_compile)(words(*KEY), tf.constant(rows), size)
    np.testing.assert_allclose(noise, threefry_normal(KEY, rows, size), rtol=2e-5, atol=1e-7)


def test_a_row_is_the_same_without_the_others():
    key = words(*KEY)
    whole = standard_normal_rows(key, tf.range(8), 5)
    np.testing.assert_array_equal(standard_normal_rows(key, tf.constant([6, 2]), 5), tf.gather(whole, [6, 2]))


def test_a_key_for_each_row():
    found = standard_normal_rows(words([KEY[0], 0], [KEY[1], 7]), tf.constant([3, 1]), 5)
    np.testing.assert_array_equal(found[:1], standard_normal_rows(words(*KEY), tf.constant([3]), 5))
    np.testing.assert_array_equal(found[1:], standard_normal_rows(words(0, 7), tf.constant([1]), 5))


def test_samples_are_of_their_seed_and_stream():
    """Of all bits of both."""
    seeds, samples = (3, 4, 3 + 2**32), []
    for stream in (0, 2**31, 2**32, 3 * 2**31):
        found = standard_normal(tf.constant(seeds, tf.int64), [25, 40], stream=stream).numpy()
        for seed, sample in zip(seeds, found, strict=True):
            key = tf.constant([seed, stream], tf.int64)
            np.testing.assert_array_equal(sample, tf.random.stateless_normal([25, 40], seed=key, alg="philox"))
            samples.append(sample.ravel())
    correlation = np.corrcoef(samples) - np.eye(12)
    assert np.abs(correlation).max() < 5 / np.sqrt(1000)


def test_distribution():
    """Moments, and correlations of what is near to each other, within five standard errors."""
    noise = standard_normal_rows(words(*KEY), tf.range(1000), 400).numpy().astype(np.float64)
    other = standard_normal_rows(words(KEY[0], KEY[1] + 1), tf.range(1000), 400).numpy()
    error = noise.size**-0.5
    assert np.isfinite(noise).all()
    assert abs(noise.mean()) < 5 * error
    assert abs(noise.var() - 1) < 5 * 2**0.5 * error
    assert abs((noise**4).mean() - 3) < 5 * 96**0.5 * error
    for pair in (
        (noise[1:], noise[:-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[:, :200], noise[:, 200:]),
        (noise, other),
    ):
        assert abs((pair[0] * pair[1]).mean()) < 5 * pair[0].size ** -0.5
