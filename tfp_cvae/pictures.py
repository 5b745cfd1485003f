"""Picture files, written whole. Imports no TensorFlow."""

import functools
import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfp_cvae import checks, plotting
from tfp_cvae.atomic import write_atomically

_DPI = 150
_COLUMNS = 8
# 125 rows of some 100 pixels; WebP, which has the smallest pictures of all formats, ends at 16,383.
_MOST_SAMPLES = 1000


def check_samples(count: int, seed: int, path: pathlib.Path) -> None:
    """Raises if `save_samples` could not write that many images, before they are made.

    Args:
        count: Number of images, 1 to 1,000.
        seed: Seed of the first of them, in [0, 2**31).
        path: Picture to write.

    Raises:
        FileNotFoundError: If there is no folder for it.
        TypeError: If count or seed is not an integer.
        ValueError: If count or seed is out of range, or the format of the picture is not known.
    """
    checks.integer("count", count, 1)
    if count > _MOST_SAMPLES:
        raise ValueError(
            f"count: expected at most {_MOST_SAMPLES:,} images in a picture, got {count:,}; ask for the others with "
            "another seed (--seed)"
        )
    checks.seed("seed", seed)
    # Without that which needs LaTeX.
    formats = [name for name in FigureCanvasAgg.get_supported_filetypes() if name != "pgf"]
    if path.suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"output: expected a picture format as suffix ({', '.join(formats)}), got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: expected a file in an existing folder, got no folder {str(path.parent)!r}")


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure."""
    write_atomically(path, functools.partial(figure.savefig, dpi=_DPI, bbox_inches="tight"))


def seeds(first: int, count: int) -> str:
    """The seeds of generated images, for a title."""
    return f"seeds {first} to {first + count - 1}" if count > 1 else f"seed {first}"


def save_samples(images: np.ndarray, title: str, path: pathlib.Path) -> None:
    """Writes images as one picture, eight in a row.

    Args:
        images: `[n, height, width, channels]` float, in [0, 1].
        title: Title of the picture.
        path: File to write.
    """
    columns = min(len(images), _COLUMNS)
    blank = np.ones((-len(images) % columns, *images.shape[1:]), np.float32)
    table = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    save(plotting.image_table(table, title=title), path)
