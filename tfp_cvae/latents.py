"""What the latent carries: active units, rate of each dimension, and what a linear probe reads of the class."""

import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tfp_cvae import objectives
from tfp_cvae.config import Binarization
from tfp_cvae.data import Split
from tfp_cvae.model import CVAE, CVAEOutput, standard_normal

_BATCH_SIZE = 500
_ACTIVE = 0.01
_PROBE_IMAGES = 10_000


def active_units(mean: np.ndarray) -> int:
    """Number of latent dimensions with Var_x(E_q[z_j|x,y]) > 0.01 (Burda et al. 2015, section 4.2).

    Args:
        mean: Posterior means, `[n, latent_size]`.
    """
    return int(np.sum(np.var(mean, axis=0) > _ACTIVE))


def posterior_statistics(
    cvae: CVAE, image: np.ndarray, label: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Means, samples in the space of the prior's noise, and rate of each dimension.

    The sample is z ~ q(z|x,y) mapped back through the prior: e with z = f_y(e), where p(z|y) is the image of N(0, I)
    under f_y. If the posteriors of each class fill the prior, then e is N(0, I) for every class.

    Args:
        cvae: The model.
        image: `[n, height, width, channels]` float32, in [0, 1].
        label: `[n]` integer; None without classes.

    Returns:
        Posterior means `[n, latent_size]`; samples `[n, latent_size]`, each a function of its image; and the rate
        `[n, latent_size]` in nats per image, or None if the prior is not diagonal.
    """
    one_hot = cvae.one_hot(label, len(image))
    parts = []
    for start in range(0, len(image), _BATCH_SIZE):
        images = tf.constant(image[start : start + _BATCH_SIZE])
        labels = None if one_hot is None else one_hot[start : start + _BATCH_SIZE]
        posterior, prior = cvae.posterior(images, labels), cvae.prior(labels)
        noise = standard_normal(cvae.image_seed(images), [cvae.latent_size])
        latent = posterior.mean() + posterior.stddev() * noise
        output = CVAEOutput(posterior, prior, latent[tf.newaxis], None)
        part = [posterior.mean(), prior.bijector.inverse(latent)]
        if objectives.exact_rate(output) is not None:
            part.append(objectives.rate_per_dimension(output))
        parts.append([tensor.numpy() for tensor in part])
    mean, noise, *rate = (np.concatenate(part) for part in zip(*parts, strict=True))
    return mean, noise, (rate[0] if rate else None)


def linear_probe(cvae: CVAE, train: Split, test: Split, binarization: Binarization, seed: int = 0) -> np.ndarray:
    """Whether logistic regression finds the class of each test image in its latent sample.

    The samples are those of `posterior_statistics`, in which a prior that depends on the label does not show. A latent
    that carries style alone leaves the probe at chance, the share of the most frequent class.

    Args:
        cvae: A model with classes.
        train: Split to fit the probe on; at most 10,000 of its images.
        test: Split to measure it on.
        binarization: As of the model's training.
        seed: Seed of the choice of the training images.

    Returns:
        `[n]` bool, for each test image.
    """
    chosen = np.random.default_rng(seed).permutation(len(train))[:_PROBE_IMAGES]
    features = [
        posterior_statistics(cvae, images, labels)[1]
        for images, labels in (
            (train.binarized(binarization)[chosen], train.labels[chosen]),
            (test.binarized(binarization), test.labels),
        )
    ]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features[0], train.labels[chosen])
    return probe.predict(features[1]) == test.labels
