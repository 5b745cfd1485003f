import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import spread_prior
from scipy.special import logsumexp

from tfp_cvae.build import build_cvae
from tfp_cvae.losses import ELBO, Distortion, NegativeELBO, NegativeIWAE, Rate, SemiSupervisedNegativeELBO
from tfp_cvae.model import CVAE


def numpy_terms(cvae, image, one_hot):
    """Rate [batch], log-likelihood [K, batch], log weights [K, batch] from the networks' raw outputs, in float64."""
    result = cvae((image, one_hot))
    mean, stddev, prior_mean, prior_stddev = parameters(result)
    latent = np.float64(result.latent)
    probability = np.float64(result.likelihood.mean())
    log_likelihood = np.where(image == 1, np.log(probability), np.log1p(-probability)).sum(axis=(-3, -2, -1))

    def log_normal(value, loc, scale):
        return (-(((value - loc) / scale) ** 2) / 2 - np.log(scale) - np.log(2 * np.pi) / 2).sum(axis=-1)

    log_weights = log_likelihood + log_normal(latent, prior_mean, prior_stddev) - log_normal(latent, mean, stddev)
    return numpy_rates(result).sum(axis=-1), log_likelihood, log_weights


def numpy_rates(result):
    """Rate of each latent dimension, [batch, latent_size], in float64."""
    mean, stddev, prior_mean, prior_stddev = parameters(result)
    return np.log(prior_stddev / stddev) + (stddev**2 + (mean - prior_mean) ** 2) / (2 * prior_stddev**2) - 0.5


def parameters(result):
    posterior, prior = result.posterior, result.prior
    return [np.float64(part()) for part in (posterior.mean, posterior.stddev, prior.mean, prior.stddev)]


@pytest.mark.parametrize("num_samples", [1, 3])
def test_negative_elbo_and_metrics_equal_numpy_whatever_the_batch_size(batch, num_samples):
    # 100 images: the last batch is ragged for 7 and 64.
    image, one_hot = batch[0][:100], batch[1][:100]
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16, prior="label", num_samples=num_samples)
    spread_prior(cvae)
    cvae.compile(loss=NegativeELBO(), metrics=[ELBO(), Rate(), Distortion()])
    # Once, as the noise of an image does not depend on its batch.
    rate, log_likelihood, _ = numpy_terms(cvae, image, one_hot)
    rate, distortion = rate.mean(), -log_likelihood.mean()
    expected = {"loss": rate + distortion, "elbo": -rate - distortion, "rate": rate, "distortion": distortion}
    for batch_size in (1, 7, 64):
        measured = cvae.evaluate((image, one_hot), image, batch_size=batch_size, verbose=0, return_dict=True)
        assert measured == pytest.approx(expected, rel=1e-5), batch_size


def test_the_rate_is_counted_once_in_what_training_minimises(cvae, batch):
    cvae.compile(loss=NegativeELBO())
    # No regularizer and no added loss stands beside the loss given to compile.
    assert cvae.losses == []
    image, one_hot = batch
    rate, log_likelihood, _ = numpy_terms(cvae, image, one_hot)
    per_image = NegativeELBO()(image, cvae((image, one_hot)))
    np.testing.assert_allclose(per_image, np.mean(rate - log_likelihood[0]), rtol=1e-5)


def test_negative_iwae_equals_numpy(batch):
    image, one_hot = batch
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16, prior="label", num_samples=5)
    spread_prior(cvae)
    _, _, log_weights = numpy_terms(cvae, image, one_hot)
    expected = -(logsumexp(log_weights, axis=0) - np.log(5))
    np.testing.assert_allclose(NegativeIWAE().call(image, cvae((image, one_hot))), expected, rtol=1e-5)


def test_kl_weight_and_free_bits_change_the_loss_and_not_the_metrics(cvae, batch):
    image, one_hot = batch
    rate, log_likelihood, _ = numpy_terms(cvae, image, one_hot)
    result = cvae((image, one_hot))
    per_dimension = numpy_rates(result).mean(axis=0)
    free = float(np.median(per_dimension))
    for loss, expected in (
        (NegativeELBO(kl_weight=0.25), np.mean(0.25 * rate - log_likelihood[0])),
        (NegativeELBO(free_bits=free), np.maximum(per_dimension, free).sum() - log_likelihood[0].mean()),
    ):
        assert np.mean(loss(image, result)) == pytest.approx(expected, rel=1e-5)
        cvae.compile(loss=loss, metrics=[ELBO()])
        measured = cvae.evaluate((image, one_hot), image, batch_size=len(image), verbose=0, return_dict=True)
        assert measured["loss"] == pytest.approx(expected, rel=1e-5)
        assert measured["elbo"] == pytest.approx(np.mean(log_likelihood[0] - rate), rel=1e-5)
        assert abs(measured["loss"] + measured["elbo"]) > 1e-3


@pytest.mark.parametrize("loss", [NegativeELBO(kl_weight=0.5, free_bits=0.25), NegativeIWAE(name="bound")])
def test_losses_survive_a_configuration_round_trip(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize("argument", ["kl_weight", "free_bits", "classification_weight"])
@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (-0.1, ValueError, "number >= 0, got -0.1"),
        (float("nan"), ValueError, "number >= 0, got nan"),
        (float("inf"), ValueError, "finite number >= 0, got inf"),
        ("1", TypeError, "number >= 0, got '1' of type str"),
        (True, TypeError, "number >= 0, got True of type bool"),
    ],
)
def test_weights_that_cannot_be(argument, value, error, got):
    with pytest.raises(error, match=f"{argument}: expected a {got}"):
        SemiSupervisedNegativeELBO(**{argument: value})


def test_weights_of_numpy_are_saved_as_numbers():
    loss = NegativeELBO(kl_weight=np.float32(0.5), free_bits=np.int64(1))
    assert [type(loss.get_config()[name]) for name in ("kl_weight", "free_bits")] == [float, float]


@pytest.mark.parametrize("loss", [NegativeELBO(), NegativeELBO(kl_weight=0.3, free_bits=0.05), NegativeIWAE()])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_gradient_is_that_of_the_loss_with_the_noise_held_fixed(cvae, batch, loss, num_samples):
    """Central differences along a random direction through all weights, in float32."""
    cvae = CVAE(cvae.encoder, cvae.decoder, cvae.prior_network, num_samples)
    image, one_hot = batch[0][:16], batch[1][:16]
    variables = cvae.trainable_variables
    generator = np.random.default_rng(0)
    direction = [generator.standard_normal(variable.shape).astype(np.float32) for variable in variables]
    with tf.GradientTape() as tape:
        value = loss(image, cvae((image, one_hot)))
    gradient = tape.gradient(value, variables)
    # Every network has its part in it: the encoder by way of the samples, too.
    assert all(part is not None and np.any(part) for part in gradient)
    expected = sum(np.sum(part * step) for part, step in zip(gradient, direction, strict=True))

    def moved(size):
        for variable, step in zip(variables, direction, strict=True):
            variable.assign_add(size * step)
        result = float(loss(image, cvae((image, one_hot))))
        for variable, step in zip(variables, direction, strict=True):
            variable.assign_sub(size * step)
        return result

    size = 2e-3
    assert (moved(size) - moved(-size)) / (2 * size) == pytest.approx(expected, rel=0.02)


def test_the_encoder_learns_through_the_samples(cvae, batch):
    image, one_hot = batch
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(Distortion.objective(image, cvae((image, one_hot))))
    for part in tape.gradient(value, cvae.encoder.trainable_variables):
        assert np.abs(part).max() > 1e-4


@pytest.mark.parametrize("measure", [NegativeELBO(), NegativeELBO(free_bits=0.1), NegativeIWAE(), ELBO(), Rate()])
@pytest.mark.parametrize("shape", [(4, 8, 8, 1), (4, 8), (4, 1, 1)])
def test_pixels_are_not_weighed(cvae, batch, measure, shape):
    image, one_hot = batch[0][:4], batch[1][:4]
    with pytest.raises(ValueError, match=r"sample_weight: expected \[batch\], a weight for each image, got shape"):
        measure(image, cvae((image, one_hot)), sample_weight=np.ones(shape, np.float32))


@pytest.mark.parametrize("has_free_bits", [False, True])
def test_images_are_weighed(cvae, batch, has_free_bits):
    image, one_hot = batch[0][:6], batch[1][:6]
    weight = np.array([0, 2, 1, 0, 0.5, 3], np.float32)
    rate, (log_likelihood,), _ = numpy_terms(cvae, image, one_hot)
    elbo, free = log_likelihood - rate, 0.0
    if has_free_bits:
        # In the rate of the batch all images count the same.
        per_dimension = numpy_rates(cvae((image, one_hot))).mean(axis=0)
        free = float(np.median(per_dimension))
        rate = np.maximum(per_dimension, free).sum()
    each = rate - log_likelihood
    cvae.compile("adam", loss=NegativeELBO(free_bits=free), weighted_metrics=[ELBO()])
    for weights in (weight, weight[:, np.newaxis]):
        found = cvae.evaluate((image, one_hot), image, sample_weight=weights, verbose=0, return_dict=True)
        # As of all losses of Keras: the sum, over the number of images.
        assert found["loss"] == pytest.approx(np.sum(weight * each) / 6, rel=1e-5)
        assert found["elbo"] == pytest.approx(np.sum(weight * elbo) / np.sum(weight), rel=1e-5)
