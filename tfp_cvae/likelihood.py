"""log p(x|y) of images under every label: what log p(x) and classification by Bayes' rule are made of."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import array_checks, checks
from tfp_cvae.distribution import rows_of_worker
from tfp_cvae.importance import SAMPLES_PER_BLOCK, ImportanceEstimate, importance_estimate
from tfp_cvae.model import CVAE

_FIELDS = [field.name for field in dataclasses.fields(ImportanceEstimate)]


@dataclasses.dataclass(frozen=True, eq=False)
class Likelihood(ImportanceEstimate):
    """Estimates for n images under each of C labels, `[n, C]`; C = 1 without classes.

    Attributes:
        blind: `log_likelihood`, made without the true label; it is what classification uses. The two differ only where
            the true label is unlikely.
        decoded: Number of latents that were decoded and weighed for these estimates.
    """

    blind: np.ndarray
    decoded: int


def likelihood_under_each_label(
    cvae: CVAE,
    image: np.ndarray,
    label: np.ndarray | None = None,
    *,
    num_samples: int = 5000,
    label_margin: float = 20.0,
    log_class_probabilities: np.ndarray | None = None,
    seed: int = 0,
    jit_compile: bool = False,
    verbose: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> Likelihood:
    """Estimates log p(x|y) of each image under every label.

    Every label gets the first block of samples. Those whose log p(x|y) + log p(y) is within `label_margin` nats of the
    best get all samples, the first among them; the others keep their first estimate, a lower bound in expectation. With
    one class or none, all samples are drawn at once.

    Args:
        cvae: The model.
        image: `[n, height, width, channels]` float, in {0, 1}.
        label: True class, `[n]` integer, which gets all samples however unlikely; None for unlabelled images.
        num_samples: Importance samples K, >= 1.
        label_margin: Nats below the best label at which a label gets no further samples, >= 0.
        log_class_probabilities: log p(y), `[num_classes]` float; None for equal ones.
        seed: Seed of the samples.
        jit_compile: Whether to compile with XLA.
        verbose: As for `fit`: 1 shows a progress bar, 2 a line.
        strategy: As of `importance_estimate`.

    Returns:
        The estimates, each `[n, max(1, num_classes)]`.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value or shape is out of range, or the model gives numbers that are not finite.
    """
    image = array_checks.images("image", image, cvae.image_shape)
    if not len(image):
        raise ValueError("image: expected at least one, got none")
    checks.number("label_margin", label_margin, 0)
    if log_class_probabilities is not None:
        log_class_probabilities = array_checks.log_probabilities(
            "log_class_probabilities", log_class_probabilities, cvae.num_classes
        )
    size, classes = len(image), max(1, cvae.num_classes)
    if label is not None:
        cvae.one_hot(label, size)

    def weigh(look: str, pairs: np.ndarray, num_samples: int) -> ImportanceEstimate:
        return importance_estimate(
            cvae,
            image,
            pairs % classes if cvae.num_classes else None,
            index=pairs // classes,
            num_samples=num_samples,
            seed=seed,
            jit_compile=jit_compile,
            progress=_progress_bar(look, len(rows_of_worker(len(pairs), strategy)), num_samples, verbose),
            strategy=strategy,
        )

    # Where there is one label at most, there is none to leave out.
    first_samples = min(num_samples, SAMPLES_PER_BLOCK) if classes > 1 else num_samples
    look = "a first look at every label: {:,} pairs of image and label" if classes > 1 else "log p(x) of {:,} images"
    first = weigh(look, np.arange(size * classes), first_samples)
    decoded = int(first.num_samples.sum())
    found = {name: getattr(first, name).reshape(size, classes) for name in _FIELDS}
    blind = found["log_likelihood"].copy()
    if num_samples > first_samples:
        log_joint = blind if log_class_probabilities is None else blind + log_class_probabilities
        likely = log_joint >= log_joint.max(axis=1, keepdims=True) - label_margin
        again = likely.copy()
        if label is not None:
            again[np.arange(size), label] = True
        final = weigh("the likely labels: {:,} pairs of image and label", np.flatnonzero(again), num_samples)
        decoded += int(final.num_samples.sum())
        for name in _FIELDS:
            found[name][again] = getattr(final, name)
        blind[likely] = found["log_likelihood"][likely]
    return Likelihood(**found, blind=blind, decoded=decoded)


def _progress_bar(look: str, count: int, num_samples: int, verbose: int) -> Callable[[int], None] | None:
    if verbose:
        print(f"{look.format(count)}, K = {num_samples:,}", flush=True)
    return keras.utils.Progbar(count * num_samples, unit_name="latent").add if verbose == 1 else None
