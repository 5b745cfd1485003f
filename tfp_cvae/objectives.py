"""The mathematics: rate, distortion and the bounds made from them, as pure functions from a model output to `[batch]`.

With z_1, ..., z_K drawn from q(z|x,y):

    rate          R    = KL(q(z|x,y) || p(z|y))
    distortion    D    = -1/K sum_k log p(x|z_k,y)
    ELBO               = -D - R                                                  <= log p(x|y) in expectation
    log weight    l_k  = log p(x|z_k,y) + log p(z_k|y) - log q(z_k|x,y)
    IWAE bound         = log 1/K sum_k exp(l_k)                                  <= log p(x|y) in expectation

Of a `SemiSupervisedOutput` the label is latent where it was not given. Its distribution w(y) is all on the label that
was given, or q(y|x), so that the bounds are -L(x,y) and -U(x) of Kingma et al. 2014, eq. 6 and 7, with p(y) in them:

    rate          R    = sum_y w(y) R(y) + KL(w(y) || p(y))
    distortion    D    = sum_y w(y) D(y)
    ELBO               = -D - R                      <= log p(x,y) with a label, <= log p(x) without, in expectation
    IWAE bound         = log sum_y p(y) exp(IWAE bound given y), the sum over the label that was given, or over all

All are in nats per image. The names rate and distortion are those of Alemi et al. 2018, "Fixing a broken ELBO". The
`output` of each function is what `CVAE.__call__` returns: an object with the distributions `posterior`, `prior` and
`likelihood`, the `latent` samples `[K, batch, latent_size]`, and their `log_prior` `[K, batch]`.
"""

from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_cvae.outputs import SemiSupervisedOutput


def rate(output: Any) -> tf.Tensor:
    """Rate KL(q(z|x,y) || p(z|y)): in closed form where there is one, else estimated from the K latent samples.

        R  ~  1/K sum_k log q(z_k|x,y) - log p(z_k|y)

    The gradient of the estimate is taken along the samples alone. What is left out, the gradient of log q with respect
    to its own parameters, is zero in expectation, and all noise where q is close to the true posterior (Roeder et al.
    2017, "Sticking the landing").

    Args:
        output: Model output.

    Returns:
        `[batch]` float32, nats per image; >= 0, an estimate of it only in expectation.
    """
    if isinstance(output, SemiSupervisedOutput):
        return output.expectation(rate(output.given_each_label)) + output.label_rate()
    exact = exact_rate(output.posterior, output.prior)
    if exact is not None:
        return exact
    loc, scale = tf.stop_gradient(output.posterior.mean()), tf.stop_gradient(output.posterior.stddev())
    log_posterior = tfd.MultivariateNormalDiag(loc, scale).log_prob(output.latent)
    return tf.reduce_mean(log_posterior - output.log_prior, axis=0)


def exact_rate(posterior: tfd.Distribution, prior: tfd.Distribution) -> tf.Tensor | None:
    """Rate KL(q(z|x,y) || p(z|y)) in closed form; None where there is none, as for a prior that is a flow.

    Args:
        posterior: q(z|x,y), batch shape `[batch]`.
        prior: p(z|y), batch shape `[batch]` or `[]`.

    Returns:
        `[batch]` float32, nats per image, >= 0.
    """
    try:
        return tfd.kl_divergence(posterior, prior)
    except NotImplementedError:
        return None


def log_ratio(output: Any) -> tf.Tensor:
    """Log density ratio log p(z_k|y) - log q(z_k|x,y) of each latent sample, whose mean estimates -R.

    Args:
        output: Output of a `CVAE`; of a `SemiSupervisedCVAE` its `given_each_label`.

    Returns:
        `[K, batch]` float32, nats per image.
    """
    return output.log_prior - output.posterior.log_prob(output.latent)


def rate_per_dimension(output: Any) -> tf.Tensor:
    """Rate of each latent dimension; the sum over the last axis is `rate`. Both distributions have to be diagonal.

    Args:
        output: Model output.

    Returns:
        `[batch, latent_size]` float32, nats per image, >= 0; of a `SemiSupervisedOutput` with one more for the label.

    Raises:
        ValueError: If the prior is not diagonal, such as a flow.
    """
    if isinstance(output, SemiSupervisedOutput):
        of_latent = output.expectation(rate_per_dimension(output.given_each_label))
        return tf.concat([of_latent, output.label_rate()[:, tf.newaxis]], axis=-1)
    parts = diagonal_rate(output.posterior, output.prior)
    if parts is None:
        raise ValueError(
            "prior: expected a diagonal one for the rate of each dimension (free_bits), got "
            f"{type(output.prior).__name__}, whose KL has no parts"
        )
    return parts


def diagonal_rate(posterior: tfd.Distribution, prior: tfd.Distribution) -> tf.Tensor | None:
    """Rate of each latent dimension of two diagonal normal distributions; None for others, such as a flow.

    Args:
        posterior: q(z|x,y), batch shape `[batch]`.
        prior: p(z|y), batch shape `[batch]` or `[]`.

    Returns:
        `[batch, latent_size]` float32, nats per image, >= 0.
    """
    if exact_rate(posterior, prior) is None:
        return None
    return tfd.kl_divergence(tfd.Normal(posterior.mean(), posterior.stddev()), tfd.Normal(prior.mean(), prior.stddev()))


def log_likelihood(image: tf.Tensor, output: Any) -> tf.Tensor:
    """Log-likelihood log p(x|z_k,y) of each latent sample.

    Args:
        image: `[batch, height, width, channels]` float32, in {0, 1}.
        output: Output of a `CVAE`; of a `SemiSupervisedCVAE` its `given_each_label`.

    Returns:
        `[K, batch]` float32, nats per image.
    """
    return output.likelihood.log_prob(image)


def distortion(image: tf.Tensor, output: Any) -> tf.Tensor:
    """Distortion -E_q[log p(x|z,y)], estimated by the mean over the K latent samples.

    Args:
        image: `[batch, height, width, channels]` float32, in {0, 1}.
        output: Model output.

    Returns:
        `[batch]` float32, nats per image.
    """
    if isinstance(output, SemiSupervisedOutput):
        return output.expectation(distortion(output.for_each_label(image), output.given_each_label))
    return -tf.reduce_mean(log_likelihood(image, output), axis=0)


def elbo(image: tf.Tensor, output: Any) -> tf.Tensor:
    """Evidence lower bound E_q[log p(x|z,y)] - KL(q(z|x,y) || p(z|y)).

    Source: Kingma and Welling 2014, eq. 3 and 7; with a label, Sohn et al. 2015, eq. 4.

    Args:
        image: `[batch, height, width, channels]` float32, in {0, 1}.
        output: Model output.

    Returns:
        `[batch]` float32, nats per image.
    """
    return -distortion(image, output) - rate(output)


def log_weights(image: tf.Tensor, output: Any) -> tf.Tensor:
    """Log importance weights log p(x|z_k,y) + log p(z_k|y) - log q(z_k|x,y).

    Args:
        image: `[batch, height, width, channels]` float32, in {0, 1}.
        output: Output of a `CVAE`; of a `SemiSupervisedCVAE` its `given_each_label`.

    Returns:
        `[K, batch]` float32, nats per image.
    """
    return log_likelihood(image, output) + log_ratio(output)


def iwae(image: tf.Tensor, output: Any) -> tf.Tensor:
    """Importance-weighted bound log 1/K sum_k w_k.

    Source: Burda et al. 2015, eq. 8.

    Args:
        image: `[batch, height, width, channels]` float32, in {0, 1}.
        output: Model output.

    Returns:
        `[batch]` float32, nats per image.
    """
    if isinstance(output, SemiSupervisedOutput):
        given_label = output.by_label(iwae(output.for_each_label(image), output.given_each_label))
        return tf.reduce_logsumexp(given_label + output.log_label_prior(), axis=-1)
    log_weight = log_weights(image, output)
    num_samples = tf.cast(tf.shape(log_weight)[0], log_weight.dtype)
    return tf.reduce_logsumexp(log_weight, axis=0) - tf.math.log(num_samples)


def label_surprise(output: Any) -> tf.Tensor:
    """Surprise -log q(y|x) at the label that was given, the classification term; 0 where none was.

    Source: Kingma, Rezende, Mohamed and Welling 2014, eq. 9.

    Args:
        output: A `SemiSupervisedOutput`.

    Returns:
        `[batch]` float32, nats per image, >= 0.
    """
    # Of a row of zeros the value is 0 anyway, but not the gradient, which TensorFlow derives for rows that sum to 1.
    return -output.labelled * output.label_posterior.log_prob(output.one_hot)
