"""The bound of a model on held-out images."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_cvae import array_checks, objectives
from tfp_cvae.batch_checks import TARGET
from tfp_cvae.layers import clear_bijector_cache
from tfp_cvae.model import CVAE
from tfp_cvae.outputs import CVAEOutput
from tfp_cvae.results import Estimate


@dataclasses.dataclass(frozen=True)
class Bound:
    """Lower bound on held-out images, in nats per image.

    Attributes:
        elbo: ELBO, -distortion - rate; the expectation is the mean over the latent samples.
        rate: KL(q(z|x,y) || p(z|y)).
        distortion: -E_q[log p(x|z,y)].
        iwae: Importance-weighted bound with the K samples; None with one sample, where it is another ELBO.
        num_images: Number n of images.
        num_samples: Latent samples K for each image.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    iwae: Estimate | None
    num_images: int
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """The estimates as a plain dictionary for JSON, NaN as None."""
        return {name: value.to_dict() for name, value in vars(self).items() if isinstance(value, Estimate)}


def evaluate_bound(cvae: CVAE, batches: Iterable[Any]) -> Bound:
    """Measures ELBO, rate, distortion and IWAE bound, with the model's own number of latent samples.

    Args:
        cvae: The model.
        batches: Batches `((image, one_hot), image)` or `(image, image)`, as of `Split.batches`.

    Returns:
        The bound, with standard errors over the images. It does not depend on how the images are batched.

    Raises:
        ValueError: If there is no batch, values are not in [0, 1], the model gives numbers that are not finite, or an
            image has no label: the bound here is that of log p(x|y); that of log p(x) is the metric `ELBO` of a
            `SemiSupervisedCVAE`.
    """

    @tf.function
    def terms(inputs: Any, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # As a CVAE, which is given the label, also of a model that could do without.
        return _terms(image, CVAE.call(cvae, inputs))

    # Traced once, also where the last batch is smaller.
    def of_any_number(part: tf.Tensor) -> tf.TensorSpec:
        return tf.TensorSpec([None, *part.shape[1:]], part.dtype)

    # As a concrete function, for TensorFlow would warn of the tracings where several models are measured.
    parts = []
    for batch in batches:
        _check(cvae, *batch)
        measure = terms.get_concrete_function(*tf.nest.map_structure(of_any_number, batch))
        parts.append([part.numpy() for part in measure(*batch)])
    clear_bijector_cache()
    if not parts:
        raise ValueError("batches: expected at least one, got none; a generator can be read once")
    rate, distortion, iwae = terms_of_all = np.concatenate(parts, axis=1)
    if not np.all(np.isfinite(terms_of_all)):
        raise ValueError("cvae: expected finite bounds, got NaN or infinity; its weights may be so too")
    return Bound(
        elbo=Estimate.of(-distortion - rate),
        rate=Estimate.of(rate),
        distortion=Estimate.of(distortion),
        iwae=Estimate.of(iwae) if cvae.num_samples > 1 else None,
        num_images=len(rate),
        num_samples=cvae.num_samples,
    )


def _check(cvae: CVAE, inputs: Any, image: Any, *weight: Any) -> None:
    if weight:
        raise ValueError(
            "batches: expected ((image, one_hot), image) or (image, image), got a sample_weight as well; leave it out, "
            "as the bound is the mean over all images"
        )
    own_image, *one_hot = tf.nest.flatten(inputs)
    for name, given in (("image", own_image), (TARGET, image)):
        array_checks.unit_interval(name, np.asarray(given), cvae.image_shape)
    for given in one_hot:
        rows = np.asarray(given)
        array_checks.unit_interval("one_hot", rows, rows.shape[1:])
        array_checks.sum_to_one("one_hot", rows)


@tf.autograph.experimental.do_not_convert
def _terms(image: tf.Tensor, output: CVAEOutput) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return objectives.rate(output), objectives.distortion(image, output), objectives.iwae(image, output)
