"""What the latent carries: active units, rate of each dimension, and what a linear probe reads of the class."""

import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tfp_cvae import objectives
from tfp_cvae.model import CVAE
from tfp_cvae.noise import standard_normal

_BATCH_SIZE = 500


def variance_of_means(mean: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """Variance over the images of each dimension of the posterior mean; of labelled images, within the classes.

    What differs between the classes alone tells nothing of the image. An estimate without bias; 0 if there is no more
    than one image of each class.

    Args:
        mean: Posterior means as the prior sees them (`posterior_statistics`), `[n, latent_size]`.
        label: Classes, `[n]` integer; None without classes.

    Returns:
        `[latent_size]` float64.
    """
    centred = np.array(mean, np.float64)
    groups = [slice(None)] if label is None else [label == number for number in np.unique(label)]
    for group in groups:
        centred[group] -= centred[group].mean(axis=0)
    return np.sum(centred**2, axis=0) / max(1, len(mean) - len(groups))


def posterior_statistics(
    cvae: CVAE, image: np.ndarray, label: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Means and samples in the space of the prior's noise, and rate of each dimension.

    Both are mapped back through the prior: e with z = f_y(e), where p(z|y) is the image of N(0, I) under f_y. If the
    posteriors of each class fill the prior, then the e of z ~ q(z|x,y) is N(0, I) for every class. Place and scale of z
    itself are free where the prior is learned.

    Args:
        cvae: The model.
        image: `[n, height, width, channels]` float32, in [0, 1].
        label: `[n]` integer; None without classes.

    Returns:
        The e of E_q(z|x,y)[z], `[n, latent_size]`; samples `[n, latent_size]`, each a function of its image; and the
        rate `[n, latent_size]` in nats per image, or None if the prior is not diagonal.
    """
    one_hot = cvae.one_hot(label, len(image))
    parts = []
    for start in range(0, len(image), _BATCH_SIZE):
        images = tf.constant(image[start : start + _BATCH_SIZE])
        labels = None if one_hot is None else one_hot[start : start + _BATCH_SIZE]
        posterior, prior = cvae.posterior(images, labels), cvae.prior(labels)
        noise = standard_normal(cvae.image_seed(images), [cvae.latent_size])
        latent = posterior.mean() + posterior.stddev() * noise
        part = [prior.bijector.inverse(posterior.mean()), prior.bijector.inverse(latent)]
        rate = objectives.diagonal_rate(posterior, prior)
        parts.append([tensor.numpy() for tensor in [*part, *([] if rate is None else [rate])]])
    mean, noise, *rate = (np.concatenate(part) for part in zip(*parts, strict=True))
    return mean, noise, (rate[0] if rate else None)


def posterior_mean(cvae: CVAE, image: np.ndarray) -> np.ndarray:
    """Means of q(z|x) of a model without classes: `[n, latent_size]` for `[n, height, width, channels]` in [0, 1]."""
    parts = np.split(np.asarray(image, np.float32), range(_BATCH_SIZE, len(image), _BATCH_SIZE))
    return np.concatenate([cvae.posterior(part).mean().numpy() for part in parts])


def linear_probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether logistic regression finds the class of each test image in its latent.

    Args:
        train: Latents `[m, latent_size]` and their labels `[m]`, of at least two classes, to fit the probe on.
        test: Latents `[n, latent_size]` and their labels `[n]`, to measure it on.

    Returns:
        `[n]` bool. A latent that carries style alone leaves the probe at chance, the share of the most frequent class.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(*train)
    return probe.predict(test[0]) == test[1]
