"""What a number is a number of: held-out images, their binarization, versions. Imports no TensorFlow."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from tfp_cvae.config import HELD_OUT_SEED, Binarization

if TYPE_CHECKING:
    from tfp_cvae.data import Dataset


def binarization_note(binarization: Binarization, seed: int) -> str:
    """What held-out images were on which a number was measured."""
    return {
        "dynamic": f"binarized once, seed {seed}",
        "threshold": "binarized at 128",
        "none": "grey, so not comparable with bounds on binary images",
    }[binarization]


def held_out_protocol(
    dataset: "Dataset", binarization: Binarization, num_images: int, num_samples: int
) -> dict[str, Any]:
    """What numbers on test images are numbers of: the `protocol` in `evaluation.json`."""
    return {
        "unit": "nats per image",
        "dataset": dataset.name,
        "split": "test",
        "num_images": num_images,
        "num_samples": num_samples,
        "binarization": binarization,
        "binarization_seed": HELD_OUT_SEED,
        "comparable": binarization != "none",
    }


def versions() -> dict[str, str]:
    """Versions of this package and of those that its results depend on."""
    names = ("tfp-cvae", "tensorflow", "tf-keras", "tensorflow-probability", "numpy", "scikit-learn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
