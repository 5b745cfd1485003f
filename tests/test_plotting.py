import io

import numpy as np
import PIL.Image
import pytest

from tfp_cvae import plotting


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_lower_bound(epochs):
    epoch = np.arange(1, epochs + 1)
    history = {"epoch": epoch}
    for name, sign in (("elbo", -1), ("rate", 1), ("distortion", 1)):
        history[name] = sign * (100 + 50 / epoch)
        history[f"val_{name}"] = sign * (130 + 50 / epoch)
    figure = plotting.lower_bound(history)
    bound, parts = figure.axes
    assert bound.get_ylabel() == "ELBO (nats per image)"
    assert [text.get_text() for text in bound.get_legend().get_texts()] == ["training", "validation"]
    np.testing.assert_array_equal(bound.lines[1].get_ydata(), history["val_elbo"])
    np.testing.assert_array_equal(parts.lines[2].get_ydata(), history["rate"])
    # All of the curves, but for the first epochs.
    assert max(np.max(line.get_ydata()[epochs // 20 :]) for line in parts.lines) < parts.get_ylim()[1]
    assert pixels(figure).std() > 0
    # What `fit` returns has lists, and no epochs.
    of_fit = plotting.lower_bound({name: list(values) for name, values in history.items() if name != "epoch"})
    np.testing.assert_array_equal(pixels(of_fit), pixels(plotting.lower_bound(history)))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_table_shows_each_image_in_its_place(channels):
    values = np.arange(6).reshape(2, 3) / 6 + 0.05
    images = np.broadcast_to(values[:, :, None, None, None], (2, 3, 7, 9, channels))
    figure = plotting.image_table(
        images, ["a", "b"], ["1", "2", "3"], title="t", row_label="class", column_label="epoch"
    )
    (axes,) = figure.axes
    canvas = np.asarray(axes.images[0].get_array())
    canvas = canvas if channels == 3 else canvas[..., None]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    for row, top in enumerate(axes.get_yticks()):
        for column, left in enumerate(axes.get_xticks()):
            np.testing.assert_allclose(canvas[int(top), int(left)], values[row, column], rtol=1e-6)
    assert pixels(figure).std() > 0


def test_bytes_and_probabilities_look_the_same():
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 4, 1)).astype(np.uint8)
    one, other = (plotting.image_table(kind) for kind in (images, images / 255))
    np.testing.assert_allclose(one.axes[0].images[0].get_array(), other.axes[0].images[0].get_array(), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 12])
def test_image_table_has_its_title_close_to_the_images(rows):
    figure = plotting.image_table(np.zeros((rows, 8, 28, 28, 1)), title="black")
    file = io.BytesIO()
    figure.savefig(file, dpi=100, bbox_inches="tight")
    light = (np.asarray(PIL.Image.open(file).convert("L")) > 200).all(axis=1)
    # Rows of pixels between the lowest of the title and the first of the images.
    gap = np.flatnonzero(light & (np.arange(len(light)) > np.argmin(light)))
    assert 2 < np.argmin(np.diff(gap) == 1) < 40
