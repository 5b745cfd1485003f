"""What a trained model is worth on held-out images."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_cvae import objectives
from tfp_cvae.model import CVAE


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over images and its standard error.

    Attributes:
        mean: Mean.
        standard_error: Standard deviation over the images divided by the square root of their number.
    """

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """Estimate of the mean of independent values `[n]`, n >= 1."""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values, dtype=np.float64)), spread / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.standard_error:.2f}"


@dataclasses.dataclass(frozen=True)
class Bound:
    """Lower bound on held-out images, in nats per image.

    Attributes:
        elbo: ELBO, -distortion - rate.
        rate: KL(q(z|x,y) || p(z|y)).
        distortion: -E_q[log p(x|z,y)].
        num_images: Number n of images.
        num_samples: Latent samples K for each image.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    num_images: int
    num_samples: int


def evaluate_bound(cvae: CVAE, batches: Iterable[Any]) -> Bound:
    """Measures ELBO, rate and distortion, with the model's own number of latent samples.

    Args:
        cvae: The model.
        batches: Batches `((image, one_hot), image)` or `(image, image)`, as of `Split.batches`.

    Returns:
        The bound, with standard errors over the images.
    """

    @tf.function
    def rate_and_distortion(inputs: Any, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        output = cvae(inputs, training=False)
        return objectives.rate(output), objectives.distortion(image, output)

    values = [[part.numpy() for part in rate_and_distortion(*batch)] for batch in batches]
    rate, distortion = (np.concatenate(parts) for parts in zip(*values, strict=True))
    return Bound(
        Estimate.of(-distortion - rate), Estimate.of(rate), Estimate.of(distortion), len(rate), cvae.num_samples
    )
