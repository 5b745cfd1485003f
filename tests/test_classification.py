import numpy as np
import pytest

from tfp_cvae.classification import classify


def log_joint(probabilities):
    """Rows of log p(x,y) whose p(y|x) are given, each with another p(x)."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities)) - np.arange(len(probabilities))[:, np.newaxis] * 50.0


def test_by_hand():
    correct, found = classify(
        log_joint([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.05, 0.9, 0.05], [0.0, 0.02, 0.98]]), np.array([0, 2, 1, 2])
    )
    np.testing.assert_array_equal(correct, [True, False, True, True])
    np.testing.assert_array_equal(found.confusion, [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    # Bins of width 1/15: 0.5 alone, twice 0.9, and 0.98.
    np.testing.assert_allclose(found.reliability, [[0.5, 0, 1], [0.9, 1, 2], [0.98, 1, 1]])
    assert found.expected_calibration_error == pytest.approx((0.5 + 2 * 0.1 + 0.02) / 4)
    surest = dict(found.selective_accuracy)
    assert surest[1.0] == 0.75
    assert surest[0.8] == 1.0


def test_a_calibrated_classifier_has_no_calibration_error_and_an_overconfident_one_has():
    generator = np.random.default_rng(0)
    probability = generator.dirichlet([0.3, 0.3, 0.3], 40_000)
    label = (generator.random(40_000)[:, np.newaxis] > np.cumsum(probability, axis=1)).sum(axis=1)
    joint = np.log(np.maximum(probability, 1e-300))
    assert classify(joint, label)[1].expected_calibration_error < 0.01
    assert classify(4 * joint, label)[1].expected_calibration_error > 0.08


def test_images_of_equal_odds_count_alike():
    """In whatever order they are: those of a test split may be sorted by class."""
    label = np.repeat(np.arange(5), 20)
    _, found = classify(np.zeros((100, 5)), label)
    np.testing.assert_allclose(found.selective_accuracy, [[share, 0.2] for share, _ in found.selective_accuracy])
    # The first half is sure, and right; of the others, a fifth is.
    joint = np.zeros((100, 5))
    joint[:50][np.arange(50), label[:50]] = 9
    surest = dict(classify(joint, label)[1].selective_accuracy)
    assert (surest[0.5], surest[0.8], surest[1.0]) == (1, 50 / 80, 0.5)


def test_selective_accuracy_orders_even_what_rounds_to_certainty():
    # Log-odds of 50 and of 60 are both a confidence of 1 in float64.
    joint = np.array([[0.0, -50.0], [0.0, -60.0]] * 50)
    label = np.array([1, 0] * 50)
    surest = dict(classify(joint, label)[1].selective_accuracy)
    assert surest[1.0] == 0.5
    assert surest[0.5] == 1.0
