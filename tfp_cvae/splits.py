"""Which images go into which split, and which of them keep a label. Pure NumPy."""

from collections.abc import Sequence

import numpy as np

from tfp_cvae import checks

# Label of an image that has none.
UNLABELLED = -1


def few_labels(
    all_labels: np.ndarray, class_names: Sequence[str], num_labels: int, seed: int, for_validation: int
) -> np.ndarray:
    """Keeps `num_labels` labels, the same number of each class, and sets the others to -1.

    Images are gone through in an order that is a function of the seed, until each class has its share.

    Args:
        all_labels: `[n]` integer, in [0, len(class_names)), or -1 for none.
        class_names: Name of each class.
        num_labels: Number of labels to leave.
        seed: Seed of the order.
        for_validation: Number of images without label that become the validation split.

    Returns:
        `[n]`, -1 where none is left.

    Raises:
        TypeError: If a value is not an integer.
        ValueError: If `num_labels` is no multiple of the number of classes, there are not as many images, or none
            without label would be left for training.
    """
    checks.integer("num_labels", num_labels, 1)
    checks.seed("seed", seed)
    share, rest = divmod(num_labels, len(class_names))
    if rest:
        raise ValueError(
            f"num_labels: expected a multiple of {len(class_names)}, the same number of each class, got {num_labels}"
        )
    missing = np.full(len(class_names), share)
    labels = np.full_like(all_labels, UNLABELLED)
    for index in np.random.default_rng(seed).permutation(len(labels)):
        if not missing.any():
            break
        label = all_labels[index]
        if label != UNLABELLED and missing[label]:
            labels[index] = label
            missing[label] -= 1
    if missing.any():
        scarce = int(np.argmax(missing))
        found = share - missing[scarce]
        raise ValueError(
            f"num_labels: expected at most {found * len(class_names)}, as there are {found} training images with "
            f"the label {class_names[scarce]}, got {num_labels}"
        )
    most = (len(labels) - for_validation - 1) // len(class_names) * len(class_names)
    if num_labels > most:
        left = f"{for_validation} for validation and one" if for_validation else "one"
        raise ValueError(
            f"num_labels: expected at most {most}, so that of {len(labels)} training images {left} for training have "
            f"no label, got {num_labels}; lower it, or leave it out to learn from all labels"
        )
    return labels


def split_off(name: str, labels: np.ndarray, size: int) -> np.ndarray:
    """Chooses images to split off: of each class its share, or of those without label, if any; always the same ones.

    Args:
        name: Name of the data set, for messages.
        labels: `[n]` integer, of the images.
        size: Number of images to split off.

    Returns:
        Which are split off, `[n]` bool.

    Raises:
        ValueError: If `size` is 0.
    """
    if size == 0:
        raise ValueError(
            f"{name}: expected at least 6 images to split off a tenth for validation or test, got {len(labels)} that "
            "are in no other split; add images, or give the splits yourself in an .npz"
        )
    pool = labels == UNLABELLED if np.any(labels == UNLABELLED) else np.full(len(labels), True)
    size = min(size, int(pool.sum()))
    # A share of each class, rounded so that they make up the size.
    classes, counts = np.unique(labels[pool], return_counts=True)
    share = size * counts / pool.sum()
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    generator = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for label, count in zip(classes, quota, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    return chosen
