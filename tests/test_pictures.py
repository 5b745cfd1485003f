import numpy as np
import PIL.Image
import pytest

from tfp_cvae import pictures


# WebP has the smallest limit of all formats.
@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 3, 3)])
def test_as_many_images_as_are_allowed_fit(shape, tmp_path):
    path = tmp_path / "many.webp"
    pictures.check_samples(1000, 0, path)
    pictures.save_samples(np.zeros((1000, *shape), np.float32), "many", path)
    assert PIL.Image.open(path).size[1] > 10_000
    with pytest.raises(ValueError, match="count: expected at most 1,000 images in a picture, got 1,001"):
        pictures.check_samples(1001, 0, path)
