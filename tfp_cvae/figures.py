"""The figures of a run: what `plotting` is given, and the files that come of it."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from tfp_cvae import manifest, pictures, plotting, recognition
from tfp_cvae.data import Dataset
from tfp_cvae.dataset_names import path_of
from tfp_cvae.model import CVAE
from tfp_cvae.run import FIGURES, Run

_SAMPLES = 12
_ROWS = 10
_STYLES = 10
_NEIGHBOURS = 8
# More would be pictures that nobody looks at, and from 650 on more pixels than Matplotlib draws.
_MOST_CLASSES = 64
# Seeds from here on, so that the samples are others than those that were watched during training.
_FIRST_SEED = 1000


def draw(run: Run, cvae: CVAE, dataset: Dataset | None = None) -> list[pathlib.Path]:
    """Draws the figures of a run into `figures/`.

    Args:
        run: The run.
        cvae: Its model.
        dataset: Its data set, for the figure with real images; None to leave that one out.

    Returns:
        The files, of those of `lower_bound.png`, `generated_by_epoch.png`, `classes.png` and `styles.png` for which the
        run has what they show.
    """
    return _write(run, _figures(run, cvae, dataset))


def draw_evaluation(run: Run, dataset: Dataset | None) -> list[pathlib.Path]:
    """Draws the figures of an evaluated run into `figures/`.

    Args:
        run: The run.
        dataset: The data set of the evaluation; None to leave out `neighbours.png`.

    Returns:
        The files: `latent.png`, and for a model with classes `calibration.png`, `class_tables.png` and
        `neighbours.png`; none if `evaluate_run` has not evaluated the run yet.
    """
    if not run.has_evaluation() or "latent" not in run.evaluation():
        return []
    return _write(run, _evaluation_figures(run, dataset))


def draw_samples(run: Run, number: int | None, count: int, seed: int, path: pathlib.Path) -> None:
    """Generates images of one class and writes them as one picture, eight in a row.

    Args:
        run: The run.
        number: Number of the class, of `Run.class_number`; None for a model without classes.
        count: Number of images.
        seed: Seed of the first image; the others follow it.
        path: Picture to write.
    """
    images = run.model().generate(None if number is None else [number] * count, seed + np.arange(count)).numpy()
    name = "" if number is None else f", class {run.class_names[number]}"
    pictures.save_samples(images, f"{_short(run, run.config.dataset)}{name}: {pictures.seeds(seed, count)}", path)


def _short(run: Run, dataset: str) -> str:
    """Name of a data set in a title: of a file or folder, that of the run or another, without those in which it is."""
    is_own = run.dataset_path is not None and pathlib.Path(dataset) == pathlib.Path(run.config.dataset)
    path = run.dataset_path if is_own else path_of(dataset)
    return dataset if path is None else os.path.basename(os.path.realpath(path))


def _drawn_classes(run: Run) -> tuple[tuple[str, ...], str]:
    """Names of the classes that are drawn, and a note for a title if these are not all."""
    number = len(run.class_names)
    note = f" (the first {_MOST_CLASSES} of {number:,} classes)" if number > _MOST_CLASSES else ""
    return run.class_names[:_MOST_CLASSES], note


def _write(run: Run, figures: Iterator[tuple[str, Figure]]) -> list[pathlib.Path]:
    run.figures_folder.mkdir(exist_ok=True)
    drawn = []
    with manifest.changing(run.path, *FIGURES):
        for name, figure in figures:
            path = run.figures_folder / f"{name}.png"
            pictures.save(figure, path)
            drawn.append(path)
    return drawn


def _figures(run: Run, cvae: CVAE, dataset: Dataset | None) -> Iterator[tuple[str, Figure]]:
    name = _short(run, run.config.dataset)
    history = run.history()
    if history:
        columns = {key: np.array([row[key] for row in history]) for key in history[0]}
        title = f"{name}: evidence lower bound (held-out images {run.binarization_note()})"
        if run.config.semi_supervised:
            title += "\nof log p(x), and of log p(x,y) for training images with a label"
        yield "lower_bound", plotting.lower_bound(columns, title)
    if run.has_images_by_epoch():
        epochs, images = run.images_by_epoch()
        class_names, note = _drawn_classes(run)
        yield (
            "generated_by_epoch",
            plotting.image_table(
                images[:, : len(class_names) or None].swapaxes(0, 1),
                class_names,
                [str(epoch) for epoch in epochs],
                title=f"{name}: the same latent after each epoch{note}",
                row_label="class" if run.class_names else "",
                column_label="epoch",
            ),
        )
    yield "classes", _classes(run, cvae)
    if dataset is not None:
        yield "styles", _styles(run, cvae, dataset)


def _classes(run: Run, cvae: CVAE) -> Figure:
    """Fresh samples: a row for each class that is drawn; without classes, ten rows."""
    class_names, note = _drawn_classes(run)
    rows = len(class_names) or _ROWS
    seeds = _FIRST_SEED + np.arange(rows * _SAMPLES)
    label = np.repeat(np.arange(rows), _SAMPLES) if cvae.num_classes else None
    images = cvae.generate(label, seeds).numpy()
    return plotting.image_table(
        images.reshape(rows, _SAMPLES, *images.shape[1:]),
        class_names,
        title=f"{_short(run, run.config.dataset)}: fresh samples{note}",
        row_label="class" if run.class_names else "",
    )


def under_label(cvae: CVAE, image: np.ndarray, one_hot: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Images of another class in the style of given ones: their analogies.

    The style is the standard normal that the prior of an image's own label turns into its latent, the mean of q(z|x,y);
    the prior of another label turns it into a latent of that one. With the prior N(0, I) both are the latent itself.

    Args:
        cvae: A model with classes.
        image: `[n, height, width, channels]` float32, in [0, 1].
        one_hot: Their own labels, `[n, num_classes]` float32.
        other: The other label, `[num_classes]` float32.

    Returns:
        Pixel probabilities, `[n, height, width, channels]` float32 in [0, 1].
    """
    style = cvae.prior(one_hot).bijector.inverse(cvae.posterior(image, one_hot).mean())
    others = np.repeat(other[np.newaxis], len(image), axis=0)
    return cvae.likelihood(cvae.prior(others).bijector.forward(style), others).mean().numpy()


def _styles(run: Run, cvae: CVAE, dataset: Dataset) -> Figure:
    """Test images, their reconstructions, and their styles under every label."""
    split = dataset.test
    # Each class in turn: the first image of each, then the second of each, ...
    turn = np.zeros(len(split), int)
    for label in np.unique(split.labels):
        turn[split.labels == label] = np.arange(np.sum(split.labels == label))
    chosen = np.lexsort((split.labels, turn))[:_STYLES]
    chosen = chosen[np.argsort(split.labels[chosen], kind="stable")]
    image, label = split.binarized(run.config.binarization, rows=chosen), split.labels[chosen]
    kind = "test images" if run.config.binarization == "none" else "binarized test images"
    one_hot = np.eye(cvae.num_classes, dtype=np.float32) if cvae.num_classes else None
    class_names, note = _drawn_classes(run)
    columns = [image, cvae.reconstruct(image, label if cvae.num_classes else None)]
    names = ["image", "recon."]
    if one_hot is not None:
        columns += [under_label(cvae, image, one_hot[label], row) for row in one_hot[: len(class_names)]]
        names += class_names
    return plotting.image_table(
        np.stack(columns, axis=1),
        [dataset.class_names[index] for index in label],
        names,
        title=f"{_short(run, run.config.dataset)}: {kind}"
        + (f", and their styles under every label{note}" if cvae.num_classes else ", and their reconstructions"),
        row_label="class" if cvae.num_classes else "",
        column_label="decoded as" if cvae.num_classes else "",
        gap_after=2,
    )


def _evaluation_figures(run: Run, dataset: Dataset | None) -> Iterator[tuple[str, Figure]]:
    result = run.evaluation()
    protocol = result["protocol"]
    name = f"{_short(run, protocol['dataset'])}: {protocol['num_images']:,} test images {run.binarization_note()}"
    latent = result["latent"]
    yield "latent", plotting.latent(latent["variance_of_means"], latent["rate_per_dimension"], name)
    if not run.class_names:
        return
    title = f"{name}; K = {protocol['num_samples']:,}"
    measured = result["calibration"]
    yield (
        "calibration",
        plotting.calibration(
            measured["reliability"], measured["selective_accuracy"], f"p(y|x) by Bayes' rule; {title}"
        ),
    )
    elbo_by_label = np.array(result["label"]["elbo_by_label"], float)
    yield "class_tables", plotting.class_tables(measured["confusion"], elbo_by_label, run.class_names, title)
    if dataset is not None:
        yield "neighbours", _neighbours(run, dataset)


def _neighbours(run: Run, dataset: Dataset) -> Figure:
    """A generated image of each class that is drawn, beside the training images nearest to it."""
    class_names, note = _drawn_classes(run)
    labels = np.arange(len(class_names))
    images = run.model().generate(labels, _FIRST_SEED + labels).numpy()
    _, index = recognition.nearest(images, dataset.train, _NEIGHBOURS)
    neighbours = dataset.train.images[index] / np.float32(255)
    return plotting.image_table(
        np.concatenate([images[:, np.newaxis], neighbours], axis=1),
        class_names,
        ["sample", *(str(rank + 1) for rank in range(index.shape[1]))],
        title=f"samples, and the training images of {_short(run, dataset.name)} nearest to them{note}",
        row_label="class",
        gap_after=1,
    )
