"""Classification by Bayes' rule, from log p(x|y) alone: accuracy, confusion and calibration. Pure NumPy."""

import dataclasses

import numpy as np

_BINS = 15
_COVERAGES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """How well argmax_y log p(x|y) + log p(y) finds the class, and how far p(y|x) can be believed.

    Attributes:
        correct: Whether each image is classified rightly, `[n]` bool.
        confusion: Number of images by true class (row) and class found (column), `[num_classes, num_classes]` int64.
        expected_calibration_error: Mean of |accuracy - confidence| over 15 bins of confidence max_y p(y|x) of the same
            width, weighted by their images; in [0, 1] (Guo et al. 2017, eq. 3).
        reliability: Mean confidence, accuracy and number of images of each bin that has any, `[bins, 3]` float64.
        selective_accuracy: Accuracy on the share of the images (the key, in [0, 1]) that are classified with the
            greatest confidence.
    """

    correct: np.ndarray
    confusion: np.ndarray
    expected_calibration_error: float
    reliability: np.ndarray
    selective_accuracy: dict[float, float]

    @classmethod
    def of(cls, log_joint: np.ndarray, label: np.ndarray) -> "Classification":
        """Classifies images.

        Args:
            log_joint: log p(x|y) + log p(y) for each class y, `[n, num_classes]`, nats.
            label: True class, `[n]` integer.
        """
        found = np.argmax(log_joint, axis=1)
        correct = found == label
        confusion = np.zeros((log_joint.shape[1],) * 2, np.int64)
        np.add.at(confusion, (label, found), 1)
        confidence = np.exp(log_joint.max(axis=1) - np.logaddexp.reduce(log_joint, axis=1))
        bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
        reliability = np.array(
            [
                [confidence[inside].mean(), correct[inside].mean(), inside.sum()]
                for inside in (bins == number for number in np.unique(bins))
            ]
        )
        gaps = np.abs(reliability[:, 1] - reliability[:, 0])
        return cls(
            correct=correct,
            confusion=confusion,
            expected_calibration_error=float(np.average(gaps, weights=reliability[:, 2])),
            reliability=reliability,
            selective_accuracy=_selective_accuracy(log_joint, correct),
        )


def _selective_accuracy(log_joint: np.ndarray, correct: np.ndarray) -> dict[float, float]:
    # Ordered by the log-odds, which tell apart what rounds to a confidence of 1.
    highest = log_joint.max(axis=1)
    others = np.where(np.arange(log_joint.shape[1]) == log_joint.argmax(axis=1)[:, np.newaxis], -np.inf, log_joint)
    order = np.argsort(np.logaddexp.reduce(others, axis=1) - highest, kind="stable")
    return {coverage: float(correct[order[: max(1, round(coverage * len(order)))]].mean()) for coverage in _COVERAGES}
