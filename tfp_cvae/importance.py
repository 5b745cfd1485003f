"""Importance sampling of log p(x|y), streamed: the memory it needs does not grow with the number of samples.

With z_1, ..., z_K drawn from q(z|x,y) and the weights w_k = p(x|z_k,y) p(z_k|y) / q(z_k|x,y),

    log p(x|y)  >=  log 1/K sum_k w_k  in expectation, and tends to it as K grows (Burda et al. 2015, theorem 1)
    effective sample size  =  (sum_k w_k)^2 / sum_k w_k^2,  between 1 and K (Kong 1992)

The sums run over blocks of samples and are kept relative to the largest weight so far, so that none overflows.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_probability import distributions as tfd

from tfp_cvae import array_checks, checks, distribution, objectives
from tfp_cvae.layers import PixelBias, clear_bijector_cache
from tfp_cvae.model import CVAE
from tfp_cvae.noise import standard_normal
from tfp_cvae.outputs import CVAEOutput

# Samples drawn at once. A sample is a function of the image, the seed and its place in its block.
SAMPLES_PER_BLOCK = 100

_COUNTED = (keras.layers.Dense, keras.layers.Conv2D, keras.layers.Conv2DTranspose)


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceEstimate:
    """Estimates of images under labels, arrays of one shape.

    Attributes:
        log_likelihood: Importance-weighted estimate of log p(x|y), float64, nats.
        effective_sample_size: float64, in [1, K].
        rate: KL(q(z|x,y) || p(z|y)), float64, nats.
        distortion: -1/K sum_k log p(x|z_k,y), float64, nats.
        num_samples: K, int64.
    """

    log_likelihood: np.ndarray
    effective_sample_size: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    num_samples: np.ndarray

    @property
    def elbo(self) -> np.ndarray:
        """Evidence lower bound -distortion - rate, float64, nats."""
        return -self.distortion - self.rate


def importance_estimate(
    cvae: CVAE,
    image: np.ndarray,
    label: np.ndarray | None = None,
    *,
    index: np.ndarray | None = None,
    num_samples: int = 5000,
    seed: int = 0,
    batch_size: int = 1000,
    jit_compile: bool = False,
    progress: Callable[[int], None] | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> ImportanceEstimate:
    """Estimates log p(x|y) by importance sampling from q(z|x,y).

    Args:
        cvae: The model.
        image: `[n, height, width, channels]` float, in [0, 1]; {0, 1} for nats that can be compared.
        label: `[m]` integer, in [0, num_classes); None without classes.
        index: Which image each estimate is of, `[m]` integer in [0, n); None for each of them once, so that m = n.
        num_samples: Importance samples K for each estimate, >= 1.
        seed: Seed of the samples, in [0, 2**31). The result does not depend on how images are batched.
        batch_size: Latents decoded at once, rounded to whole blocks of `SAMPLES_PER_BLOCK`.
        jit_compile: Whether to compile with XLA, which makes dense networks faster and convolutions slower.
        progress: Called with the number of latents weighed since its last call.
        strategy: Strategy whose workers each weigh a part, and call this with the same arguments; None for one process.

    Returns:
        The estimates, `[m]`.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value or shape is out of range, or the model gives numbers that are not finite.
    """
    image = array_checks.images("image", image, cvae.image_shape)
    num_samples = checks.num_samples("num_samples", num_samples)
    batch_size = checks.integer("batch_size", batch_size, 1)
    seed = checks.seed("seed", seed)
    index = np.arange(len(image)) if index is None else np.atleast_1d(array_checks.integers("index", index))
    if not len(index) or not len(image):
        raise ValueError(f"image: expected at least one, got {len(image)} images for {len(index)} estimates")
    array_checks.labels("index", index, len(image))
    one_hot = cvae.one_hot(label, len(index))
    group = min(max(1, round(batch_size / SAMPLES_PER_BLOCK)), len(index))
    # As a concrete function, for TensorFlow would warn of the tracings where this is called again.
    estimate = tf.function(
        estimator(cvae, num_samples, jit_compile=jit_compile), autograph=False
    ).get_concrete_function(
        tf.TensorSpec([group, *cvae.image_shape]),
        None if one_hot is None else tf.TensorSpec([group, cvae.num_classes]),
        tf.TensorSpec([], tf.int64),
    )
    seed = tf.constant(seed, tf.int64)

    own = distribution.rows_of_worker(len(index), strategy)
    parts = []
    for start in range(0, len(own), group):
        # Always full groups, so that the function is traced once and each image has the same products.
        rows = own[np.minimum(np.arange(start, start + group), len(own) - 1)]
        found = estimate(tf.constant(image[index[rows]]), None if one_hot is None else tf.gather(one_hot, rows), seed)
        kept = min(group, len(own) - start)
        parts.append(np.stack([np.asarray(part, np.float64)[:kept] for part in found], axis=1))
        if not np.all(np.isfinite(parts[-1])):
            # What is left of them; all workers are to know it.
            parts.append(np.full([len(own) - start - kept, 4], np.nan))
            break
        if progress is not None:
            progress(kept * num_samples)
    clear_bijector_cache()
    estimates = distribution.gathered(np.concatenate([np.zeros([0, 4]), *parts]), strategy)
    if not np.all(np.isfinite(estimates)):
        raise ValueError("cvae: expected finite likelihoods, got NaN or infinity; its weights may be so too")
    log_likelihood, effective_sample_size, rate, distortion = estimates.T
    used = np.full(len(index), num_samples)
    return ImportanceEstimate(log_likelihood, effective_sample_size, rate, distortion, used)


def products_per_second(
    cvae: CVAE, *, batch_size: int = 1000, jit_compile: bool = False, seconds: float = 1.0
) -> float | None:
    """Latents a second that the matrix products and convolutions of decoder and prior alone would allow.

    Args:
        cvae: The model.
        batch_size: Latents decoded at once.
        jit_compile: Whether to compile with XLA.
        seconds: Time to measure for.

    Returns:
        The rate; None for networks with products in other layers than `Dense`, `Conv2D` and `Conv2DTranspose`.
    """
    networks = [cvae.decoder, *([cvae.prior_network] if cvae.prior_network else [])]
    layers = [
        layer
        for network in networks
        for layer in network.submodules
        if isinstance(layer, keras.layers.Layer) and not isinstance(layer, PixelBias)
    ]
    with_products = [layer for layer in layers if any(weight.shape.rank > 1 for weight in _own_weights(layer))]
    if not all(type(layer) in _COUNTED and len(layer.inbound_nodes) == 1 for layer in with_products):
        return None
    inputs = [
        tf.cast(tf.random.stateless_normal([batch_size, *layer.input_shape[1:]], seed=[0, 0]), layer.compute_dtype)
        for layer in with_products
    ]
    bare = [
        type(layer).from_config({**layer.get_config(), "activation": None, "use_bias": False})
        for layer in with_products
    ]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def products(inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        return [layer(tensor) for layer, tensor in zip(bare, inputs, strict=True)]

    products(inputs)
    begin, runs = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        products(inputs)
        runs += 1
    return batch_size * runs / (time.perf_counter() - begin)


def _own_weights(layer: keras.layers.Layer) -> list[tf.Variable]:
    """Weights of a layer itself, without those of the layers in it."""
    inner = {id(weight) for part in layer.submodules if isinstance(part, keras.layers.Layer) for weight in part.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]


def bernoulli_log_prob(image: tf.Tensor, likelihood: tfd.Distribution) -> tf.Tensor:
    """`likelihood.log_prob(image)` of Bernoulli pixels with a logarithm for many pixels instead of one for each.

        sum_j x_j l_j - log(1 + exp(l_j))  =  sum_j [x_j l_j - max(l_j, 0)] - log prod_j (1 + exp(-|l_j|))

    Args:
        image: `[batch, height, width, channels]` float32, in [0, 1].
        likelihood: p(x|z,y) with logits l, batch shape `[..., batch]`.

    Returns:
        `[..., batch]` float32, nats.
    """
    logits = likelihood.distribution.logits_parameter()
    pixels = math.prod(image.shape[1:])
    # Each factor is at most 2, so that a product of 64 is far from overflowing.
    factors = max(size for size in range(1, 65) if pixels % size == 0)
    shape = tf.concat([tf.shape(logits)[:-3], [pixels // factors, factors]], axis=0)
    logits, image = tf.reshape(logits, shape), tf.reshape(image, [-1, pixels // factors, factors])
    linear = tf.reduce_sum(image * logits - tf.nn.relu(logits), axis=[-2, -1])
    return linear - tf.reduce_sum(tf.math.log(tf.reduce_prod(1 + tf.exp(-tf.abs(logits)), axis=-1)), axis=-1)


def _block_terms(cvae: CVAE) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Function of a block of latents: log p(x|z,y), and log p(z|y) - log q(z|x,y), each `[samples, group]`."""

    def terms(
        image: tf.Tensor, one_hot: tf.Tensor | None, mean: tf.Tensor, stddev: tf.Tensor, noise: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        latent = mean + stddev * tf.transpose(noise, [1, 0, 2])
        posterior = tfd.MultivariateNormalDiag(mean, stddev)
        output = CVAEOutput(posterior, cvae.prior(one_hot), latent, cvae.likelihood(latent, one_hot))
        return bernoulli_log_prob(image, output.likelihood), objectives.log_ratio(output)

    return terms


def estimator(
    cvae: CVAE, num_samples: int, *, jit_compile: bool = False
) -> Callable[[tf.Tensor, tf.Tensor | None, tf.Tensor], tuple[tf.Tensor, ...]]:
    """Makes the function that `importance_estimate` runs for each group of images, for other graphs to run too.

    Args:
        cvae: The model.
        num_samples: Importance samples K, >= 1.
        jit_compile: Whether to compile the blocks with XLA.

    Returns:
        Function of image `[n, height, width, channels]` float32 with n static, one_hot `[n, num_classes]` float32 or
        None, and seed `[]` int64 in [0, 2**31), to log-likelihood, effective sample size, rate and distortion, each
        `[n]` float32.
    """
    weigh = tf.function(_block_terms(cvae), jit_compile=jit_compile, autograph=False)

    def estimate(image: tf.Tensor, one_hot: tf.Tensor | None, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return _estimate(cvae, weigh, image, one_hot, num_samples, seed)

    return estimate


def _estimate(
    cvae: CVAE,
    weigh: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    image: tf.Tensor,
    one_hot: tf.Tensor | None,
    num_samples: int,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    posterior = cvae.posterior(image, one_hot)
    mean, stddev = posterior.mean(), posterior.stddev()
    image_seed = cvae.image_seed(image)
    size = image.shape[0]

    def block(index: tf.Tensor, largest: tf.Tensor, total: tf.Tensor, squares: tf.Tensor, terms: tf.Tensor) -> tuple:
        # Blocks count from 1, as the stream 0 is that of `latents.posterior_statistics`. The noise is drawn outside of
        # `weigh`, as XLA would draw another one.
        stream = seed + (tf.cast(index, tf.int64) + 1) * 2**31
        noise = standard_normal(image_seed, [SAMPLES_PER_BLOCK, cvae.latent_size], stream=stream)
        noise = tf.ensure_shape(noise, [size, SAMPLES_PER_BLOCK, cvae.latent_size])
        log_likelihood, log_ratio = (
            tf.ensure_shape(part, [SAMPLES_PER_BLOCK, size]) for part in weigh(image, one_hot, mean, stddev, noise)
        )

        # The last block may have more samples than are asked for.
        asked = (index * SAMPLES_PER_BLOCK + tf.range(SAMPLES_PER_BLOCK) < num_samples)[:, tf.newaxis]
        terms += tf.reduce_sum(tf.where(asked, tf.stack([log_likelihood, log_ratio]), 0.0), axis=1)
        log_weight = tf.where(asked, log_likelihood + log_ratio, -np.inf)
        new_largest = tf.maximum(largest, tf.reduce_max(log_weight, axis=0))
        shrink, weight = tf.exp(largest - new_largest), tf.exp(log_weight - new_largest)
        total = total * shrink + tf.reduce_sum(weight, axis=0)
        squares = squares * shrink**2 + tf.reduce_sum(weight**2, axis=0)
        return index + 1, new_largest, total, squares, terms

    blocks = -(-num_samples // SAMPLES_PER_BLOCK)
    zeros = tf.zeros([size])
    _, largest, total, squares, terms = tf.while_loop(
        lambda index, *_: index < blocks,
        block,
        (tf.constant(0), zeros - np.inf, zeros, zeros, tf.zeros([2, size])),
        parallel_iterations=1,
    )
    log_likelihood, log_ratio = tf.unstack(terms / num_samples)
    exact = objectives.exact_rate(posterior, cvae.prior(one_hot))
    rate = -log_ratio if exact is None else exact
    return largest + tf.math.log(total / num_samples), total**2 / squares, rate, -log_likelihood
