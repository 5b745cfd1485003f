import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tfp_cvae import augmentation
from tfp_cvae.augmentation import deform

ANGLE, SHEAR, SCALE_X, SCALE_Y, SHIFT_X, SHIFT_Y = range(6)


@pytest.fixture
def image():
    return np.random.default_rng(0).random((2, 9, 9, 3), np.float32)


def noise(number, value):
    return tf.constant(np.float32(value) * np.eye(augmentation.NUM_RANDOM, dtype=np.float32)[[number, number]])


def test_no_noise_changes_nothing(image):
    np.testing.assert_allclose(deform(image, noise(0, 0.0)), image, atol=1e-6)


def test_a_shift_by_whole_pixels(image):
    moved = deform(image, noise(SHIFT_X, 2 / 9 / augmentation._SHIFT)).numpy()
    np.testing.assert_allclose(moved[:, :, :-2], image[:, :, 2:], atol=1e-4)
    np.testing.assert_allclose(moved[:, :, -2:], 0, atol=1e-4)
    moved = deform(image, noise(SHIFT_Y, -1 / 9 / augmentation._SHIFT)).numpy()
    np.testing.assert_allclose(moved[:, 1:], image[:, :-1], atol=1e-4)


def test_a_quarter_turn_about_the_centre(image):
    turned = deform(image, noise(ANGLE, np.pi / 2 / augmentation._ANGLE))
    np.testing.assert_allclose(turned, np.rot90(image, axes=(1, 2)), atol=1e-4)


def test_twice_the_size():
    # Of a ramp, whose values between pixels are known.
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32)[:, np.newaxis], (2, 9, 9, 1))
    seen = deform(ramp, noise(SCALE_X, np.log(0.5) / augmentation._LOG_SCALE)).numpy()
    np.testing.assert_allclose(seen[0, 4, :, 0], 4 + 0.5 * (np.arange(9) - 4), atol=1e-4)
    seen = deform(np.swapaxes(ramp, 1, 2), noise(SCALE_Y, np.log(0.5) / augmentation._LOG_SCALE)).numpy()
    np.testing.assert_allclose(seen[0, :, 4, 0], 4 + 0.5 * (np.arange(9) - 4), atol=1e-4)


def test_a_shear_moves_rows_against_each_other(image):
    seen = deform(image, noise(SHEAR, 1 / augmentation._SHEAR)).numpy()
    np.testing.assert_allclose(seen[:, 4], image[:, 4], atol=1e-4)
    np.testing.assert_allclose(seen[:, 5, :-1], image[:, 5, 1:], atol=1e-4)
    np.testing.assert_allclose(seen[:, 3, 1:], image[:, 3, :-1], atol=1e-4)


def test_each_image_by_its_own_numbers(image):
    drawn = np.random.default_rng(1).standard_normal((2, augmentation.NUM_RANDOM)).astype(np.float32)
    both = deform(image, drawn).numpy()
    for row in range(2):
        np.testing.assert_allclose(both[row : row + 1], deform(image[row : row + 1], drawn[row : row + 1]), atol=1e-5)
    assert np.abs(both - image).max() > 0.1


def test_bends_are_smooth_and_of_a_pixel_on_mnist():
    """Seen in ramps, whose values between pixels are the places."""
    ramp = np.linspace(-30, 30, 28, dtype=np.float32)
    image = np.broadcast_to(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), axis=-1), (4000, 28, 28, 2))
    drawn = np.random.default_rng(0).standard_normal((4000, augmentation.NUM_RANDOM)).astype(np.float32)
    drawn[:, :6] = 0
    pixels = (deform(image, drawn) - image).numpy()[:, 5:-5, 5:-5] * 27 / 60
    np.testing.assert_allclose(pixels.std(axis=0), 1, rtol=0.06)
    np.testing.assert_allclose(pixels.mean(axis=0), 0, atol=0.1)
    down, right = np.moveaxis(pixels, -1, 0)
    for direction in (down, right):
        # A field smoothed by a Gaussian of 4.7 pixels has exp(-(distance / 4.7)^2 / 4).
        for distance in (1, 5, 10):
            found = np.corrcoef(direction[:, 4, 9], direction[:, 4 + distance, 9])[0, 1]
            np.testing.assert_allclose(found, np.exp(-((distance / 4.7) ** 2) / 4), atol=0.1)
    assert abs(np.corrcoef(down[:, 9, 9], right[:, 9, 9])[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [(7, 12, 3), (12, 7, 1), (1, 5, 2)])
def test_the_formula(shape):
    """Both directions, in NumPy and SciPy, of images whose sides differ."""
    rng = np.random.default_rng(0)
    image, noise = rng.random((4, *shape), np.float32), rng.standard_normal((4, augmentation.NUM_RANDOM))
    height, width, channels = shape
    side = np.linspace(0, 1, 5)
    down, right = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    seen = deform(image, np.float32(noise)).numpy()
    for row, (angle, shear, scale_x, scale_y, shift_x, shift_y, *grid) in enumerate(noise):
        angle, shear = 0.18 * angle, 0.15 * shear
        weights = [
            np.exp(
                -((np.linspace(0, 1, height)[:, None] - y) ** 2 + (np.linspace(0, 1, width) - x) ** 2) / (2 * 0.175**2)
            )
            for y in side
            for x in side
        ]
        weights /= np.sqrt(np.sum(np.square(weights), axis=0))
        bend_down, bend_right = (
            0.036 * min(height, width) * np.einsum("kg,gyx->kyx", np.reshape(grid, (2, 25)), weights)
        )
        place = [
            np.exp(0.08 * scale_y) * (np.sin(angle) * right + np.cos(angle) * down) + 0.055 * height * shift_y,
            np.exp(0.08 * scale_x) * (np.cos(angle) * right + (shear - np.sin(angle)) * down) + 0.055 * width * shift_x,
        ]
        place[0] += bend_down + (height - 1) / 2
        place[1] += bend_right + (width - 1) / 2
        for channel in range(channels):
            expected = ndimage.map_coordinates(image[row, ..., channel], place, order=1, mode="grid-constant")
            np.testing.assert_allclose(seen[row, ..., channel], expected, atol=1e-5)
