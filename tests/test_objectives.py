"""The mathematics against a model whose log-likelihood is known in closed form, and against NumPy."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from tensorflow_probability import distributions as tfd

from tfp_cvae import objectives
from tfp_cvae.outputs import CVAEOutput

# p(z|y) = N(m_y, diag(t_y)^2), p(x|z,y) = N(A z + b_y, s^2 I). The columns of A are orthogonal, so that
# the exact posterior is diagonal, as the encoder's is.
A = np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5], [0.0, 2.0]])
S = 0.7
M = np.array([[0.0, 0.0], [1.0, -2.0]])
T = np.array([[1.0, 0.5], [1.5, 2.0]])
B = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 1.0, -1.0, 0.0]])


@pytest.fixture
def observed():
    generator = np.random.default_rng(0)
    label = np.arange(40) % 2
    latent = M[label] + T[label] * generator.standard_normal((40, 2))
    return latent @ A.T + B[label] + S * generator.standard_normal((40, 5)), label


def log_evidence(x, label):
    noise = S**2 * np.eye(5)
    marginals = [stats.multivariate_normal(A @ M[k] + B[k], A @ np.diag(T[k] ** 2) @ A.T + noise) for k in range(2)]
    return np.array([marginals[k].logpdf(row) for row, k in zip(x, label, strict=True)])


def exact_posterior(x, label):
    assert (A.T @ A)[0, 1] == 0
    variance = 1 / (1 / T[label] ** 2 + np.diag(A.T @ A) / S**2)
    mean = variance * (M[label] / T[label] ** 2 + (x - B[label]) @ A / S**2)
    return mean, np.sqrt(variance)


def output(x, label, num_samples, seed, shift=0.0, stretch=1.0):
    """Model output with the exact posterior, or one that is off by `shift` and `stretch`."""
    mean, stddev = exact_posterior(x, label)
    posterior = tfd.MultivariateNormalDiag(mean + shift, stddev * stretch)
    latent = posterior.sample(num_samples, seed=[seed, 0])
    loc = tf.einsum("kbd,pd->kbp", latent, tf.constant(A)) + B[label]
    prior, likelihood = tfd.MultivariateNormalDiag(M[label], T[label]), tfd.MultivariateNormalDiag(loc, S * np.ones(5))
    return CVAEOutput(posterior, prior, latent, likelihood)


@pytest.mark.parametrize("num_samples", [1, 2, 50])
def test_with_the_exact_posterior_each_weight_and_bound_is_the_evidence(observed, num_samples):
    x, label = observed
    result = output(x, label, num_samples, seed=1)
    evidence = log_evidence(x, label)
    np.testing.assert_allclose(objectives.log_weights(x, result), np.tile(evidence, (num_samples, 1)), rtol=1e-9)
    np.testing.assert_allclose(objectives.iwae(x, result), evidence, rtol=1e-9)


def test_elbo_is_below_the_evidence_by_the_divergence_to_the_exact_posterior(observed):
    x, label = observed
    _, stddev = exact_posterior(x, label)
    shift, stretch = 0.3, 1.4
    # KL(N(mean + shift, (stretch stddev)^2) || N(mean, stddev^2)).
    gap = np.sum(-np.log(stretch) + (stretch**2 + (shift / stddev) ** 2) / 2 - 0.5, axis=-1).mean()
    draws = 400
    result = output(np.tile(x, (draws, 1)), np.tile(label, draws), 1, 0, shift, stretch)
    estimates = objectives.elbo(np.tile(x, (draws, 1)), result).numpy().reshape(draws, -1).mean(axis=1)
    standard_error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - (log_evidence(x, label).mean() - gap)) < 4 * standard_error
    assert standard_error < gap / 50


def test_iwae_rises_with_the_number_of_samples_and_stays_below_the_evidence(observed):
    x, label = observed
    bounds = []
    draws = 200
    many, labels = np.tile(x, (draws, 1)), np.tile(label, draws)
    for num_samples in (1, 4, 16, 64):
        result = output(many, labels, num_samples, num_samples, shift=0.3, stretch=1.4)
        means = objectives.iwae(many, result).numpy().reshape(draws, -1).mean(axis=1)
        bounds.append((means.mean(), means.std(ddof=1) / np.sqrt(draws)))
    for (lower, lower_error), (upper, upper_error) in itertools.pairwise(bounds):
        assert upper - lower > 4 * np.hypot(lower_error, upper_error)
    evidence = log_evidence(x, label).mean()
    assert bounds[-1][0] < evidence + 4 * bounds[-1][1]
    assert bounds[-1][0] > evidence - 0.05


def test_iwae_of_one_sample_is_the_elbo_on_that_sample(observed):
    x, label = observed
    result = output(x, label, 1, seed=3, shift=0.2)
    sampled_rate = (result.posterior.log_prob(result.latent) - result.prior.log_prob(result.latent))[0]
    np.testing.assert_allclose(objectives.iwae(x, result), -objectives.distortion(x, result) - sampled_rate, rtol=1e-12)


def test_rate_agrees_with_numpy_and_with_monte_carlo(observed):
    x, label = observed
    result = output(x, label, 20_000, seed=5, shift=0.5, stretch=0.8)
    mean, stddev = result.posterior.mean().numpy(), result.posterior.stddev().numpy()
    prior_stddev = T[label]
    per_dimension = (stddev**2 + (mean - M[label]) ** 2) / (2 * prior_stddev**2) - 0.5 - np.log(stddev / prior_stddev)
    np.testing.assert_allclose(objectives.rate_per_dimension(result), per_dimension, rtol=1e-9)
    np.testing.assert_allclose(objectives.rate(result), per_dimension.sum(axis=-1), rtol=1e-9)
    ratio = (result.posterior.log_prob(result.latent) - result.prior.log_prob(result.latent)).numpy()
    standard_error = ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))
    assert np.all(np.abs(ratio.mean(axis=0) - objectives.rate(result)) < 5 * standard_error)


def test_the_divergence_runs_from_posterior_to_prior():
    # KL(N(0, 2^2) || N(0, 1)) = 1.5 - log 2; the other direction is log 2 - 3/8.
    posterior, prior = tfd.MultivariateNormalDiag([[0.0]], [[2.0]]), tfd.MultivariateNormalDiag([0.0])
    result = CVAEOutput(posterior, prior, tf.zeros([1, 1, 1]), None)
    np.testing.assert_allclose(objectives.rate(result), [1.5 - np.log(2)], rtol=1e-6)
