import numpy as np
import pytest
import tensorflow as tf

from tfp_cvae import augmentation
from tfp_cvae.augmentation import random_affine

ANGLE, SHEAR, SCALE_X, SCALE_Y, SHIFT_X, SHIFT_Y = range(augmentation.NUM_RANDOM)


@pytest.fixture
def image():
    return np.random.default_rng(0).random((2, 9, 9, 3), np.float32)


def noise(number, value):
    return tf.constant(np.float32(value) * np.eye(augmentation.NUM_RANDOM, dtype=np.float32)[[number, number]])


def test_no_noise_changes_nothing(image):
    np.testing.assert_allclose(random_affine(image, noise(0, 0.0)), image, atol=1e-6)


def test_a_shift_by_whole_pixels(image):
    moved = random_affine(image, noise(SHIFT_X, 2 / 9 / augmentation._SHIFT)).numpy()
    np.testing.assert_allclose(moved[:, :, :-2], image[:, :, 2:], atol=1e-4)
    np.testing.assert_allclose(moved[:, :, -2:], 0, atol=1e-4)
    moved = random_affine(image, noise(SHIFT_Y, -1 / 9 / augmentation._SHIFT)).numpy()
    np.testing.assert_allclose(moved[:, 1:], image[:, :-1], atol=1e-4)


def test_a_quarter_turn_about_the_centre(image):
    turned = random_affine(image, noise(ANGLE, np.pi / 2 / augmentation._ANGLE))
    np.testing.assert_allclose(turned, np.rot90(image, axes=(1, 2)), atol=1e-4)


def test_twice_the_size():
    # Of a ramp, whose values between pixels are known.
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32)[:, np.newaxis], (2, 9, 9, 1))
    seen = random_affine(ramp, noise(SCALE_X, np.log(0.5) / augmentation._LOG_SCALE)).numpy()
    np.testing.assert_allclose(seen[0, 4, :, 0], 4 + 0.5 * (np.arange(9) - 4), atol=1e-4)
    seen = random_affine(np.swapaxes(ramp, 1, 2), noise(SCALE_Y, np.log(0.5) / augmentation._LOG_SCALE)).numpy()
    np.testing.assert_allclose(seen[0, :, 4, 0], 4 + 0.5 * (np.arange(9) - 4), atol=1e-4)


def test_a_shear_moves_rows_against_each_other(image):
    seen = random_affine(image, noise(SHEAR, 1 / augmentation._SHEAR)).numpy()
    np.testing.assert_allclose(seen[:, 4], image[:, 4], atol=1e-4)
    np.testing.assert_allclose(seen[:, 5, :-1], image[:, 5, 1:], atol=1e-4)
    np.testing.assert_allclose(seen[:, 3, 1:], image[:, 3, :-1], atol=1e-4)


def test_each_image_by_its_own_numbers(image):
    drawn = np.random.default_rng(1).standard_normal((2, augmentation.NUM_RANDOM)).astype(np.float32)
    both = random_affine(image, drawn).numpy()
    for row in range(2):
        np.testing.assert_allclose(both[row : row + 1], random_affine(image[row : row + 1], drawn[row : row + 1]))
    assert np.abs(both - image).max() > 0.1
