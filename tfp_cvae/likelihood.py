"""log p(x|y) of images under every label: what log p(x) and classification by Bayes' rule are made of."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tf_keras as keras

from tfp_cvae.importance import SAMPLES_PER_BLOCK, ImportanceEstimate, importance_estimate
from tfp_cvae.model import CVAE

# A label whose first estimate is this many nats below the best is not looked at again: its share of p(x) is e^-20.
LABEL_MARGIN = 20.0


@dataclasses.dataclass(frozen=True, eq=False)
class Likelihood:
    """Estimates for n images under each of C labels; C = 1 without classes.

    Attributes:
        log_likelihood: log p(x|y), `[n, C]` float64, nats.
        effective_sample_size: `[n, C]` float64.
        rate: `[n, C]` float64, nats.
        distortion: `[n, C]` float64, nats.
        num_samples: Samples K of each estimate, `[n, C]` int64.
    """

    log_likelihood: np.ndarray
    effective_sample_size: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    num_samples: np.ndarray

    @property
    def elbo(self) -> np.ndarray:
        """Evidence lower bound -distortion - rate, `[n, C]` float64, nats."""
        return -self.distortion - self.rate

    @property
    def decoded(self) -> int:
        """Number of latents that were decoded and weighed for these estimates."""
        again = self.num_samples > SAMPLES_PER_BLOCK
        return int(self.num_samples.sum() + SAMPLES_PER_BLOCK * again.sum())


def likelihood_under_each_label(
    cvae: CVAE,
    image: np.ndarray,
    label: np.ndarray | None,
    *,
    num_samples: int = 5000,
    seed: int = 0,
    jit_compile: bool = False,
    verbose: int = 0,
) -> Likelihood:
    """Estimates log p(x|y) of each image under every label.

    The first block of samples is weighed under every label; then all samples, the first among them, under the true
    label and under those within `LABEL_MARGIN` nats of the best.

    Args:
        cvae: The model.
        image: `[n, height, width, channels]` float, in {0, 1}.
        label: True class, `[n]` integer; None without classes.
        num_samples: Importance samples K, >= 1.
        seed: Seed of the samples.
        jit_compile: Whether to compile with XLA.
        verbose: 1 shows a progress bar.
    """
    size, classes = len(image), max(1, cvae.num_classes)

    def weigh(name: str, pairs: np.ndarray, num_samples: int) -> ImportanceEstimate:
        return importance_estimate(
            cvae,
            image[pairs // classes],
            None if label is None else pairs % classes,
            num_samples=num_samples,
            seed=seed,
            jit_compile=jit_compile,
            progress=_progress_bar(name, len(pairs), num_samples) if verbose else None,
        )

    first_samples = min(num_samples, SAMPLES_PER_BLOCK)
    first = weigh(f"every label, K = {first_samples}", np.arange(size * classes), first_samples)
    names = ("log_likelihood", "effective_sample_size", "rate", "distortion")
    found = {name: getattr(first, name).copy() for name in names}
    used = np.full(size * classes, first_samples)
    if num_samples > first_samples:
        table = first.log_likelihood.reshape(size, classes)
        again = table > table.max(axis=1, keepdims=True) - LABEL_MARGIN
        if label is not None:
            again[np.arange(size), label] = True
        pairs = np.flatnonzero(again)
        final = weigh(f"likely labels, K = {num_samples}", pairs, num_samples)
        for name in names:
            found[name][pairs] = getattr(final, name)
        used[pairs] = num_samples
    arrays = {name: array.reshape(size, classes) for name, array in found.items()}
    return Likelihood(**arrays, num_samples=used.reshape(size, classes))


def _progress_bar(name: str, pairs: int, num_samples: int) -> Callable[[int], None]:
    print(f"{name}: {pairs:,} images x labels", flush=True)
    bar = keras.utils.Progbar(pairs * num_samples, unit_name="latent")
    return lambda decoded: bar.add(decoded)
