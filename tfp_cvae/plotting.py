"""Figures: arrays in, `matplotlib.figure.Figure` out. Nothing is shown or written here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfp_cvae.results import ACTIVE_VARIANCE

_FONT_SIZE = 13
# Of texts that were given: "$" is no formula.
_GIVEN: dict[str, Any] = {"parse_math": False}
_TITLE: dict[str, Any] = {**_GIVEN, "fontsize": _FONT_SIZE + 2}
_IMAGE_INCHES = 0.62
_LONG_NAME = 7
# A longer one is cut, or a figure would be names.
_MAX_NAME = 40
_INCHES_PER_LETTER = 0.12


def lower_bound(history: Mapping[str, Sequence[float] | np.ndarray], title: str = "Evidence lower bound") -> Figure:
    """Bound against epoch, and beside it rate and distortion, for training and validation.

    Args:
        history: Columns `elbo`, `rate`, `distortion` and, if there was a validation, the same with `val_` before the
            name, in nats per image, as of the `history` that `fit` returns; `epoch` if it is not 1, 2, ...
        title: Title of the figure.

    Returns:
        The figure, which a notebook shows.

    Raises:
        ValueError: If a column is missing, or has not a value for each epoch.
    """
    if missing := [name for name in ("elbo", "rate", "distortion") if name not in history]:
        raise ValueError(
            f"history: expected the columns elbo, rate and distortion, got none of the name {missing[0]}; compile with "
            "metrics=[ELBO(), Rate(), Distortion()]"
        )
    drawn = ("epoch", "elbo", "rate", "distortion")
    lengths = {name: len(history[name]) for name in history if name.removeprefix("val_") in drawn}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"history: expected a value of each column for each epoch, got {lengths}; if only those of the "
            "validation are shorter, as with fit(validation_freq=2), leave them out"
        )
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    bound, parts = figure.subplots(1, 2)
    epoch = history.get("epoch", np.arange(1, len(history["elbo"]) + 1))
    for axes, names in ((bound, ("elbo",)), (parts, ("distortion", "rate"))):
        for color, name in enumerate(names):
            label = "" if name == "elbo" else f"{name}, "
            style = {"color": f"C{2 * color}", "marker": "o" if len(epoch) == 1 else None}
            axes.plot(epoch, history[name], linestyle="--", fillstyle="none", label=f"{label}training", **style)
            if f"val_{name}" in history:
                axes.plot(epoch, history[f"val_{name}"], label=f"{label}validation", **style)
        axes.set_xlabel("epoch", fontsize=_FONT_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=_FONT_SIZE, frameon=False)
        axes.tick_params(labelsize=_FONT_SIZE)
        axes.margins(x=0.02)
    # The first epochs would squeeze all others into a line.
    settled = np.concatenate([history[name][len(epoch) // 20 :] for name in ("elbo", "val_elbo") if name in history])
    settled = settled[np.isfinite(settled)]
    if settled.size:
        margin = 0.05 * (np.ptp(settled) or 1.0)
        bound.set_ylim(settled.min() - margin, settled.max() + margin)
    bound.set_ylabel("ELBO (nats per image)", fontsize=_FONT_SIZE)
    bound.set_title("Bound", fontsize=_FONT_SIZE)
    shown = [
        np.max(history[f"{of}{name}"][len(epoch) // 20 :])
        for name in ("distortion", "rate")
        for of in ("", "val_")
        if f"{of}{name}" in history
    ]
    top = 1.05 * np.max(shown)
    parts.set_ylim(0, top if np.isfinite(top) else None)
    parts.set_ylabel("nats per image", fontsize=_FONT_SIZE)
    parts.set_title("ELBO = -(distortion + rate)", fontsize=_FONT_SIZE)
    figure.suptitle(title, **_TITLE)
    return figure


def image_table(
    images: np.ndarray,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    *,
    title: str = "",
    row_label: str = "",
    column_label: str = "",
    gap_after: int = 0,
) -> Figure:
    """Table of images with a name at each row and column.

    Args:
        images: `[rows, columns, height, width, channels]` float in [0, 1] or uint8; grey with 1 channel, RGB with 3.
        row_names: Names of the rows; empty for none.
        column_names: Names of the columns; empty for none.
        title: Title of the figure.
        row_label: What the rows are.
        column_label: What the columns are.
        gap_after: Number of columns after which to leave a gap; 0 for none.

    Returns:
        The figure, which a notebook shows.
    """
    images = images / np.float32(255) if images.dtype == np.uint8 else np.asarray(images, np.float32)
    row_names, column_names = _cut(row_names), _cut(column_names)
    rows, columns, height, width, channels = images.shape
    gap = max(1, round(0.08 * width))
    offsets = np.array(
        [column * (width + gap) + (3 * gap if gap_after and column >= gap_after else 0) for column in range(columns)]
    )
    canvas = np.ones((rows * (height + gap) - gap, offsets[-1] + width, channels), np.float32)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), offsets[column]
            canvas[top : top + height, left : left + width] = images[row, column]
    inches_per_pixel = _IMAGE_INCHES / max(height, width, 1)
    size = canvas.shape[1] * inches_per_pixel, canvas.shape[0] * inches_per_pixel
    named = [name for name in column_names if name]
    # Or they would run into each other. One that stands for several columns, those beside it being empty, has their
    # room, too.
    upright = any(len(name) * len(named) > _LONG_NAME * len(column_names) for name in named)
    room = _room(row_names), _room(column_names) if upright else 0
    figure = Figure(figsize=(max(size[0], 5.0) + 1.3 + room[0], size[1] + 1.1 + room[1]), layout="constrained")
    axes = figure.subplots()
    _show(axes, canvas)
    middle = np.arange(rows) * (height + gap) + height / 2
    axes.set_yticks(middle[: len(row_names)], row_names, fontsize=_FONT_SIZE, **_GIVEN)
    axes.set_xticks((offsets + width / 2)[: len(column_names)], column_names, fontsize=_FONT_SIZE - 2, **_GIVEN)
    if upright:
        axes.tick_params(axis="x", rotation=90)
    axes.set_ylabel(row_label, fontsize=_FONT_SIZE)
    axes.set_xlabel(column_label, fontsize=_FONT_SIZE)
    if title:
        axes.set_title(title, fontsize=_FONT_SIZE + 1, pad=12, **_GIVEN)
    if any(room):
        # The first layout does not know yet how far the images come to be from the names.
        figure.draw_without_rendering()
    return figure


def _cut(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..." for name in names]


def _room(names: Sequence[str]) -> float:
    """Inches that the longest name takes beyond those of a short one, so that it takes none from the images."""
    return _INCHES_PER_LETTER * max(0, max(map(len, names), default=0) - _LONG_NAME)


def _show(axes: Axes, canvas: np.ndarray) -> None:
    if canvas.shape[-1] in (3, 4):
        axes.imshow(canvas, interpolation="nearest")
    else:
        axes.imshow(canvas.mean(axis=-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def calibration(reliability: np.ndarray, selective_accuracy: np.ndarray, title: str) -> Figure:
    """Reliability diagram, and accuracy on the images that are classified with the greatest confidence.

    Args:
        reliability: Mean confidence, accuracy and number of images of each bin, `[bins, 3]`.
        selective_accuracy: Rows of the share of the images that is classified, and the accuracy on them, `[s, 2]`.
        title: Title of the figure.

    Returns:
        The figure, which a notebook shows.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    confidence, accuracy, count = np.asarray(reliability).T
    left.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    left.plot(confidence, accuracy, color="C0", marker="o", label="model", clip_on=False)
    for x, y, number in zip(confidence, accuracy, count, strict=True):
        # Below the point, but not over the axis.
        place = (6, -12 if y > 0.08 else 5)
        left.annotate(f"{number:,.0f}", (x, y), textcoords="offset points", xytext=place, fontsize=_FONT_SIZE - 4)
    left.set(xlim=(0, 1.14), ylim=(0, 1.05))
    left.set_xlabel("confidence, max over y of p(y|x)", fontsize=_FONT_SIZE)
    left.set_ylabel("accuracy", fontsize=_FONT_SIZE)
    left.set_title("Reliability (number of images at each point)", fontsize=_FONT_SIZE)
    left.legend(fontsize=_FONT_SIZE, frameon=False, loc="upper left")
    share, selected = np.asarray(selective_accuracy).T
    right.plot(100 * share, 100 * (1 - selected), color="C2", marker="o", clip_on=False)
    right.set_ylim(bottom=0)
    right.set_xlabel("share of the images that is classified, the surest first (%)", fontsize=_FONT_SIZE)
    right.set_ylabel("error (%)", fontsize=_FONT_SIZE)
    right.set_title("Selective classification", fontsize=_FONT_SIZE)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=_FONT_SIZE)
    figure.suptitle(title, **_TITLE)
    return figure


def class_tables(confusion: np.ndarray, elbo_by_label: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Confusion matrix, and the bound of each class under each label.

    Args:
        confusion: Number of images by true class (row) and class found (column), `[c, c]`.
        elbo_by_label: Mean ELBO by true class (row) and label given (column), `[c, c]`, nats per image.
        class_names: Names of the classes.
        title: Title of the figure.

    Returns:
        The figure, which a notebook shows.
    """
    class_names = _cut(class_names)
    named = len(class_names) <= 40
    side, room = min(12.0, 2.5 + 0.42 * len(class_names)), _room(class_names) if named else 0
    figure = Figure(figsize=(2 * (side + room) + 1, side + room), layout="constrained")
    left, right = figure.subplots(1, 2)
    confusion, elbo_by_label = np.asarray(confusion), np.asarray(elbo_by_label)
    # The errors are what one wants to see: the right ones would take the whole scale.
    errors = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    left.imshow(errors, cmap="Reds", vmax=2 * max(1, errors.max()))
    if len(class_names) <= 20:
        for row, column in np.argwhere(confusion):
            left.text(column, row, confusion[row, column], ha="center", va="center", fontsize=_FONT_SIZE - 4)
    left.set_xlabel("class found", fontsize=_FONT_SIZE)
    left.set_title("Confusion (images; errors in red)", fontsize=_FONT_SIZE)
    shown = right.imshow(elbo_by_label, cmap="viridis")
    figure.colorbar(shown, ax=right, shrink=0.85)
    right.set_xlabel("label given", fontsize=_FONT_SIZE)
    right.set_title("Mean ELBO (nats per image)", fontsize=_FONT_SIZE)
    for axes in (left, right):
        axes.set_ylabel("true class", fontsize=_FONT_SIZE)
        if named:
            rotation = 90 if max(map(len, class_names)) > 3 else 0
            style = {"fontsize": _FONT_SIZE - 3, **_GIVEN}
            axes.set_xticks(range(len(class_names)), class_names, rotation=rotation, **style)
            axes.set_yticks(range(len(class_names)), class_names, **style)
    figure.suptitle(title, **_TITLE)
    return figure


def latent(variance_of_means: np.ndarray, rate_per_dimension: np.ndarray | None, title: str) -> Figure:
    """How much each latent dimension is used, the most used first.

    Args:
        variance_of_means: Of `results.LatentUse`, `[latent_size]`.
        rate_per_dimension: Mean KL of each dimension in nats, `[latent_size]`, or None.
        title: Title of the figure.

    Returns:
        The figure, which a notebook shows.
    """
    panels = [("Variance of the posterior mean", np.asarray(variance_of_means))]
    if rate_per_dimension is not None:
        panels.append(("Rate (nats per image)", np.asarray(rate_per_dimension)))
    figure = Figure(figsize=(6 * len(panels), 4.2), layout="constrained")
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        axes.bar(np.arange(1, len(values) + 1), np.sort(values)[::-1], color="C0", width=0.8)
        if values is panels[0][1]:
            axes.axhline(ACTIVE_VARIANCE, color="C2", linestyle="--", label="above it: active")
            axes.set_yscale("log")
            axes.legend(fontsize=_FONT_SIZE, frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0.4, len(values) + 0.6)
        axes.set_xlabel("latent dimension, in order of the value", fontsize=_FONT_SIZE)
        axes.set_title(name, fontsize=_FONT_SIZE)
        axes.tick_params(labelsize=_FONT_SIZE)
    figure.suptitle(title, **_TITLE)
    return figure
