"""Checks of arrays that a user gives, as `checks` has those of settings."""

from typing import Any

import numpy as np

from tfp_cvae import on_disk
from tfp_cvae.archive import one_line
from tfp_cvae.checks import shown

# By how much the sum of a row of probabilities may differ from 1.
SUM_TOLERANCE = 1e-3
# Kinds of dtypes: objects, text, times and complex numbers.
_NOT_NUMBERS = "OSUMmc"


def array(name: str, value: Any, dtype: type | None = None) -> np.ndarray:
    """Returns what NumPy makes an array of, else raises ValueError, or TypeError for a tensor of a graph."""
    try:
        return np.asarray(value, dtype)
    except NotImplementedError as error:
        raise TypeError(
            f"{name}: expected numbers, got a symbolic tensor; call this outside of tf.function, in which tf.one_hot "
            "and the posterior, prior and likelihood of a model take tensors"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected an array, or lists of the same length in lists, got none that NumPy takes: "
            f"{one_line(error)}"
        ) from error


def integers(name: str, value: Any) -> np.ndarray:
    """Returns an integer or a list of integers as int64, of shape `[]` or `[n]`, n >= 1."""
    given = array(name, value)
    if not np.issubdtype(given.dtype, np.integer):
        raise TypeError(f"{name}: expected an integer or a list of integers, got {shown(value)}")
    if given.ndim > 1 or given.size == 0:
        raise ValueError(f"{name}: expected an integer or [n] integers, n >= 1, got shape {list(given.shape)}")
    if int(given.max()) >= 2**63:
        raise ValueError(f"{name}: expected integers < 2**63, got {given.max()}")
    return given.astype(np.int64)


def labels(name: str, value: np.ndarray, num_classes: int) -> None:
    """Checks that labels are in [0, num_classes)."""
    low, high = value.min(), value.max()
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name}: expected 0 to {num_classes - 1}, got {high if high >= num_classes else low}")


def form(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Checks that what NumPy makes an array of is numbers `[n, *shape]`."""
    given = array(name, value)
    if given.dtype.kind in _NOT_NUMBERS:
        raise TypeError(f"{name}: expected numbers, got dtype {given.dtype}")
    if given.shape[1:] != shape or given.ndim != len(shape) + 1:
        hint = "; batch it" if given.shape == shape else ""
        hint = "; cvae.one_hot(label, n) makes one-hot rows" if name == "one_hot" else hint
        raise ValueError(f"{name}: expected shape [n, {', '.join(map(str, shape))}], got {list(given.shape)}{hint}")


def unit_interval(name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    """Checks that an array is `[n, *shape]`, finite and in [0, 1]."""
    form(name, value, shape)
    if value.size and not (value.min() >= 0 and value.max() <= 1):
        low, high = value.min(), value.max()
        hint = "; give one-hot rows" if name == "one_hot" else _hint(high)
        raise ValueError(f"{name}: expected values in [0, 1], got {low} to {high}{hint}")


def images(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns images as `[n, *shape]` float32, if they are finite and in [0, 1]."""
    given = array(name, value, np.float32)
    unit_interval(name, given, shape)
    return given


def finite(name: str, value: Any, size: int) -> np.ndarray:
    """Returns an array as float32 if it is `[n, size]` and finite."""
    given = array(name, value, np.float32)
    if given.ndim != 2 or given.shape[1] != size:
        raise ValueError(f"{name}: expected shape [n, {size}], got {list(given.shape)}")
    if not np.all(np.isfinite(given)):
        raise ValueError(f"{name}: expected finite numbers, got {given[~np.isfinite(given)][0]}")
    return given


def sample_weight(value: Any) -> None:
    """Checks that weights of images are finite and >= 0."""
    given = array("sample_weight", value)
    if given.dtype.kind in _NOT_NUMBERS:
        raise TypeError(f"sample_weight: expected numbers, got dtype {given.dtype}")
    given = given.astype(np.float32)
    good = np.isfinite(given) & (given >= 0)
    if not np.all(good):
        raise ValueError(f"sample_weight: expected finite numbers >= 0, got {given[~good][0]}")


def sum_to_one(name: str, value: np.ndarray) -> None:
    """Checks that each row is one-hot, or a mixture of classes."""
    sums = value.sum(axis=-1)
    if not np.all(np.abs(sums - 1) < SUM_TOLERANCE):
        row = int(np.argmax(np.abs(sums - 1)))
        raise ValueError(f"{name}: expected rows that sum to 1 (one-hot, or a mixture), got {sums[row]} in row {row}")


def probabilities(name: str, value: Any, size: int) -> np.ndarray:
    """Returns `size` numbers >= 0, not all 0, as float64 that sum to 1."""
    if size == 0:
        raise ValueError(f"{name}: expected None for a model without classes, got {shown(value)}")
    given = _numbers(name, value, size)
    if given.shape != (size,) or not (np.all(given >= 0) and 0 < given.sum() < np.inf):
        raise ValueError(f"{name}: expected {size} numbers >= 0, not all 0, got {shown(value)}")
    return given / given.sum()


def log_probabilities(name: str, value: Any, size: int) -> np.ndarray:
    """Returns the logarithms of `size` probabilities, which sum to 1, as float64."""
    given = _numbers(name, value, size)
    if given.shape != (size,) or not abs(np.logaddexp.reduce(given)) < SUM_TOLERANCE:
        raise ValueError(
            f"{name}: expected the logarithms of {size} probabilities, which sum to 1, got {shown(value)}; pass "
            "np.log(probabilities)"
        )
    return given


def _numbers(name: str, value: Any, size: int) -> np.ndarray:
    given = array(name, value)
    if not np.issubdtype(given.dtype, np.number):
        raise TypeError(f"{name}: expected {size} numbers, got {shown(value)}")
    return given.astype(np.float64)


def one_hot_or_zero(name: str, value: np.ndarray) -> None:
    """Checks that each row is one-hot, or zero, for no label."""
    good = np.all((value == 0) | (value == 1), axis=-1) & (value.sum(axis=-1) <= 1)
    if not np.all(good):
        raise ValueError(
            f"{name}: expected rows that are one-hot, or 0 for no label, got another in row {int(np.argmin(good))}; "
            "give 0 where a label is not certain"
        )


def pixels(name: str, value: Any) -> on_disk.Images:
    """Returns images as `[n, height, width, channels]` uint8; a memory map of uint8 is not read, but rows on disk.

    Taken are integers in [0, 255], floats in [0, 1] and bool, with or without the axis of channels.
    """
    without_mask(name, value)
    images = value if on_disk.stays_on_disk(value) else array(name, value)
    if images.ndim not in (3, 4):
        expected = "[n, height, width] or [n, height, width, channels]"
        raise ValueError(f"{name}: expected shape {expected}, got {list(images.shape)}")
    if images.size == 0:
        raise ValueError(f"{name}: expected at least one image and one pixel, got shape {list(images.shape)}")
    images = images[..., np.newaxis] if images.ndim == 3 else images
    if images.dtype == bool:
        return images * np.uint8(255)
    if isinstance(images, np.memmap):
        low, high = 0, on_disk.highest(images, enough=2)
    else:
        low, high = (images.min(), images.max()) if np.issubdtype(images.dtype, np.number) else (0, 0)
    if np.issubdtype(images.dtype, np.integer):
        if low < 0 or high > 255:
            raise ValueError(f"{name}: expected integers in [0, 255], got {low} to {high}")
        if high == 1:
            raise ValueError(f"{name}: expected integers in [0, 255], got only 0 and 1; give binary images as bool")
        return on_disk.RowsOnDisk(images) if isinstance(images, np.memmap) else images.astype(np.uint8)
    if np.issubdtype(images.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name}: expected floats in [0, 1], got {low} to {high}{_hint(high)}")
        return np.round(images * 255).astype(np.uint8)
    raise TypeError(f"{name}: expected integers in [0, 255], floats in [0, 1] or bool, got dtype {images.dtype}")


def without_mask(name: str, value: Any) -> None:
    """Raises ValueError for a masked array, of which what is masked would be used."""
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name}: expected no masked values, got {np.ma.count_masked(value):,}; fill or leave them out"
        )


def _hint(high: float) -> str:
    """What to do about images whose highest value is this one."""
    return "; divide grey values by 255" if high > 1 else ""
