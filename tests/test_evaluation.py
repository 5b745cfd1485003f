import dataclasses
import json
import math

import numpy as np
import pytest
import tf_keras as keras
from sklearn.metrics import accuracy_score

from tfp_cvae import latents, report
from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.build import build_cvae
from tfp_cvae.config import EvaluationConfig, TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.evaluation import evaluate, evaluate_run
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.model import CVAE
from tfp_cvae.training import train

SMALL = EvaluationConfig(num_importance_samples=150, generated_per_class=20, classifier_epochs=8)


def trained(dataset, num_classes=None, **options):
    keras.utils.set_random_seed(0)
    classes = dataset.num_classes if num_classes is None else num_classes
    cvae = build_cvae(dataset.image_shape, classes, latent_size=4, width=16, **options)
    cvae.compile(keras.optimizers.Adam(3e-3), loss=NegativeELBO())
    cvae.fit(dataset.train.batches(16, conditional=classes > 0), epochs=15, verbose=0)
    return cvae


@pytest.mark.parametrize("prior", ["standard", "flow"])
def test_a_whole_evaluation(dataset, prior):
    cvae = trained(dataset, prior=prior)
    result = evaluate(cvae, dataset, SMALL)
    image, label = dataset.test.binarized(), dataset.test.labels
    bound = evaluate_bound(cvae, dataset.test.batches(8))
    assert result.elbo.mean == pytest.approx(bound.elbo.mean, abs=5 * bound.elbo.standard_error)
    assert result.elbo.mean == pytest.approx(-result.rate.mean - result.distortion.mean, abs=1e-4)
    assert result.log_p_x_given_y.mean > result.elbo.mean
    # p(x) is a mixture of the p(x|y), one of them the true one with p(y) = 1/3.
    difference = result.log_p_x_given_y.mean - result.log_p_x.mean
    assert difference == pytest.approx(result.label.information.mean)
    assert difference < math.log(3) + 1e-3
    assert result.bayes_accuracy.mean > 0.95
    assert np.sum(result.calibration.confusion) == len(label)
    assert np.trace(result.calibration.confusion) == result.bayes_accuracy.mean * len(label)
    assert result.label.elbo_wrong_label.mean < result.elbo.mean - 5
    diagonal = np.diag(result.label.elbo_by_label)
    np.testing.assert_allclose(diagonal, [found.elbo.mean for found in result.per_class.values()], rtol=1e-6)
    assert sum(found.num_images for found in result.per_class.values()) == len(label)
    assert 1 <= result.effective_sample_size.mean <= 150
    assert (result.latent.rate_per_dimension is None) == (prior == "flow")
    if prior == "standard":
        assert sum(result.latent.rate_per_dimension) == pytest.approx(result.rate.mean, rel=1e-4)
    assert result.latent.active_units == np.sum(np.array(result.latent.variance_of_means) > 0.01)
    assert result.samples.recognised.mean > 0.9
    assert result.samples.recognised_worst_class <= result.samples.recognised.mean
    assert result.samples.classification_accuracy_score.mean > 0.9
    assert result.samples.nearest_to_samples.mean > 0
    assert result.protocol["num_images"] == len(image)
    # Frozen, and the same again.
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.elbo = None
    again = evaluate(cvae, dataset, SMALL)
    assert {**again.to_dict(), "protocol": None} == {**result.to_dict(), "protocol": None}
    text = report.table(json.loads(json.dumps(result.to_dict())))
    assert f"{result.log_p_x.mean:.2f} +- {result.log_p_x.standard_error:.2f}" in text
    assert "24 test images, binarized once, seed 0; K = 150 importance samples; seed 0" in text
    assert max(map(len, text.splitlines())) <= 120


def test_without_classes(dataset):
    result = evaluate(trained(dataset, num_classes=0), dataset, SMALL)
    content = result.to_dict()
    assert {"log_p_x_given_y", "bayes_accuracy", "per_class", "calibration", "label", "samples"}.isdisjoint(content)
    assert result.log_p_x.mean > result.elbo.mean
    assert "log p(x)" in report.table(content)
    assert "Bayes" not in report.table(content)


def test_the_prior_of_the_classes_is_their_frequency():
    """Images without information: log p(x|y) is the same for all classes, and the frequent class is found."""
    generator = np.random.default_rng(0)
    images = (generator.random((90, 6, 6)) * 255).astype(np.uint8)
    dataset = make_dataset("noise", ["rare", "frequent"], (images, (np.arange(90) % 3 > 0).astype(int)))
    cvae = build_cvae((6, 6, 1), 2, latent_size=2, width=4)
    for variable in cvae.trainable_variables:
        variable.assign(0 * variable)
    result = evaluate(cvae, dataset, SMALL)
    assert result.log_p_x.mean == pytest.approx(36 * math.log(0.5), rel=1e-5)
    np.testing.assert_array_equal(np.array(result.calibration.confusion)[:, 0], 0)
    assert result.bayes_accuracy.mean == pytest.approx(accuracy_score(dataset.test.labels, np.ones(len(dataset.test))))
    ((confidence, _, count),) = result.calibration.reliability
    assert confidence == pytest.approx(np.mean(dataset.train.labels), abs=1e-4)
    assert count == len(dataset.test)
    assert result.latent.active_units == 0


def test_a_latent_with_the_class_is_found_and_one_without_is_not(dataset):
    """The encoder of the first model writes the class into z, that of the second does not look at it."""
    keras.utils.set_random_seed(0)
    accuracies = []
    for leak in (3.0, 0.0):
        cvae = build_cvae(dataset.image_shape, 3, latent_size=4, width=16)
        last = cvae.encoder.layers[-2]
        labels = [v for v in cvae.encoder.trainable_variables if v.shape == (3, 16)]
        for variable in cvae.encoder.trainable_variables:
            variable.assign(0 * variable)
        labels[-1].assign(np.eye(3, 16) * 5)
        last.kernel.assign(np.eye(16, 8) * leak)
        accuracies.append(latents.linear_probe(cvae, dataset.train, dataset.test, "dynamic").mean())
    assert accuracies[0] > 0.9
    assert accuracies[1] < 0.7


def test_active_units_by_hand():
    mean = np.array([[0.0, 1.0, 0.05], [0.0, -1.0, -0.05], [0.0, 1.0, 0.05], [0.0, -1.0, -0.05]])
    assert latents.active_units(mean) == 1
    assert latents.active_units(3 * mean) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_cvae((9, 8, 1), 3, width=4), "dataset: expected images of 9x8x1, as of the model, got stripes"),
        (lambda: build_cvae((8, 8, 1), 4, width=4), "dataset: expected 4 classes, as of the model, got stripes with 3"),
    ],
)
def test_models_that_do_not_fit(dataset, make, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make(), dataset, SMALL)


def test_a_run_of_other_classes(dataset, npz, tmp_path):
    run = train(TrainConfig(dataset=str(npz), epochs=1, batch_size=32, width=8), tmp_path / "run", verbose=0)
    before = run.evaluation()
    with pytest.raises(ValueError, match="dataset: expected the classes 0, 1, 2, as of the run, got stripes with left"):
        evaluate_run(run, dataset, SMALL)
    assert run.evaluation() == before


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"num_importance_samples": 0}, ValueError, "num_importance_samples: expected an integer >= 1, got 0"),
        ({"num_images": 1}, ValueError, "num_images: expected an integer >= 2, got 1"),
        ({"generated_per_class": 0}, ValueError, "generated_per_class: expected an integer >= 1, got 0"),
        ({"seed": 2**31}, ValueError, "seed: expected a number >= 0 and < 2147483648"),
    ],
)
def test_mistakes_in_the_configuration(values, error, message):
    with pytest.raises(error, match=message):
        EvaluationConfig(**values)


def test_models_of_ones_own(dataset):
    encoder = trained(dataset)
    own = CVAE(encoder.encoder, encoder.decoder)
    assert evaluate(own, dataset, SMALL).log_p_x == evaluate(encoder, dataset, SMALL).log_p_x
