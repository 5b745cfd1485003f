"""Classification by Bayes' rule, from log p(x|y) alone: accuracy, confusion and calibration; and by q(y|x)."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from tfp_cvae import latents, on_disk
from tfp_cvae.config import Binarization
from tfp_cvae.data import Split
from tfp_cvae.model import CVAE
from tfp_cvae.results import Calibration, Estimate
from tfp_cvae.semi_supervised import SemiSupervisedCVAE

_BINS = 15
_SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5)


def classify(log_joint: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, Calibration]:
    """Classifies images by argmax_y log p(x|y) + log p(y), and measures how far p(y|x) can be believed.

    Args:
        log_joint: log p(x|y) + log p(y) for each class y, `[n, num_classes]`, nats.
        label: True class, `[n]` integer.

    Returns:
        Whether each image is classified rightly, `[n]` bool, and the calibration.
    """
    found = np.argmax(log_joint, axis=1)
    correct = found == label
    confusion = np.zeros((log_joint.shape[1],) * 2, np.int64)
    np.add.at(confusion, (label, found), 1)
    confidence = np.exp(log_joint.max(axis=1) - np.logaddexp.reduce(log_joint, axis=1))
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    inside = [bins == number for number in np.unique(bins)]
    reliability = np.array([[confidence[part].mean(), correct[part].mean(), part.sum()] for part in inside])
    gaps = np.abs(reliability[:, 1] - reliability[:, 0])
    calibration = Calibration(
        expected_calibration_error=float(np.average(gaps, weights=reliability[:, 2])),
        reliability=reliability.tolist(),
        selective_accuracy=_selective_accuracy(log_joint, correct),
        confusion=confusion.tolist(),
    )
    return correct, calibration


def label_posterior_accuracy(
    cvae: CVAE, train: Split, image: np.ndarray, label: np.ndarray, binarization: Binarization
) -> Estimate:
    """Accuracy of argmax_y q(y|x).

    That is the classifier of a `SemiSupervisedCVAE`. Of a plain VAE it is logistic regression on the mean of q(z|x),
    which is fitted here: the model M1 of Kingma, Rezende, Mohamed and Welling 2014, section 2.1.

    Args:
        cvae: A `SemiSupervisedCVAE`, or a model without classes.
        train: Training images, of which those that have a label are for the fit.
        image: Images to classify, `[n, height, width, channels]`, in [0, 1].
        label: Their classes, `[n]` integer.
        binarization: Of the training images.

    Returns:
        The accuracy, in [0, 1].
    """
    if isinstance(cvae, SemiSupervisedCVAE):
        return Estimate.of(np.argmax(cvae.classify_fast(image), axis=-1) == label)
    labelled = train.labelled()
    rows = np.arange(len(labelled))
    # All of them as float32 may be more than the memory can hold.
    known = np.concatenate(
        [
            latents.posterior_mean(cvae, labelled.binarized(binarization, rows=rows[part]))
            for part in on_disk.parts(labelled.images)
        ]
    )
    # Without scaling: a latent that tells nothing has means of little variance, and would be all noise with more.
    regression = LogisticRegression(max_iter=1000).fit(known, labelled.labels)
    return Estimate.of(regression.predict(latents.posterior_mean(cvae, image)) == label)


def _selective_accuracy(log_joint: np.ndarray, correct: np.ndarray) -> list[list[float]]:
    # Ordered by the log-odds, which tell apart what rounds to a confidence of 1.
    highest = log_joint.max(axis=1)
    others = np.where(np.arange(log_joint.shape[1]) == log_joint.argmax(axis=1)[:, np.newaxis], -np.inf, log_joint)
    _, rank = np.unique(np.logaddexp.reduce(others, axis=1) - highest, return_inverse=True)
    # Of equal ones each counts as their mean: their order says nothing but how the images were sorted.
    accuracy = (np.bincount(rank, correct) / np.bincount(rank))[np.sort(rank)]
    return [[share, float(accuracy[: max(1, round(share * len(rank)))].mean())] for share in _SHARES]
