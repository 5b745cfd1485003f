"""The frozen result of an evaluation: the content of `evaluation.json`, with names and types."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# A latent dimension is active if the variance of its posterior mean is above this (Burda et al. 2015).
ACTIVE_VARIANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over images and its standard error.

    Attributes:
        mean: Mean; NaN without images.
        standard_error: Standard deviation over the images divided by the square root of their number; NaN with fewer
            than two.
    """

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """Estimate of the mean of independent values, `[n]`."""
        values = np.asarray(values, np.float64)
        mean = float(values.mean()) if values.size else math.nan
        spread = float(values.std(ddof=1)) if values.size > 1 else math.nan
        return cls(mean, spread / math.sqrt(max(1, values.size)))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON, NaN as None."""
        return _plain(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class ClassEvaluation:
    """Results on the test images of one class, as in `Evaluation`.

    Attributes:
        num_images: Number of test images; without any, the estimates on them are NaN.
        elbo: ELBO.
        log_p_x_given_y: Importance-weighted estimate of log p(x|y).
        effective_sample_size: Of the importance weights.
        bayes_accuracy: Classification by Bayes' rule.
        recognised: Share of the generated images of this class that a classifier takes for it.
    """

    num_images: int
    elbo: Estimate
    log_p_x_given_y: Estimate
    effective_sample_size: Estimate
    bayes_accuracy: Estimate
    recognised: Estimate


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether p(y|x) by Bayes' rule can be believed.

    Attributes:
        expected_calibration_error: Mean of |accuracy - confidence| over 15 bins of the confidence max_y p(y|x), all of
            one width, weighted by their images; in [0, 1] (Guo et al. 2017, eq. 3).
        reliability: Rows of mean confidence, accuracy and number of images, one for each bin that has any.
        selective_accuracy: Rows of the share of the images that is classified, those with the greatest log-odds first,
            and the accuracy on them.
        confusion: Number of images by true class (row) and class found (column).
    """

    expected_calibration_error: float
    reliability: list[list[float]]
    selective_accuracy: list[list[float]]
    confusion: list[list[int]]


@dataclasses.dataclass(frozen=True)
class LabelUse:
    """What the label does for the likelihood.

    Attributes:
        elbo_wrong_label: ELBO under the other labels, the mean over them; NaN if there is one class.
        information: log p(x|y) - log p(x), at most log of the number of classes if these are equally frequent.
        elbo_by_label: Mean ELBO by true class (row) and label given (column), nats per image.
    """

    elbo_wrong_label: Estimate
    information: Estimate
    elbo_by_label: list[list[float]]


@dataclasses.dataclass(frozen=True)
class LatentUse:
    """What the latent carries.

    Attributes:
        latent_size: Size of z.
        active_units: Dimensions with a variance of means above 0.01 (Burda et al. 2015, there with p(z) = N(0, I));
            None where no class has a second image, so that nothing varies.
        variance_of_means: Var_x(e_j) of each dimension, within the classes, with e = f_y^-1(E_q(z|x,y)[z]) the mean
            as the prior sees it, which is N(0, I) under z = f_y(e) (`latents.posterior_statistics`). With the prior
            N(0, I) it is the mean itself, with one normal for each label (E_q[z] - m_y) / s_y.
        rate_per_dimension: Mean KL of each dimension, nats per image; None if the prior is not diagonal.
        linear_probe: Share of the images whose class logistic regression finds in z, seen likewise; None with fewer
            than two classes among the images that it would learn from.
        chance: Share of the most frequent class, which a latent without class leaves; None likewise.
    """

    latent_size: int
    active_units: int | None
    variance_of_means: list[float]
    rate_per_dimension: list[float] | None
    linear_probe: Estimate | None
    chance: float | None


@dataclasses.dataclass(frozen=True)
class SampleQuality:
    """What generated images are worth.

    Attributes:
        classifier_accuracy: On real test images, of the classifier trained on real images.
        recognised: Of generated images, by that classifier, the mean over the classes.
        recognised_worst_class: The class of which the fewest are recognised. As the least of all it is biased low,
            and its error is that of a class chosen before.
        classification_accuracy_score: On real test images, of the same classifier trained on generated images only, as
            many of each class as real ones (Ravuri and Vinyals 2019).
        nearest_to_samples: Euclidean distance from a generated image to its nearest training image.
        nearest_to_reconstructions: The same from reconstructed test images, which are as smooth as samples and not
            memorised: much less to samples would be memorisation.
        nearest_to_test_images: The same from the test images themselves.
    """

    classifier_accuracy: Estimate
    recognised: Estimate
    recognised_worst_class: Estimate
    classification_accuracy_score: Estimate
    nearest_to_samples: Estimate
    nearest_to_reconstructions: Estimate
    nearest_to_test_images: Estimate


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results on the test split; bounds and likelihoods in nats per image, each with its standard error.

    Attributes:
        elbo: Evidence lower bound, the expectation over q estimated by the importance samples.
        rate: KL(q(z|x,y) || p(z|y)).
        distortion: -E_q[log p(x|z,y)].
        effective_sample_size: Of the importance weights, between 1 and K.
        log_p_x_given_y: Importance-weighted estimate of log p(x|y); None without classes.
        log_p_x: log sum_y p(y) p(x|y) from the same samples, with the p(y) of the protocol.
        bayes_accuracy: Accuracy of argmax_y log p(x|y) + log p(y); None without classes.
        label_posterior_accuracy: Accuracy of argmax_y q(y|x), or of M1 if the model has no classes; else None.
        per_class: Results by name of the class; empty without classes.
        calibration: Of p(y|x); None without classes.
        label: What the label does; None without classes.
        latent: What the latent carries.
        samples: What generated images are worth; None without classes.
        protocol: What was measured on what, with which seeds, and how long it took.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    effective_sample_size: Estimate
    log_p_x_given_y: Estimate | None
    log_p_x: Estimate
    bayes_accuracy: Estimate | None
    label_posterior_accuracy: Estimate | None
    per_class: Mapping[str, ClassEvaluation]
    calibration: Calibration | None
    label: LabelUse | None
    latent: LatentUse
    samples: SampleQuality | None
    protocol: Mapping[str, Any]

    def __str__(self) -> str:
        from tfp_cvae import report

        return report.table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON: NaN is None, and what does not exist without classes is left out."""
        return {key: value for key, value in _plain(dataclasses.asdict(self)).items() if value not in (None, {})}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
