"""Importance sampling against numerical integration over the latent, and against all weights at once."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import spread_prior
from scipy.special import logsumexp

from tfp_cvae import objectives
from tfp_cvae.bounds import Estimate
from tfp_cvae.build import build_cvae
from tfp_cvae.importance import SAMPLES_PER_BLOCK, bernoulli_log_prob, importance_estimate, products_per_second
from tfp_cvae.likelihood import LABEL_MARGIN, likelihood_under_each_label
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.model import CVAEOutput, standard_normal

CLASSES = 3
# Nodes and weights for the integral over N(0, 1).
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(150)
WEIGHTS = WEIGHTS / np.sqrt(2 * np.pi)


def spread_out():
    """A model with one latent dimension, over which can be integrated, far from where it starts."""
    keras.utils.set_random_seed(3)
    cvae = build_cvae((4, 3, 1), CLASSES, latent_size=1, width=6, prior="label")
    spread_prior(cvae)
    generator = np.random.default_rng(0)
    for variable in cvae.decoder.trainable_variables:
        variable.assign(variable + 0.3 * generator.standard_normal(variable.shape))
    return cvae


@functools.cache
def fitted_encoder():
    """Weights of an encoder near the true posterior, without which importance sampling needs too many samples."""
    cvae = spread_out()
    cvae.decoder.trainable = cvae.prior_network.trainable = False
    image, label = sampled(cvae, 1500, seed=99)
    one_hot = np.eye(CLASSES, dtype=np.float32)[label]
    cvae.compile(keras.optimizers.Adam(0.01), loss=NegativeELBO())
    cvae.fit((image, one_hot), image, batch_size=50, epochs=10, verbose=0)
    return cvae.encoder.get_weights()


@pytest.fixture
def narrow():
    weights = fitted_encoder()
    cvae = spread_out()
    cvae.encoder.set_weights(weights)
    return cvae


def sampled(cvae, count, seed=0):
    """Images drawn from the model itself: p(x|y), with every class in turn."""
    label = np.arange(count) % CLASSES
    probability = cvae.generate(label, seed).numpy()
    return (np.random.default_rng(seed).random(probability.shape) < probability).astype(np.float32), label


def exact(cvae, image):
    """log p(x|y) under each label by quadrature, in float64: `[n, CLASSES]`."""
    result = np.empty((len(image), CLASSES))
    for label in range(CLASSES):
        one_hot = np.eye(CLASSES, dtype=np.float32)[[label]]
        prior = cvae.prior(one_hot)
        latent = prior.mean().numpy() + prior.stddev().numpy() * NODES[:, np.newaxis]
        likelihood = cvae.likelihood(latent.astype(np.float32), np.repeat(one_hot, len(NODES), 0))
        logits = likelihood.distribution.logits_parameter().numpy().astype(np.float64).reshape(len(NODES), -1)
        flat = image.reshape(len(image), -1)
        log_likelihood = flat @ logits.T - np.logaddexp(0, logits).sum(axis=1)
        result[:, label] = logsumexp(log_likelihood, axis=1, b=WEIGHTS)
    return result


def test_estimates_meet_the_integral_over_the_latent(narrow):
    image, label = sampled(narrow, 60)
    truth = exact(narrow, image)
    found = importance_estimate(narrow, image, label, num_samples=5000)
    np.testing.assert_allclose(found.log_likelihood, truth[np.arange(60), label], atol=0.05)
    # The average over the seeds of the weights themselves, not of their logarithm, has no bias.
    runs = np.stack(
        [importance_estimate(narrow, image, label, num_samples=40, seed=seed).log_likelihood for seed in range(60)]
    )
    ratio = np.exp(runs - truth[np.arange(60), label]).mean(axis=1)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(len(ratio))
    assert np.all(found.elbo < found.log_likelihood)


def test_log_evidence_and_bayes_rule_meet_the_integral(narrow):
    image, label = sampled(narrow, 60, seed=5)
    truth = exact(narrow, image)
    found = likelihood_under_each_label(narrow, image, label, num_samples=3000)
    likely = found.num_samples == 3000
    assert np.all(likely[np.arange(60), label])
    assert np.all(truth[~likely] < truth.max(axis=1).repeat(CLASSES).reshape(60, CLASSES)[~likely] - LABEL_MARGIN / 2)
    np.testing.assert_allclose(logsumexp(found.log_likelihood, axis=1), logsumexp(truth, axis=1), atol=0.05)
    decided = np.ptp(np.sort(truth, axis=1)[:, -2:], axis=1) > 0.2
    assert decided.sum() > 20
    np.testing.assert_array_equal(found.log_likelihood.argmax(axis=1)[decided], truth.argmax(axis=1)[decided])
    assert found.decoded == SAMPLES_PER_BLOCK * 60 * CLASSES + 3000 * likely.sum()


def test_unlikely_labels_keep_their_first_estimate(narrow):
    image, _ = sampled(narrow, 6)
    label = np.zeros(6, int)
    # Under the last label the hidden units saturate, and so do the pixels, most of them on the wrong side.
    bias = next(v for v in narrow.decoder.trainable_variables if v.shape == (CLASSES, 6))
    bias.assign(tf.concat([bias[:2], bias[2:] + 1000], axis=0))
    found = likelihood_under_each_label(narrow, image, label, num_samples=300)
    unlikely = found.log_likelihood.max(axis=1) - found.log_likelihood[:, 2] > LABEL_MARGIN
    assert unlikely.any()
    np.testing.assert_array_equal(found.num_samples[:, 2], np.where(unlikely, SAMPLES_PER_BLOCK, 300))
    np.testing.assert_array_equal(found.num_samples[:, 0], 300)


@pytest.mark.parametrize("num_samples", [1, 99, 100, 250])
@pytest.mark.parametrize("prior", ["label", "flow"])
def test_streamed_equals_all_weights_at_once(num_samples, prior):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16, prior=prior)
    for variable in cvae.prior_network.trainable_variables:
        variable.assign(variable + 0.1 * tf.random.stateless_normal(variable.shape, seed=[1, 2]))
    image = np.random.default_rng(0).integers(0, 2, (5, 8, 8, 1)).astype(np.float32)
    label = np.array([0, 1, 2, 0, 1])
    seed = 7
    found = importance_estimate(cvae, image, label, num_samples=num_samples, seed=seed)

    one_hot = np.eye(3, dtype=np.float32)[label]
    blocks = range(1, 1 + -(-num_samples // SAMPLES_PER_BLOCK))
    noise = [
        standard_normal(cvae.image_seed(image), [SAMPLES_PER_BLOCK, 4], stream=seed + block * 2**31) for block in blocks
    ]
    noise = np.concatenate(noise, axis=1)[:, :num_samples].transpose(1, 0, 2)
    posterior, prior = cvae.posterior(image, one_hot), cvae.prior(one_hot)
    latent = posterior.mean() + posterior.stddev() * noise
    output = CVAEOutput(posterior, prior, latent, cvae.likelihood(latent, one_hot))
    log_weight = objectives.log_weights(image, output).numpy().astype(np.float64)
    evidence = logsumexp(log_weight, axis=0) - np.log(num_samples)
    np.testing.assert_allclose(found.log_likelihood, evidence, rtol=1e-5)
    size = np.exp(2 * logsumexp(log_weight, axis=0) - logsumexp(2 * log_weight, axis=0))
    np.testing.assert_allclose(found.effective_sample_size, size, rtol=1e-3)
    np.testing.assert_allclose(found.distortion, objectives.distortion(image, output), rtol=1e-5)
    np.testing.assert_allclose(found.rate, objectives.rate(output), rtol=1e-4)
    assert found.num_samples == num_samples


@pytest.mark.parametrize("num_classes", [0, 3])
def test_results_do_not_depend_on_the_batch_size_or_the_neighbours(num_classes):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), num_classes, latent_size=4, width=16)
    image = np.random.default_rng(0).integers(0, 2, (7, 8, 8, 1)).astype(np.float32)
    label = np.arange(7) % 3 if num_classes else None
    names = ("log_likelihood", "effective_sample_size", "rate", "distortion")
    reference = importance_estimate(cvae, image, label, num_samples=200)
    for batch_size in (1, 300, 5000):
        again = importance_estimate(cvae, image, label, num_samples=200, batch_size=batch_size)
        for name in names:
            np.testing.assert_allclose(getattr(again, name), getattr(reference, name), rtol=1e-4)
    alone = importance_estimate(cvae, image[4:5], None if label is None else label[4:5], num_samples=200)
    np.testing.assert_allclose(alone.log_likelihood, reference.log_likelihood[4:5], rtol=1e-5)
    other = importance_estimate(cvae, image, label, num_samples=200, seed=1)
    assert np.all(other.log_likelihood != reference.log_likelihood)


def test_standard_errors_cover_the_truth_at_their_rate(narrow):
    """Of intervals of two standard errors, each from 40 images, 95% hold the mean over all images."""
    image, label = sampled(narrow, 8000, seed=11)
    mean = exact(narrow, image)[np.arange(8000), label].mean()
    found = importance_estimate(narrow, image, label, num_samples=100, batch_size=20_000).log_likelihood
    estimates = [Estimate.of(part) for part in found.reshape(200, 40)]
    covered = np.mean([abs(estimate.mean - mean) < 2 * estimate.standard_error for estimate in estimates])
    # 200 intervals: the standard deviation of this share is 1.5%.
    assert 0.90 < covered < 0.995


@pytest.mark.parametrize("shape", [(28, 28, 1), (7, 11, 3), (1, 13, 1), (67, 1, 1)])
def test_log_prob_with_few_logarithms_is_that_of_the_distribution(shape):
    keras.utils.set_random_seed(0)
    cvae = build_cvae(shape, 0, latent_size=2, width=4)
    for variable in cvae.decoder.trainable_variables:
        variable.assign(20 * variable)
    image = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    image[0] = image[0] > 0.5
    likelihood = cvae.likelihood(5 * tf.random.stateless_normal([6, 3, 2], seed=[0, 1]))
    assert np.abs(likelihood.distribution.logits_parameter()).max() > 30
    np.testing.assert_allclose(bernoulli_log_prob(image, likelihood), likelihood.log_prob(image), rtol=2e-5, atol=1e-3)


def test_eager_speed_of_the_products_is_measured(narrow):
    assert products_per_second(narrow, batch_size=10, seconds=0.01) > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer >= 1, got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples: expected an integer >= 1, got 2.0"),
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"label": None}, ValueError, "label: expected 0 to 2, got None"),
        ({"label": [0, 3]}, ValueError, "label: expected 0 to 2, got 3"),
        ({"label": [0, 1, 2]}, ValueError, "label: expected one for each of 2 images, got 3"),
        ({"image": np.zeros((2, 8, 8, 1))}, ValueError, r"image: expected shape \[n, 4, 3, 1\], got \[2, 8, 8, 1\]"),
        ({"image": np.full((2, 4, 3, 1), np.nan)}, ValueError, r"image: expected values in \[0, 1\], got nan"),
    ],
)
def test_mistakes(narrow, change, error, message):
    arguments = {"image": np.zeros((2, 4, 3, 1)), "label": [0, 1], **change}
    with pytest.raises(error, match=message):
        importance_estimate(narrow, arguments.pop("image"), arguments.pop("label"), **arguments)
