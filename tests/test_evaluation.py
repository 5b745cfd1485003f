import dataclasses
import json
import math
import re
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import perturb, stripes
from scipy.special import logsumexp
from sklearn.metrics import accuracy_score

from tfp_cvae import evaluation, figures, latents, objectives, recognition, report
from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.build import build_cvae
from tfp_cvae.config import EvaluationConfig, TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.evaluation import evaluate, evaluate_run
from tfp_cvae.flows import CouplingFlow, flow_prior
from tfp_cvae.importance import importance_estimate
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.model import CVAE
from tfp_cvae.sources import load_dataset
from tfp_cvae.training import train

SMALL = EvaluationConfig(num_importance_samples=150, generated_per_class=20, classifier_epochs=8)
# Where the samples do not matter.
TINY = EvaluationConfig(num_importance_samples=120, generated_per_class=3, classifier_epochs=1)


# Weights of `trained`.
FITTED = {}


def trained(dataset, num_classes=None, prior="standard"):
    keras.utils.set_random_seed(0)
    classes = dataset.num_classes if num_classes is None else num_classes
    cvae = build_cvae(dataset.image_shape, classes, latent_size=4, width=16)
    if prior == "flow":
        one_hot = keras.Input((classes,))
        flow = keras.Model(one_hot, CouplingFlow(4, depth=2, width=16)(one_hot))
        cvae = CVAE(cvae.encoder, cvae.decoder, flow)
    cvae.compile(keras.optimizers.Adam(3e-3), loss=NegativeELBO())
    key = dataset.fingerprint(), classes, prior
    if key not in FITTED:
        cvae.fit(dataset.train.batches(16, conditional=classes > 0), epochs=15, verbose=0)
        FITTED[key] = cvae.get_weights()
    cvae.set_weights(FITTED[key])
    return cvae


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("prior", ["standard", "flow"])
def test_a_whole_evaluation(dataset, prior, monkeypatch):
    # Enough of them for a judge of stripes.
    monkeypatch.setattr(recognition, "_MIN_STEPS", 60)
    cvae = trained(dataset, prior=prior)
    result = evaluate(cvae, dataset, SMALL)
    image, label = dataset.test.binarized(), dataset.test.labels
    bound = evaluate_bound(cvae, dataset.test.batches(8))
    # Of the same images, with 150 samples of the latent and with one.
    assert result.elbo.mean == pytest.approx(bound.elbo.mean, abs=2)
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
    for row in range(3):
        # Images of the class under each label, by the loss of Keras with other samples.
        own = image[label == row]
        under = [
            np.mean([objectives.elbo(own, sampled(cvae, own, column, seed)) for seed in range(20)])
            for column in range(3)
        ]
        np.testing.assert_allclose(result.label.elbo_by_label[row], under, rtol=0.05)
    diagonal = np.diag(result.label.elbo_by_label)
    # The mean over the two other labels of each image.
    under_others = (np.sum(result.label.elbo_by_label, axis=1) - diagonal) / 2
    expected = np.average(under_others, weights=np.bincount(label))
    assert result.label.elbo_wrong_label.mean == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(diagonal, [found.elbo.mean for found in result.per_class.values()], rtol=1e-6)
    assert [found.num_images for found in result.per_class.values()] == np.bincount(label).tolist()
    assert result.elbo.mean == pytest.approx(np.average(diagonal, weights=np.bincount(label)), rel=1e-6)
    likelihood = importance_estimate(cvae, image, label, num_samples=150, seed=1).log_likelihood
    for row, found in enumerate(result.per_class.values()):
        assert found.log_p_x_given_y.mean == pytest.approx(likelihood[label == row].mean(), abs=0.5)
        assert found.bayes_accuracy.mean == result.calibration.confusion[row][row] / found.num_images
    assert 1 <= result.effective_sample_size.mean <= 150
    assert (result.latent.rate_per_dimension is None) == (prior == "flow")
    if prior == "standard":
        assert sum(result.latent.rate_per_dimension) == pytest.approx(result.rate.mean, rel=1e-4)
    assert result.latent.active_units == np.sum(np.array(result.latent.variance_of_means) > 0.01)
    if prior == "standard":
        posterior_mean = np.float64(cvae.posterior(image, dataset.test.one_hot()).mean())
        within = [posterior_mean[label == row] - posterior_mean[label == row].mean(axis=0) for row in range(3)]
        variance = sum(np.sum(part**2, axis=0) for part in within) / (len(label) - 3)
        np.testing.assert_allclose(result.latent.variance_of_means, variance, rtol=1e-4)
    assert result.samples.recognised.mean > 0.9
    assert result.samples.recognised_worst_class.mean <= result.samples.recognised.mean
    assert result.samples.classification_accuracy_score.mean > 0.9
    train_pixels = dataset.train.images.reshape(len(dataset.train), -1) / 255.0
    for found, pictures in (
        (result.samples.nearest_to_test_images, dataset.test.images / 255.0),
        (result.samples.nearest_to_reconstructions, cvae.reconstruct(image, label).numpy()),
        # With the seeds that follow those of the 20 images of each class that are judged.
        (result.samples.nearest_to_samples, recognition.generated(cvae, dataset.train.labels, seed=3 * 20)),
    ):
        distances = np.linalg.norm(pictures.reshape(len(pictures), 1, -1) - train_pixels, axis=-1)
        assert found.mean == pytest.approx(distances.min(axis=1).mean(), rel=1e-4)
    assert result.protocol["num_images"] == len(image)
    # Frozen, and the same again.
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.elbo = None
    json.dumps(result.to_dict(), allow_nan=False)
    text = str(result)
    assert f"{result.log_p_x.mean:.2f} +- {result.log_p_x.standard_error:.2f}" in text
    assert "24 test images, binarized once, seed 0; K = 150 importance samples; seed 0" in text


def sampled(cvae, image, label, seed):
    """Output of the CVAE for images under a label, with latents that are drawn by NumPy."""
    one_hot = np.eye(3, dtype=np.float32)[np.full(len(image), label)]
    noise = np.random.default_rng(seed).standard_normal((len(image), cvae.latent_size)).astype(np.float32)
    return cvae.infer(cvae.posterior(image, one_hot), one_hot, noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, one_hot: ((image, 0 * one_hot), image), r"one_hot: expected rows that sum to 1 .*, got 0.0"),
        (
            lambda image, one_hot: ((image, 2 - 3 * one_hot), image),
            r"one_hot: expected values in \[0, 1\], got -1.0 to 2.0",
        ),
        (lambda image, one_hot: ((255 * image, one_hot), image), r"image: expected values in .*; divide grey values"),
        (lambda image, one_hot: ((image, one_hot), 255 * image), r"y \(the image again\): expected values in"),
        (None, "batches: expected at least one, got none"),
    ],
)
def test_there_is_no_bound_of_it(dataset, change, message):
    cvae = build_cvae(dataset.image_shape, 3, latent_size=4, width=16)
    batches = [change(dataset.test.binarized(), dataset.test.one_hot())] if change else []
    with pytest.raises(ValueError, match=message):
        evaluate_bound(cvae, batches)


def test_a_bound_that_is_not_finite(dataset):
    cvae = build_cvae(dataset.image_shape, 3, latent_size=4, width=16)
    kernel = cvae.decoder.trainable_variables[0]
    kernel.assign(kernel * np.nan)
    with pytest.raises(
        ValueError, match="cvae: expected finite bounds, got NaN or infinity; its weights may be so too"
    ):
        evaluate_bound(cvae, dataset.test.batches(8))


@pytest.mark.parametrize("part", ["encoder", "decoder", "prior_network"])
def test_a_model_that_is_not_finite_is_not_evaluated(cvae, dataset, monkeypatch, part):
    monkeypatch.setattr(recognition, "train_classifier", None)
    getattr(cvae, part).trainable_variables[0].assign(np.nan * getattr(cvae, part).trainable_variables[0])
    with pytest.raises(ValueError, match="cvae: expected finite images, got NaN"):
        evaluate(cvae, dataset, TINY)


def test_weighted_images_have_no_bound(cvae, dataset):
    image, one_hot = dataset.test.binarized(), dataset.test.one_hot()
    with pytest.raises(ValueError, match=r"batches: expected .* got a sample_weight as well; leave it out"):
        evaluate_bound(cvae, [((image, one_hot), image, np.ones(len(image)))])


@pytest.mark.usefixtures("quick_judge")
def test_one_image_says_nothing_of_units(cvae, dataset):
    result = evaluate(cvae, dataset, dataclasses.replace(TINY, num_images=1))
    assert result.latent.active_units is None
    assert "active units: ? of 4" in report.table(result)


def test_the_bound_of_several_samples_is_measured(dataset):
    keras.utils.set_random_seed(0)
    cvae = build_cvae(dataset.image_shape, 3, latent_size=4, width=16, prior="label", num_samples=7)
    bound = evaluate_bound(cvae, dataset.test.batches(10))
    image, one_hot = dataset.test.binarized(), dataset.test.one_hot()
    output = cvae((image, one_hot))
    log_weights = (
        output.likelihood.log_prob(image)
        + output.prior.log_prob(output.latent)
        - output.posterior.log_prob(output.latent)
    ).numpy()
    expected = logsumexp(log_weights, axis=0) - math.log(7)
    assert bound.iwae.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert bound.iwae.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(len(image)), rel=1e-4)
    assert bound.iwae.mean > bound.elbo.mean
    assert bound.num_samples == 7


def test_the_variance_of_means_has_no_bias():
    """Of few images of many classes, too, whose own means take part of it away."""
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(50), 2)
    mean = generator.standard_normal((40, 100, 3)) * [1.0, 2.0, 0.1] + 10 * label[:, np.newaxis]
    found = np.mean([latents.variance_of_means(draw, label) for draw in mean], axis=0)
    np.testing.assert_allclose(found, [1.0, 4.0, 0.01], rtol=0.1)
    alone = mean[0] - 10 * label[:, np.newaxis]
    np.testing.assert_allclose(latents.variance_of_means(alone, None), np.var(alone, axis=0, ddof=1))


@pytest.mark.usefixtures("quick_judge")
def test_the_same_again(dataset, capsys):
    cvae = trained(dataset)
    first, second = (evaluate(cvae, dataset, TINY, verbose=verbose).to_dict() for verbose in (0, 1))
    printed = capsys.readouterr().out
    assert "a first look at every label: 72 pairs of image and label, K = 100\n" in printed
    again = re.search(r"^the likely labels: (\d+) pairs of image and label, K = 120$", printed, re.MULTILINE)
    assert 24 <= int(again[1]) <= 72
    assert "==]" in printed
    assert {**first, "protocol": None} == {**second, "protocol": None}


@pytest.mark.usefixtures("quick_judge")
def test_without_classes(dataset, capsys):
    result = evaluate(trained(dataset, num_classes=0), dataset, TINY, verbose=1)
    # Each is weighed once.
    assert capsys.readouterr().out.startswith("log p(x) of 24 images, K = 120\n")
    assert result.protocol["latents_decoded"] == 24 * 120
    content = result.to_dict()
    assert {"log_p_x_given_y", "bayes_accuracy", "per_class", "calibration", "label", "samples"}.isdisjoint(content)
    assert result.log_p_x.mean > result.elbo.mean
    assert "log p(x)" in str(result)
    assert "Bayes" not in str(result)


@pytest.mark.usefixtures("quick_judge")
def test_the_prior_of_the_classes_is_their_frequency():
    """Images without information: log p(x|y) is the same for all classes, and the frequent class is found."""
    generator = np.random.default_rng(0)
    images = (generator.random((90, 6, 6)) * 255).astype(np.uint8)
    dataset = make_dataset("noise", ["rare", "frequent"], (images, (np.arange(90) % 3 > 0).astype(int)))
    cvae = build_cvae((6, 6, 1), 2, latent_size=2, width=4)
    for variable in cvae.trainable_variables:
        variable.assign(0 * variable)
    result = evaluate(cvae, dataset, TINY)
    assert result.log_p_x.mean == pytest.approx(36 * math.log(0.5), rel=1e-5)
    np.testing.assert_array_equal(np.array(result.calibration.confusion)[:, 0], 0)
    assert result.bayes_accuracy.mean == pytest.approx(accuracy_score(dataset.test.labels, np.ones(len(dataset.test))))
    ((confidence, _, count),) = result.calibration.reliability
    assert confidence == pytest.approx(np.mean(dataset.train.labels), abs=1e-4)
    assert count == len(dataset.test)
    assert result.latent.active_units == 0


@pytest.mark.usefixtures("quick_judge")
def test_log_evidence_is_a_mixture_over_the_classes_by_their_frequency(dataset):
    """Against numerical integration over a latent of one dimension, with classes that are not equally frequent."""
    rare = np.flatnonzero(dataset.train.labels == 0)[10:]
    kept = np.setdiff1d(np.arange(len(dataset.train)), rare)
    train_split = dataclasses.replace(
        dataset.train, images=dataset.train.images[kept], labels=dataset.train.labels[kept]
    )
    dataset = dataclasses.replace(dataset, train=train_split)
    keras.utils.set_random_seed(0)
    cvae = build_cvae(dataset.image_shape, 3, latent_size=1, width=8)
    cvae.compile(keras.optimizers.Adam(5e-3), loss=NegativeELBO())
    cvae.fit(dataset.train.batches(16), epochs=20, verbose=0)
    settings = dataclasses.replace(TINY, num_importance_samples=4000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    image = dataset.test.binarized().reshape(len(dataset.test), -1)
    log_conditional = np.empty((len(image), 3))
    for label in range(3):
        one_hot = np.eye(3, dtype=np.float32)[np.full(120, label)]
        logits = cvae.likelihood(nodes[:, np.newaxis].astype(np.float32), one_hot).distribution.logits_parameter()
        logits = logits.numpy().astype(np.float64).reshape(120, -1)
        log_likelihood = image @ logits.T - np.logaddexp(0, logits).sum(axis=1)
        log_conditional[:, label] = logsumexp(log_likelihood, axis=1, b=weights / np.sqrt(2 * np.pi))
    frequency = np.bincount(dataset.train.labels) / len(dataset.train)
    for given, expected in ((None, frequency), ([3, 0, 1], [0.75, 0, 0.25])):
        result = evaluate(cvae, dataset, settings, class_probabilities=given)
        with np.errstate(divide="ignore"):
            log_joint = log_conditional + np.log(expected)
        assert result.log_p_x.mean == pytest.approx(logsumexp(log_joint, axis=1).mean(), abs=0.05)
        correct = log_joint.argmax(axis=1) == dataset.test.labels
        assert result.bayes_accuracy.mean == pytest.approx(correct.mean(), abs=0.02)
        json.dumps(result.to_dict(), allow_nan=False)


def test_the_probe_finds_a_class_that_is_in_the_latent_and_no_other():
    generator = np.random.default_rng(0)
    label = np.arange(900) % 3
    noise = generator.standard_normal((900, 4))
    marked = noise + 3 * np.eye(3, 4)[label]
    for latent, low, high in ((marked, 0.9, 1.0), (noise, 0.2, 0.45)):
        found = latents.linear_probe((latent[:600], label[:600]), (latent[600:], label[600:])).mean()
        assert low <= found <= high


def test_the_scale_of_a_learned_prior_is_not_counted(cvae, dataset):
    """Of p(z|y) = N(m_y, diag(s_y^2)) the mean is seen as (E[z] - m_y) / s_y."""
    image, label, one_hot = dataset.test.binarized(), dataset.test.labels, dataset.test.one_hot()
    posterior, prior = cvae.posterior(image, one_hot), cvae.prior(one_hot)
    assert np.ptp(prior.stddev()) > 0.5
    mean, _, _ = latents.posterior_statistics(cvae, image, label)
    np.testing.assert_allclose(mean, (posterior.mean() - prior.mean()) / prior.stddev(), rtol=1e-4, atol=1e-5)


def test_a_mean_is_mapped_back_through_a_flow(cvae, dataset):
    flow = flow_prior(3, 4)
    perturb(flow, 0.1)
    cvae = CVAE(cvae.encoder, cvae.decoder, flow)
    image, label, one_hot = dataset.test.binarized(), dataset.test.labels, dataset.test.one_hot()
    mean, _, _ = latents.posterior_statistics(cvae, image, label)
    expected = cvae.posterior(image, one_hot).mean()
    assert np.max(np.abs(mean - expected)) > 0.1
    np.testing.assert_allclose(cvae.prior(one_hot).bijector.forward(mean), expected, atol=1e-4)


@pytest.mark.usefixtures("quick_judge")
def test_latents_are_probed_as_the_prior_sees_them(cvae, dataset):
    """A posterior that is the prior of its class carries nothing of the class beyond it."""
    last = cvae.encoder.layers[-2]
    for variable in cvae.encoder.trainable_variables:
        variable.assign(0 * variable)
    labels = [v for v in cvae.encoder.trainable_variables if v.shape == (3, 16)]
    labels[-1].assign(np.eye(3, 16) * 50)
    # silu(50) = 50: each class picks one row, that of its prior.
    last.kernel.assign(np.concatenate([cvae.prior_network.trainable_variables[0] / 50, np.zeros((13, 8))]))
    image, label = np.zeros((300, 8, 8, 1), np.float32), np.arange(300) % 3
    image[:, 0, 0, 0] = np.arange(300) / 300
    mean, noise, rate = latents.posterior_statistics(cvae, image, label)
    np.testing.assert_allclose(rate, 0, atol=1e-4)
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    for number in range(3):
        assert np.all(np.abs(noise[label == number].mean(axis=0)) < 0.5)
    found = evaluate(cvae, dataset, TINY).latent
    assert found.active_units == 0
    # The means would tell all of the 24 images.
    assert found.linear_probe.mean < 0.8


def test_a_class_whose_samples_are_of_another(dataset):
    cvae = trained(dataset)
    for variable in cvae.decoder.trainable_variables:
        if variable.shape[0] == 3:
            # The label of the first class is taken for that of the second.
            variable.assign(tf.gather(variable, [1, 1, 2]))
    result = evaluate(cvae, dataset, SMALL)
    first, *others = (found.recognised.mean for found in result.per_class.values())
    assert first < 0.1
    assert min(others) > 0.9
    samples = result.samples
    assert samples.recognised.mean == pytest.approx(np.mean([first, *others]))
    assert samples.recognised_worst_class.mean == first
    assert samples.classifier_accuracy.mean > 0.9
    # No sample is of the first class, and so nothing has taught it.
    assert samples.classification_accuracy_score.mean < 0.7


@pytest.mark.usefixtures("quick_judge", "no_figures")
def test_one_image_of_a_class_and_none_of_another(dataset, tmp_path, npz):
    """What has no standard error says so, in the table and in the file."""
    run = train(TrainConfig(dataset=str(npz), epochs=1, batch_size=32, width=8), tmp_path / "run", verbose=0)
    config = dataclasses.replace(TINY, num_images=3)
    data = load_dataset(str(npz))
    result = evaluate_run(run, data, config)
    counts = [found.num_images for found in result.per_class.values()]
    assert sum(counts) == 3
    assert min(counts) < max(counts)
    assert result.latent.chance == max(counts) / 3
    assert set(result.per_class) == {"0", "1", "2"}
    assert np.shape(result.label.elbo_by_label) == (3, 3)
    stored = run.evaluation()["per_class"]
    assert [found["elbo"]["standard_error"] is None for found in stored.values()] == [count < 2 for count in counts]
    assert ("+- ?" in str(result)) == (1 in counts)
    assert "3 test images" in run.summary()
    assert len(figures.draw_evaluation(run, data)) == 4
    alone = evaluate_run(run, data, dataclasses.replace(config, num_images=1))
    assert math.isnan(alone.elbo.standard_error)
    assert "elbo" in run.summary()


@pytest.mark.usefixtures("quick_judge")
def test_one_class(tmp_path):
    images, _ = stripes(60)
    dataset = make_dataset("one", ["only"], (images, np.zeros(60, int)))
    result = evaluate(trained(dataset), dataset, TINY)
    assert result.latent.linear_probe is None
    assert math.isnan(result.label.elbo_wrong_label.mean)
    assert result.log_p_x == result.log_p_x_given_y
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("binarization", ["threshold", "none"])
def test_colour_images_convolutions_and_other_binarizations(binarization):
    generator = np.random.default_rng(0)
    images = (generator.random((90, 7, 10, 3)) * 255).astype(np.uint8)
    dataset = make_dataset("colour", ["a", "b"], (images, np.arange(90) % 2))
    cvae = build_cvae(dataset.image_shape, 2, latent_size=3, network="conv", width=4)
    result = evaluate(cvae, dataset, TINY, binarization=binarization)
    assert result.protocol["comparable"] == (binarization == "threshold")
    bound = evaluate_bound(cvae, dataset.test.batches(9, binarization=binarization))
    assert result.rate.mean == pytest.approx(bound.rate.mean, rel=1e-4)
    assert result.elbo.mean == pytest.approx(bound.elbo.mean, rel=0.05)


@pytest.mark.usefixtures("quick_judge", "no_figures")
@pytest.mark.parametrize("binarization", ["dynamic", "threshold"])
def test_each_setting_reaches_what_it_is_for(dataset, npz, tmp_path, monkeypatch, binarization):
    config = TrainConfig(dataset=str(npz), epochs=1, batch_size=32, width=8, binarization=binarization, seed=5)
    run = train(config, tmp_path / "run", verbose=0)
    weigh = mock.Mock(wraps=evaluation.likelihood_under_each_label)
    teach, judge = mock.Mock(wraps=recognition.train_classifier), mock.Mock(wraps=recognition.recognised)
    monkeypatch.setattr(evaluation, "likelihood_under_each_label", weigh)
    monkeypatch.setattr(recognition, "train_classifier", teach)
    monkeypatch.setattr(recognition, "recognised", judge)
    settings = EvaluationConfig(
        num_importance_samples=3,
        num_images=7,
        generated_per_class=2,
        num_classifier_images=11,
        classifier_epochs=5,
        label_margin=4.5,
        seed=6,
    )
    evaluate_run(run, run.training_data(), settings)
    ((cvae, image, label), given), *_ = weigh.call_args_list
    assert (given["num_samples"], given["label_margin"], given["seed"]) == (3, 4.5, 6)
    assert len(image) == 7
    # In the one draw of all runs, whatever the seeds. Several may look the same, and are of one class then.
    drawn = dataset.test.binarized(binarization, seed=0)
    chosen = [np.flatnonzero((drawn == one).all(axis=(1, 2, 3)))[0] for one in image]
    np.testing.assert_array_equal(label, dataset.test.labels[chosen])
    for (images, labels, num_classes), given in teach.call_args_list:
        assert (len(images), len(labels), num_classes) == (11, 11, cvae.num_classes)
        assert (given["epochs"], given["seed"]) == (5, 6)
    assert teach.call_count == 2
    assert (judge.call_args.kwargs["count"], judge.call_args.kwargs["seed"]) == (2, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_cvae((9, 8, 1), 3, width=4), "dataset: expected images of 9x8x1, as of the model, got stripes"),
        (lambda: build_cvae((8, 8, 1), 4, width=4), "dataset: expected 4 classes, as of the model, got stripes with 3"),
    ],
)
def test_models_that_do_not_fit(dataset, make, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make(), dataset, TINY)


@pytest.mark.parametrize(
    ("num_classes", "given", "error", "message"),
    [
        (3, [1, 2], ValueError, r"class_probabilities: expected 3 numbers >= 0, not all 0, got \[1, 2\]"),
        (3, ["a", "b", "c"], TypeError, "class_probabilities: expected 3 numbers, got .'a', 'b'"),
        (0, [1.0], ValueError, r"class_probabilities: expected None for a model without classes, got \[1.0\]"),
    ],
)
def test_wrong_class_probabilities(dataset, num_classes, given, error, message):
    cvae = build_cvae(dataset.image_shape, num_classes, width=4)
    with pytest.raises(error, match=message):
        evaluate(cvae, dataset, TINY, class_probabilities=given)


@pytest.mark.usefixtures("quick_judge", "no_figures")
def test_a_run_keeps_its_class_probabilities_on_other_data(npz, tmp_path):
    """p(y) belongs to the model, as it is exported, whatever the data set that it is evaluated on."""
    images, labels = stripes()
    rare = (labels != 2) | (np.arange(len(labels)) % 4 == 0)
    np.savez(npz, images=images[rare], labels=labels[rare])
    run = train(TrainConfig(dataset=str(npz), epochs=1, batch_size=32, width=8), tmp_path / "run", verbose=0)
    own = np.bincount(run.training_data().train.labels) / len(run.training_data().train)
    assert own[2] < 0.2
    other = make_dataset("other", run.class_names, (images, labels))
    result = evaluate_run(run, other, TINY)
    np.testing.assert_allclose(result.protocol["class_probabilities"], own)
    unknown = evaluate_run(dataclasses.replace(run, class_probabilities=()), other, TINY)
    np.testing.assert_allclose(unknown.protocol["class_probabilities"], [1 / 3] * 3, atol=0.02)
    assert abs(result.log_p_x.mean - unknown.log_p_x.mean) > 0.02


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_other_classes(dataset, npz, tmp_path):
    run = train(TrainConfig(dataset=str(npz), epochs=1, batch_size=32, width=8), tmp_path / "run", verbose=0)
    before = run.evaluation()
    with pytest.raises(ValueError, match="dataset: expected the classes 0, 1, 2, as of the run, got stripes with left"):
        evaluate_run(run, dataset, TINY)
    assert run.evaluation() == before


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"num_importance_samples": 0}, ValueError, "num_importance_samples: expected an integer >= 1, got 0"),
        ({"num_images": 0}, ValueError, "num_images: expected an integer >= 1, got 0"),
        ({"generated_per_class": 0}, ValueError, "generated_per_class: expected an integer >= 1, got 0"),
        ({"seed": 2**31}, ValueError, "seed: expected an integer >= 0 and < 2147483648"),
        ({"label_margin": float("inf")}, ValueError, "label_margin: expected a finite number >= 0, got inf"),
    ],
)
def test_mistakes_in_the_configuration(values, error, message):
    with pytest.raises(error, match=message):
        EvaluationConfig(**values)


@pytest.mark.usefixtures("quick_judge")
def test_a_class_that_is_not_among_the_probed_images(dataset, monkeypatch):
    monkeypatch.setattr(evaluation, "_PROBE_IMAGES", 1)
    cvae = build_cvae(dataset.image_shape, 3, latent_size=2, width=8)
    latent = evaluate(cvae, dataset, TINY).latent
    assert (latent.linear_probe, latent.chance) == (None, None)
