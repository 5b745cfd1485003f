import io

import numpy as np
import PIL.Image
import pytest

from tfp_cvae import plotting


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def test_lower_bound_without_a_metric():
    with pytest.raises(ValueError, match=r"history: expected the columns .*, got none of the name distortion; compile"):
        plotting.lower_bound({"elbo": np.zeros(3), "rate": np.zeros(3)})


def test_lower_bound_of_fewer_validations():
    history = {name: np.ones(4) for name in ("elbo", "rate", "distortion")}
    with pytest.raises(
        ValueError,
        match=r"history: expected a value .* for each epoch, got .*'val_elbo': 2.*; if only those of the val",
    ):
        plotting.lower_bound({**history, "val_elbo": np.ones(2)})


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


def test_names_stand_upright_where_they_have_room():
    images = np.zeros((1, 6, 8, 8, 1))
    for names, rotation in ((["triangle"] * 6, 90), (["", "triangle", "", "", "square", ""], 0), ([], 0)):
        (axes,) = plotting.image_table(images, column_names=names).axes
        assert {label.get_rotation() for label in axes.get_xticklabels()} <= {rotation}


def inches(figure, axes):
    """Size of what is in the axes, after the texts have found their room."""
    figure.draw_without_rendering()
    window = axes.get_window_extent()
    return np.array([window.width, window.height]) / figure.dpi


def test_long_names_take_no_room_from_images_and_tables():
    images, confusion = np.zeros((10, 8, 28, 28, 1)), np.eye(10, dtype=int)
    short, longer, longest = (["x" * size, *"abcdefghi"] for size in (3, 30, 300))
    for make in (
        lambda names: plotting.image_table(images, names, names[:8], row_label="rows", column_label="columns"),
        lambda names: plotting.class_tables(confusion, -confusion, names, "title"),
    ):
        figures = [make(names) for names in (short, longer, longest)]
        expected = inches(figures[0], figures[0].axes[0])
        for figure in figures:
            assert (inches(figure, figure.axes[0]) > 0.95 * expected).all()
            # Nor do they make a figure as long as they are; and all texts are in it.
            size, bounds = figure.get_size_inches(), figure.get_tightbbox()
            assert max(size) < 25
            assert (bounds.min >= -0.02).all()
            assert (bounds.max <= size + 0.02).all()
        assert figures[2].axes[0].get_yticklabels()[0].get_text() == f"{'x' * 37}..."


def test_calibration():
    figure = plotting.calibration([[0.5, 0.4, 10], [1.0, 0.9, 2000]], [[1.0, 0.97], [0.5, 1.0]], "t")
    reliability, selective = figure.axes
    np.testing.assert_allclose(reliability.lines[1].get_xydata(), [[0.5, 0.4], [1.0, 0.9]])
    assert [text.get_text() for text in reliability.texts] == ["10", "2,000"]
    # The error, of the share.
    np.testing.assert_allclose(selective.lines[0].get_xydata(), [[100, 3], [50, 0]])


def test_class_tables():
    confusion, elbo = np.array([[8, 2], [0, 7]]), np.array([[-80.0, -120.0], [-130.0, -90.0]])
    found, bound, *_ = plotting.class_tables(confusion, elbo, ["a", "b"], "t").axes
    # By column and row of the picture: errors alone have a colour.
    assert {(*text.get_position(), text.get_text()) for text in found.texts} == {(0, 0, "8"), (1, 0, "2"), (1, 1, "7")}
    np.testing.assert_array_equal(found.images[0].get_array(), [[0, 2], [0, 0]])
    np.testing.assert_array_equal(bound.images[0].get_array(), elbo)
    for axes, across in ((found, "class found"), (bound, "label given")):
        assert (axes.get_xlabel(), axes.get_ylabel()) == (across, "true class")
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_latent():
    variance, rate = plotting.latent([0.1, 3.0, 0.001], [1.0, 0.5, 2.0], "t").axes
    assert [bar.get_height() for bar in variance.patches] == [3.0, 0.1, 0.001]
    assert [bar.get_height() for bar in rate.patches] == [2.0, 1.0, 0.5]
    assert len(plotting.latent([0.1], None, "t").axes) == 1


def test_given_texts_are_no_formulas():
    names = ["$1_$2", "b"]
    images = np.full((2, 2, 4, 4, 1), 0.5)
    tables = np.eye(2, dtype=int), -np.ones((2, 2))
    figures = [
        plotting.image_table(images, names, names, title="$1_$2"),
        plotting.class_tables(*tables, names, "$1_$2"),
        plotting.latent(np.ones(3), None, "$1_$2"),
        plotting.calibration(np.array([[0.5, 0.5, 1]]), np.array([[1, 1]]), "$1_$2"),
        plotting.lower_bound({name: [1.0] for name in ("elbo", "rate", "distortion")}, "$1_$2"),
    ]
    for figure in figures:
        assert pixels(figure).std() > 0
