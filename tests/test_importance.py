"""Importance sampling against numerical integration over the latent, and against all weights at once."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import spread_prior
from scipy.special import logsumexp

from tfp_cvae import objectives
from tfp_cvae.build import build_cvae
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.importance import SAMPLES_PER_BLOCK, bernoulli_log_prob, importance_estimate, products_per_second
from tfp_cvae.layers import IndependentBernoulli
from tfp_cvae.likelihood import likelihood_under_each_label
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.model import CVAE
from tfp_cvae.noise import standard_normal
from tfp_cvae.outputs import CVAEOutput
from tfp_cvae.results import Estimate

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
    cvae.fit((image, one_hot), image, batch_size=50, epochs=30, verbose=0)
    return cvae.encoder.get_weights()


@pytest.fixture
def narrow():
    weights = fitted_encoder()
    cvae = spread_out()
    cvae.encoder.set_weights(weights)
    return cvae


def small(prior):
    """A model of 8x8 images with a prior for each class: a normal, or a flow."""
    cvae = build_cvae((8, 8, 1), CLASSES, latent_size=4, width=16, prior="label")
    if prior == "label":
        return cvae
    one_hot = keras.Input((CLASSES,))
    return CVAE(cvae.encoder, cvae.decoder, keras.Model(one_hot, CouplingFlow(4, depth=2, width=16)(one_hot)))


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
    # Where q is as good as the true posterior they are the same but for the noise of the samples.
    assert np.all(found.elbo < truth[np.arange(60), label] + 0.05)
    assert found.elbo.mean() < found.log_likelihood.mean()
    # The mean weight itself, not its logarithm, has no bias, however few the samples.
    image, label = sampled(narrow, 1500, seed=1)
    few = importance_estimate(narrow, image, label, num_samples=5)
    ratio = np.exp(few.log_likelihood - exact(narrow, image)[np.arange(1500), label])
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(len(ratio))
    assert ratio.std() > 0.02


def test_log_evidence_and_bayes_rule_meet_the_integral(narrow):
    image, label = sampled(narrow, 60, seed=5)
    truth = exact(narrow, image)
    found = likelihood_under_each_label(narrow, image, label, num_samples=3000)
    likely = found.num_samples == 3000
    assert np.all(likely[np.arange(60), label])
    np.testing.assert_allclose(logsumexp(found.blind, axis=1), logsumexp(truth, axis=1), atol=0.05)
    decided = np.ptp(np.sort(truth, axis=1)[:, -2:], axis=1) > 0.2
    assert decided.sum() > 20
    np.testing.assert_array_equal(found.log_likelihood.argmax(axis=1)[decided], truth.argmax(axis=1)[decided])
    assert found.decoded == SAMPLES_PER_BLOCK * 60 * CLASSES + 3000 * likely.sum()


def test_unlikely_labels_keep_their_first_estimate(narrow):
    image, label = sampled(narrow, 6)
    # Under the last label the hidden units saturate, and so do the pixels, most of them on the wrong side.
    bias = next(v for v in narrow.decoder.trainable_variables if v.shape == (CLASSES, 6))
    bias.assign(tf.concat([bias[:2], bias[2:] + 1000], axis=0))
    first = likelihood_under_each_label(narrow, image, num_samples=SAMPLES_PER_BLOCK)
    # A margin at which about half of the labels are unlikely.
    gap = first.blind.max(axis=1, keepdims=True) - first.blind
    margin = float(np.median(gap[gap > 0]))
    unlikely = gap > margin
    seen = likelihood_under_each_label(narrow, image, label, num_samples=300, label_margin=margin)
    unseen = likelihood_under_each_label(narrow, image, num_samples=300, label_margin=margin)
    every = likelihood_under_each_label(narrow, image, num_samples=300, label_margin=1e9)
    np.testing.assert_array_equal(unseen.num_samples, np.where(unlikely, SAMPLES_PER_BLOCK, 300))
    np.testing.assert_allclose(unseen.blind, np.where(unlikely, first.blind, every.blind), rtol=1e-5)
    # A label that cannot be is no measure for the others, nor gets more samples.
    log_prior = np.array([-np.inf, -np.inf, 0.0])
    joint = first.blind + log_prior
    weighed = likelihood_under_each_label(
        narrow, image, num_samples=300, label_margin=margin, log_class_probabilities=log_prior
    )
    likely = joint >= joint.max(axis=1, keepdims=True) - margin
    assert np.any(likely & unlikely)
    np.testing.assert_array_equal(weighed.num_samples, np.where(likely, 300, SAMPLES_PER_BLOCK))
    # The true label is weighed with all samples, which classification must not profit from.
    true = np.eye(CLASSES, dtype=bool)[label]
    assert np.any(unlikely & true)
    np.testing.assert_array_equal(seen.num_samples, np.where(unlikely & ~true, SAMPLES_PER_BLOCK, 300))
    np.testing.assert_allclose(seen.blind, unseen.blind, rtol=1e-5)
    np.testing.assert_allclose(seen.log_likelihood[true], every.log_likelihood[true], rtol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 99, 100, 250])
@pytest.mark.parametrize("prior", ["label", "flow"])
def test_streamed_equals_all_weights_at_once(num_samples, prior):
    keras.utils.set_random_seed(0)
    cvae = small(prior)
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
    np.testing.assert_array_equal(found.num_samples, num_samples)


@pytest.mark.parametrize("prior", ["label", "flow"])
def test_compiled_equals_not_compiled(prior):
    keras.utils.set_random_seed(0)
    cvae = small(prior)
    image = np.random.default_rng(0).integers(0, 2, (5, 8, 8, 1)).astype(np.float32)
    found = [
        importance_estimate(cvae, image, [0, 1, 2, 0, 1], num_samples=150, jit_compile=jit) for jit in (False, True)
    ]
    np.testing.assert_allclose(found[0].log_likelihood, found[1].log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(found[0].effective_sample_size, found[1].effective_sample_size, rtol=1e-3)


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
    one = importance_estimate(cvae, image, None if label is None else label[4], index=4, num_samples=200)
    np.testing.assert_array_equal(one.log_likelihood, alone.log_likelihood)
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


@pytest.mark.parametrize("network", ["mlp", "residual", "conv"])
@pytest.mark.parametrize("prior", ["standard", "label", "flow"])
def test_speed_of_the_products_is_measured(network, prior):
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=4, network=network, prior=prior)
    assert products_per_second(cvae, batch_size=10, seconds=0.01) > 0


def test_speed_of_products_that_are_not_known_is_left_out(cvae):
    latent = keras.Input((4,), name="latent")
    logits = keras.layers.EinsumDense("bi,ij->bj", 64)(latent)
    decoder = keras.Model(latent, IndependentBernoulli((8, 8, 1))(logits))
    own = CVAE(cvae.encoder, decoder)
    assert products_per_second(own) is None
    image = np.zeros((2, 8, 8, 1), np.float32)
    assert np.all(importance_estimate(own, image, [0, 1], num_samples=10).log_likelihood < 0)


def test_many_calls_are_no_reason_for_a_warning(narrow, caplog):
    for num_samples in range(1, 8):
        importance_estimate(narrow, np.zeros((2, 4, 3, 1)), [0, 1], num_samples=num_samples)
    assert "retracing" not in caplog.text


def test_no_more_latents_are_decoded_than_are_asked_for(narrow, monkeypatch):
    sizes = []
    likelihood = CVAE.likelihood

    def counted(self, latent, one_hot=None):
        sizes.append(latent.shape.as_list())
        return likelihood(self, latent, one_hot)

    monkeypatch.setattr(CVAE, "likelihood", counted)
    importance_estimate(narrow, np.zeros((2, 4, 3, 1)), [0, 1], num_samples=np.uint64(10))
    assert sizes == [[SAMPLES_PER_BLOCK, 2, 1]]


@pytest.mark.parametrize("image", [None, np.zeros((0, 4, 3, 1))])
def test_no_images_under_each_label(narrow, image):
    with pytest.raises(ValueError, match="image: expected "):
        likelihood_under_each_label(narrow, image)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([np.nan] * 3, ValueError, "expected the logarithms of 3 probabilities, which sum to 1, got"),
        ([0.0, 0.0], ValueError, "expected the logarithms of 3 probabilities"),
        # Not their logarithms.
        ([0.5, 0.25, 0.25], ValueError, r".*got \[0.5, 0.25, 0.25\]; pass np.log\(probabilities\)"),
        ([-np.inf] * 3, ValueError, "expected the logarithms of 3 probabilities"),
        (["a", "b", "c"], TypeError, "expected 3 numbers"),
    ],
)
def test_wrong_log_class_probabilities(cvae, given, error, message):
    with pytest.raises(error, match=f"log_class_probabilities: {message}"):
        likelihood_under_each_label(cvae, np.zeros((2, 8, 8, 1)), num_samples=1, log_class_probabilities=given)


def test_weights_that_are_not_finite_are_named(narrow):
    narrow.decoder.trainable_variables[0].assign(narrow.decoder.trainable_variables[0] * np.nan)
    with pytest.raises(ValueError, match="cvae: expected finite likelihoods, got NaN or infinity"):
        importance_estimate(narrow, np.zeros((2, 4, 3, 1)), [0, 1], num_samples=10)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer >= 1, got 0"),
        ({"num_samples": 2**31}, ValueError, "num_samples: expected an integer >= 1 and < 2147483648, got 2147483648"),
        ({"num_samples": 2.0}, TypeError, "num_samples: expected an integer >= 1, got 2.0"),
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"index": [0, 2]}, ValueError, "index: expected 0 to 1, got 2"),
        ({"label": None}, ValueError, "label: expected 0 to 2, got None"),
        ({"label": [0, 3]}, ValueError, "label: expected 0 to 2, got 3"),
        ({"label": [0, 1, 2]}, ValueError, "label: expected one for each of 2 images, got 3"),
        ({"image": np.zeros((2, 8, 8, 1))}, ValueError, r"image: expected shape \[n, 4, 3, 1\], got \[2, 8, 8, 1\]"),
        ({"image": np.zeros((0, 4, 3, 1)), "label": []}, ValueError, "image: expected at least one, got 0 images"),
        ({"image": np.full((2, 4, 3, 1), np.nan)}, ValueError, r"image: expected values in \[0, 1\], got nan"),
    ],
)
def test_mistakes(narrow, change, error, message):
    arguments = {"image": np.zeros((2, 4, 3, 1)), "label": [0, 1], **change}
    with pytest.raises(error, match=message):
        importance_estimate(narrow, arguments.pop("image"), arguments.pop("label"), **arguments)
