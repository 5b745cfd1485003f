import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tfp_cvae import augmentation
from tfp_cvae.augmentation import random_deformation

ANGLE, SHEAR, SCALE_X, SCALE_Y, SHIFT_X, SHIFT_Y = range(6)


@pytest.fixture
def image():
    return np.random.default_rng(0).random((2, 9, 9, 3), np.float32)


def noise(number, value):
    return tf.constant(np.float32(value) * np.eye(augmentation.NUM_RANDOM, dtype=np.float32)[[number, number]])


def test_no_noise_changes_nothing(image):
    np.testing.assert_allclose(random_deformation(image, noise(0, 0.0)), image, atol=1e-6)


def test_a_shift_by_whole_pixels(image):
    moved = random_deformation(image, noise(SHIFT_X, 2 / 9 / augmentation._SHIFT)).numpy()
    np.testing.assert_allclose(moved[:, :, :-2], image[:, :, 2:], atol=1e-4)
    np.testing.assert_allclose(moved[:, :, -2:], 0, atol=1e-4)
    moved = random_deformation(image, noise(SHIFT_Y, -1 / 9 / augmentation._SHIFT)).numpy()
    np.testing.assert_allclose(moved[:, 1:], image[:, :-1], atol=1e-4)


def test_a_quarter_turn_about_the_centre(image):
    turned = random_deformation(image, noise(ANGLE, np.pi / 2 / augmentation._ANGLE))
    np.testing.assert_allclose(turned, np.rot90(image, axes=(1, 2)), atol=1e-4)


def test_twice_the_size():
    # Of a ramp, whose values between pixels are known.
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32)[:, np.newaxis], (2, 9, 9, 1))
    seen = random_deformation(ramp, noise(SCALE_X, np.log(0.5) / augmentation._LOG_SCALE)).numpy()
    np.testing.assert_allclose(seen[0, 4, :, 0], 4 + 0.5 * (np.arange(9) - 4), atol=1e-4)
    seen = random_deformation(np.swapaxes(ramp, 1, 2), noise(SCALE_Y, np.log(0.5) / augmentation._LOG_SCALE)).numpy()
    np.testing.assert_allclose(seen[0, :, 4, 0], 4 + 0.5 * (np.arange(9) - 4), atol=1e-4)


def test_a_shear_moves_rows_against_each_other(image):
    seen = random_deformation(image, noise(SHEAR, 1 / augmentation._SHEAR)).numpy()
    np.testing.assert_allclose(seen[:, 4], image[:, 4], atol=1e-4)
    np.testing.assert_allclose(seen[:, 5, :-1], image[:, 5, 1:], atol=1e-4)
    np.testing.assert_allclose(seen[:, 3, 1:], image[:, 3, :-1], atol=1e-4)


def test_each_image_by_its_own_numbers(image):
    drawn = np.random.default_rng(1).standard_normal((2, augmentation.NUM_RANDOM)).astype(np.float32)
    both = random_deformation(image, drawn).numpy()
    for row in range(2):
        np.testing.assert_allclose(both[row : row + 1], random_deformation(image[row : row + 1], drawn[row : row + 1]))
    assert np.abs(both - image).max() > 0.1


def test_bends_are_smooth_and_as_large_as_said():
    """Seen in ramps, whose values between pixels are the places."""
    ramp = np.linspace(-30, 30, 28, dtype=np.float32)
    image = np.broadcast_to(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), axis=-1), (4000, 28, 28, 2))
    drawn = np.random.default_rng(0).standard_normal((4000, augmentation.NUM_RANDOM)).astype(np.float32)
    drawn[:, :6] = 0
    pixels = (random_deformation(image, drawn) - image).numpy()[:, 5:-5, 5:-5] * 27 / 60
    np.testing.assert_allclose(pixels.std(axis=0), 28 * augmentation._BEND, rtol=0.06)
    np.testing.assert_allclose(pixels.mean(axis=0), 0, atol=0.1)
    down, right = np.moveaxis(pixels, -1, 0)
    for direction in (down, right):
        assert np.corrcoef(direction[:, 9, 9], direction[:, 9, 10])[0, 1] > 0.97
        assert abs(np.corrcoef(direction[:, 0, 0], direction[:, 17, 17])[0, 1]) < 0.1
    assert abs(np.corrcoef(down[:, 9, 9], right[:, 9, 9])[0, 1]) < 0.1


def test_pixels_are_read_as_scipy_reads_them(image):
    place = np.random.default_rng(1).uniform(-3, 12, (2, 2, 9, 9)).astype(np.float32)
    seen = augmentation._bilinear(tf.constant(image), place[:, 0], place[:, 1]).numpy()
    for row in range(2):
        for channel in range(3):
            expected = ndimage.map_coordinates(image[row, ..., channel], place[row], order=1, mode="grid-constant")
            np.testing.assert_allclose(seen[row, ..., channel], expected, atol=1e-5)
