"""The conditional VAE as a Keras model, trained by stock `compile` and `fit`."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_probability import distributions as tfd

from tfp_cvae import array_checks, checks, distribution, execution
from tfp_cvae.checked_model import CheckedModel
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.layers import IndependentBernoulli, MultivariateNormalDiag, independent_bernoulli
from tfp_cvae.model_checks import check_separate, checked_network
from tfp_cvae.noise import standard_normal, standard_normal_rows
from tfp_cvae.outputs import CVAEOutput


@keras.saving.register_keras_serializable("tfp_cvae")
class CVAE(CheckedModel):
    """Class-conditional variational autoencoder p(x,z|y) = p(x|z,y) p(z|y), with q(z|x,y) for inference.

    Source: Kingma and Welling 2014; with a label, Sohn et al. 2015.

    The latent samples drawn in `call` are a function of (`seed`, step, row) in training and of (`seed`, image) else:
    the same seed gives the same training, and the bound measured on an image does not depend on the other images.

    Args:
        encoder: Functional Keras model from `image` or `[image, one_hot]` to a `MultivariateNormalDiag` layer.
        decoder: Functional Keras model from `latent` or `[latent, one_hot]` to an `IndependentBernoulli` layer.
        prior: Functional Keras model from `one_hot` to a `MultivariateNormalDiag` or `CouplingFlow` layer, or None for
            N(0, I).
        num_samples: Latent samples K for each image, >= 1.
        seed: Seed of the latent samples, in [0, 2**31).
        **kwargs: Of `keras.Model`.

    Attributes:
        image_shape: `(height, width, channels)`.
        num_classes: Width of the one-hot label; 0 for the plain VAE, whose methods take no label.
        latent_size: Size of z.

    Raises:
        TypeError: If a network is not a functional Keras model with these inputs.
        ValueError: If encoder, decoder and prior do not fit each other, or `num_samples` or `seed` is out of range.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        prior: keras.Model | None = None,
        num_samples: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        # Whatever the dtype policy of the networks: image, noise and bound are not rounded.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.image_shape, encoder_classes, posterior_size = checked_network(
            "encoder", encoder, "image", MultivariateNormalDiag
        )
        (self.latent_size,), decoder_classes, decoded_shape = checked_network(
            "decoder", decoder, "latent", IndependentBernoulli
        )
        (prior_classes,), _, prior_size = (
            ((0,), 0, self.latent_size)
            if prior is None
            else checked_network("prior", prior, "one_hot", MultivariateNormalDiag, CouplingFlow)
        )
        self.num_classes = decoder_classes or encoder_classes or prior_classes
        fits = [
            ("decoder: image shape", decoded_shape, self.image_shape),
            ("encoder: latent size", posterior_size, self.latent_size),
            ("encoder: number of classes", encoder_classes or self.num_classes, self.num_classes),
            ("prior: number of classes", prior_classes or self.num_classes, self.num_classes),
            ("prior: latent size", prior_size, self.latent_size),
        ]
        for name, given, expected in fits:
            if given != expected:
                raise ValueError(f"{name}: expected {expected}, as of the other networks, got {given}")
        check_separate(encoder=encoder, decoder=decoder, prior=prior)
        self.encoder = encoder
        self.decoder = decoder
        self.prior_network = prior
        self.num_samples = num_samples
        self.seed = seed
        pixels = math.prod(self.image_shape)
        self._hash_factors = np.random.default_rng(0).integers(-(2**31), 2**31, pixels, dtype=np.int32)
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self.built = True

    @property
    def num_samples(self) -> int:
        """Latent samples K of each image in training and evaluation, >= 1; does not change while these run."""
        return self._num_samples

    @num_samples.setter
    def num_samples(self, value: int) -> None:
        self._set_traced("_num_samples", checks.num_samples("num_samples", value))

    @property
    def seed(self) -> int:
        """Seed of the latent samples in training and evaluation, in [0, 2**31); does not change while these run."""
        return self._seed

    @seed.setter
    def seed(self, value: int) -> None:
        self._set_traced("_seed", checks.seed("seed", value))

    def posterior(self, image: tf.Tensor, one_hot: tf.Tensor | None = None, training: bool = False) -> tfd.Distribution:
        """Approximate posterior q(z|x,y).

        Args:
            image: `[batch, height, width, channels]` float32, in [0, 1]: the range is not checked here, as in a graph
                there is nothing to look at; `fit`, `evaluate`, `predict` and `reconstruct` check it.
            one_hot: `[batch, num_classes]` float32, one-hot or a convex mixture; None without classes.
            training: Whether layers that act differently in training, such as `Dropout`, do so.

        Returns:
            `tfd.MultivariateNormalDiag`, batch shape `[batch]`, event shape `[latent_size]`.
        """
        return self.encoder(_network_inputs(self.encoder, image, one_hot), training=training)

    def prior(self, one_hot: tf.Tensor | None = None, training: bool = False) -> tfd.Distribution:
        """Prior p(z|y).

        Args:
            one_hot: `[batch, num_classes]` float32; may be None if the prior does not depend on it.
            training: As for `posterior`.

        Returns:
            `tfd.MultivariateNormalDiag`, or what else the prior network returns: batch shape `[batch]`, or `[]` of
            N(0, I) without `one_hot`; event shape `[latent_size]`. A flow has no `mean` and `stddev`.
        """
        if self.prior_network is None:
            batch_shape = [] if one_hot is None else [tf.shape(one_hot)[0]]
            return tfd.MultivariateNormalDiag(loc=tf.zeros([*batch_shape, self.latent_size]))
        one_hot = _checked_one_hot(one_hot, self.prior_network.inputs[0].shape[-1])
        return self.prior_network(one_hot, training=training)

    def likelihood(
        self, latent: tf.Tensor, one_hot: tf.Tensor | None = None, training: bool = False
    ) -> tfd.Distribution:
        """Likelihood p(x|z,y).

        Args:
            latent: `[..., batch, latent_size]` float32.
            one_hot: `[batch, num_classes]` float32; None without classes.
            training: As for `posterior`.

        Returns:
            `tfd.Independent(tfd.Bernoulli)`, batch shape `[..., batch]`, event shape `[height, width, channels]`. With
            a latent `[batch, latent_size]` it can be used as a tensor, its mean.
        """
        latent = tf.cast(latent, tf.float32)
        if latent.shape.rank == 2:
            return self.decoder(_network_inputs(self.decoder, latent, one_hot), training=training)
        # The decoder takes one batch dimension: fold the others into it, and unfold the logits.
        batch_shape = tf.shape(latent)[:-1]
        if one_hot is not None:
            one_hot = _checked_one_hot(one_hot, self.num_classes)
            one_hot = tf.broadcast_to(one_hot, tf.concat([batch_shape, tf.shape(one_hot)[-1:]], axis=0))
            one_hot = tf.reshape(one_hot, [-1, one_hot.shape[-1]])
        rows = tf.reshape(latent, [-1, self.latent_size])
        flat = self.decoder(_network_inputs(self.decoder, rows, one_hot), training=training)
        logits = flat.tensor_distribution.distribution.logits_parameter()
        logits = tf.reshape(logits, tf.concat([batch_shape, self.image_shape], axis=0))
        return independent_bernoulli(logits)

    def call(self, inputs: Any, training: bool = False) -> CVAEOutput:
        """Encodes, samples and decodes; what `fit` and `evaluate` run.

        Args:
            inputs: `(image, one_hot)`, or `image` alone without classes.
            training: Whether this is a training step, which draws new latent samples each time.

        Returns:
            The distributions and samples of `CVAEOutput`.

        Raises:
            ValueError: If image or one_hot is missing or has the wrong shape.
        """
        image, one_hot = self.checked_inputs(inputs)
        posterior = self.posterior(image, one_hot, training)
        noise = self.noise(image, self.num_samples * self.latent_size, training)
        return self.infer(posterior, one_hot, noise, training)

    def infer(
        self, posterior: tfd.Distribution, one_hot: tf.Tensor | None, noise: tf.Tensor, training: bool = False
    ) -> CVAEOutput:
        """Samples and decodes, with the standard normal noise of the latent samples.

        Args:
            posterior: q(z|x,y), batch shape `[batch]`, event shape `[latent_size]`.
            one_hot: `[batch, num_classes]` float32; None without classes.
            noise: `[batch, num_samples * latent_size]` float32.
            training: As for `posterior`.

        Returns:
            What `call` returns: posterior, prior, the samples z = m + s * noise, `[num_samples, batch, latent_size]`,
            and the likelihood of each.
        """
        noise = tf.transpose(tf.reshape(noise, [-1, self.num_samples, self.latent_size]), [1, 0, 2])
        latent = posterior.mean() + posterior.stddev() * noise
        prior, likelihood = self.prior(one_hot, training), self.likelihood(latent, one_hot, training)
        return CVAEOutput(posterior, prior, latent, likelihood)

    def generate(self, label: Any = None, seed: Any = 0) -> tf.Tensor:
        """Generates images of given classes: p(x|z,y) with z ~ p(z|y).

        An image depends on its own label and seed alone, not on the others that are generated with it.

        Args:
            label: Class of each image, integer or `[n]` integers in [0, num_classes); None without classes.
            seed: Seed of each image, `[n]` integers; or one integer s, which means s, s + 1, ... The same seed under
                another label is the same standard normal sample, seen through the prior of that label.

        Returns:
            Pixel probabilities, `[n, height, width, channels]` float32 in [0, 1].

        Raises:
            TypeError: If label or seed is not an integer, or symbolic.
            ValueError: If a label does not exist, or label and seed differ in number.
        """
        one_hot, seeds = self._checked_rows(label, seed)
        return self.likelihood(self.sample_prior(seeds, one_hot), one_hot).mean()

    def sample_prior(self, seed: tf.Tensor, one_hot: tf.Tensor | None = None) -> tf.Tensor:
        """Latents z ~ p(z|y), each a function of its own seed and label alone.

        Args:
            seed: `[n]` integer.
            one_hot: `[n, num_classes]` float32; may be None if the prior does not depend on it.

        Returns:
            `[n, latent_size]` float32.
        """
        # Each prior is the image of N(0, I): under a location and scale, or under a flow.
        return self.prior(one_hot).bijector.forward(standard_normal(seed, [self.latent_size]))

    def reconstruct(self, image: Any, label: Any = None, seed: Any = None) -> tf.Tensor:
        """Reconstructs images: p(x|z,y) with z the posterior mean, or a posterior sample if there is a seed.

        Args:
            image: `[n, height, width, channels]` float, in [0, 1].
            label: Class of each image, integer or `[n]` integers in [0, num_classes); None without classes.
            seed: None, or as for `generate`.

        Returns:
            Pixel probabilities, `[n, height, width, channels]` float32 in [0, 1].

        Raises:
            TypeError: If label or seed is not an integer, or a value is symbolic.
            ValueError: If image, label or seed has the wrong shape or range.
        """
        image = array_checks.images("image", image, self.image_shape)
        one_hot, seeds = self._checked_rows(label, 0 if seed is None else seed, size=len(image))
        posterior = self.posterior(tf.constant(image), one_hot)
        latent = posterior.mean()
        if seed is not None:
            latent += posterior.stddev() * standard_normal(seeds, [self.latent_size])
        return self.likelihood(latent, one_hot).mean()

    def decode(self, latent: Any, label: Any = None) -> tf.Tensor:
        """Images of given latents: the mean of p(x|z,y), with a gradient where the latent is a tensor.

        Args:
            latent: `[n, latent_size]` float: numbers, not a symbol in a graph, for which there is `likelihood`.
            label: Class of each image, integer or `[n]` integers in [0, num_classes); None without classes.

        Returns:
            Pixel probabilities, `[n, height, width, channels]` float32 in [0, 1].

        Raises:
            TypeError: If label is not an integer, or latent is symbolic.
            ValueError: If latent or label has the wrong shape or range.
        """
        count = len(array_checks.finite("latent", latent, self.latent_size))
        return self.likelihood(latent, self.one_hot(label, count)).mean()

    def one_hot(self, label: Any, count: int) -> tf.Tensor | None:
        """One-hot rows for the networks.

        Args:
            label: Class of each image, integer or `[count]` integers in [0, num_classes); None without classes.
            count: Number of images.

        Returns:
            `[count, num_classes]` float32; None without classes.

        Raises:
            TypeError: If label is not an integer.
            ValueError: If a label does not exist, or there are not as many as images.
        """
        if (label is None) != (self.num_classes == 0):
            expected = f"0 to {self.num_classes - 1}" if self.num_classes else "None, as the model has no classes"
            raise ValueError(f"label: expected {expected}, got {label}")
        if label is None:
            return None
        labels = array_checks.integers("label", label)
        if labels.shape not in ((), (count,)):
            raise ValueError(f"label: expected one for each of {count} images, got {len(labels)}")
        array_checks.labels("label", labels, self.num_classes)
        return tf.one_hot(np.broadcast_to(labels, count), self.num_classes)

    def image_seed(self, image: tf.Tensor) -> tf.Tensor:
        """Seed for the latent samples of an image: a hash of its pixels, `[batch]` int32."""
        # Any fixed random integers do, as the sum wraps and is exact.
        pixels = tf.cast(tf.round(255 * tf.reshape(image, [-1, self._hash_factors.size])), tf.int32)
        return tf.reduce_sum(pixels * self._hash_factors, axis=-1)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes what `fit` calls, as Keras does; with XLA, several steps are one program (`execution`)."""
        if force or getattr(self, "train_function", None) is None:
            self.build_optimizer()
            stock = execution.traced_once(self, super().make_train_function)
            self.train_function = execution.make_train_function(self, stock) if execution.applies(self) else stock
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """Makes what `evaluate` calls, as Keras does; a step is traced once (`execution`)."""
        if force or getattr(self, "test_function", None) is None:
            self.test_function = execution.traced_once(self, super().make_test_function)
        return self.test_function

    def predict_step(self, data: Any) -> tf.Tensor:
        """Pixel probabilities at the posterior mean: what `predict` returns, no sample."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        image, one_hot = self.checked_inputs(x)
        return self.likelihood(self.posterior(image, one_hot).mean(), one_hot).mean()

    @tf.autograph.experimental.do_not_convert
    def noise(self, image: tf.Tensor, size: int, training: bool) -> tf.Tensor:
        """Standard normal noise for a step of training, which this counts, or of evaluation.

        Args:
            image: `[batch, height, width, channels]` float32, in [0, 1].
            size: Numbers for each image.
            training: Whether the numbers are another draw in each step; else they are a function of the image.

        Returns:
            `[batch, size]` float32.
        """
        seed = tf.constant(self.seed, tf.uint32)
        if training:
            # One key for each step, and the numbers of the rows that a replica has of the batch.
            # A step whose batch does not come is none.
            with tf.control_dependencies([image]):
                self.step.assign_add(1)
            rows = distribution.rows_of_replica(tf.shape(image)[0])
            key = (seed, tf.cast(self.step, tf.uint32))
        else:
            # One key for each image, so that what is measured does not depend on how the images are batched.
            fingerprint = self.image_seed(image)
            rows = tf.zeros_like(fingerprint)
            key = (seed, tf.bitcast(fingerprint, tf.uint32))
        return standard_normal_rows(key, rows, size)

    def _checked_rows(self, label: Any, seed: Any, size: int | None = None) -> tuple[tf.Tensor | None, np.ndarray]:
        """One-hot labels and seeds, one for each image."""
        seeds = array_checks.integers("seed", seed)
        labels = None if label is None else array_checks.array("label", label)
        given = [array.shape for array in (labels, seeds) if array is not None]
        sizes = {shape[0] for shape in given if shape} | (set() if size is None else {size})
        if len(sizes) > 1:
            raise ValueError(f"label, seed: expected one of each for each image, got {sorted(sizes)} in number")
        count = sizes.pop() if sizes else 1
        return self.one_hot(label, count), (seeds if seeds.ndim else seeds + np.arange(count))

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "prior": serialize(self.prior_network),
            "num_samples": self.num_samples,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "CVAE":
        nets = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("encoder", "decoder", "prior")
        }
        return cls(**{**config, **nets})


@tf.autograph.experimental.do_not_convert
def _network_inputs(network: keras.Model, tensor: tf.Tensor, one_hot: tf.Tensor | None) -> Any:
    if len(network.inputs) == 1:
        return tensor
    return [tensor, _checked_one_hot(one_hot, network.inputs[1].shape[-1])]


def _checked_one_hot(one_hot: Any, width: int) -> tf.Tensor:
    one_hot = None if one_hot is None else tf.cast(one_hot, tf.float32)
    if one_hot is None or one_hot.shape.rank not in (None, 2):
        got = "None" if one_hot is None else f"shape {one_hot.shape.as_list()}"
        raise ValueError(
            f"one_hot: expected [batch, {width}], one-hot rows, got {got}; cvae.one_hot(label, batch) makes them"
        )
    return one_hot
