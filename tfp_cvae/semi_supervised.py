"""The CVAE that learns from few labels: M2 of Kingma, Mohamed, Rezende and Welling 2014."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_probability import distributions as tfd

from tfp_cvae import augmentation, checks
from tfp_cvae.layers import OneHotCategorical
from tfp_cvae.model import CVAE, CVAEOutput
from tfp_cvae.model_checks import checked_network

_CLASSIFIED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class SemiSupervisedOutput:
    """What `SemiSupervisedCVAE.__call__` returns, and Keras hands to loss and metrics as `y_pred`.

    As a tensor it is the mean image, under the label of a labelled row, and under all labels as q(y|x) weighs them for
    the others.

    Attributes:
        one_hot: Labels that were given, `[batch, num_classes]` float32; rows of zeros where none was.
        label_posterior: q(y|x), `tfd.OneHotCategorical`, batch shape `[batch]`.
        given_each_label: The output of the CVAE for each image given each label: a batch of `batch * num_classes` rows,
            of which the row `i * num_classes + k` is image i with label k.
    """

    one_hot: tf.Tensor
    label_posterior: tfd.Distribution
    given_each_label: CVAEOutput

    @property
    def shape(self) -> tf.TensorShape:
        """Static shape of the mean image."""
        return self.one_hot.shape[:1].concatenate(self.given_each_label.shape[1:])

    @property
    def dtype(self) -> tf.DType:
        """Type of the mean image."""
        return self.given_each_label.dtype

    def with_label_gradient(self, weight: tf.Tensor) -> "SemiSupervisedOutput":
        """The same, through whose q(y|x) gradients flow back with a weight in [0, 1]."""
        logits = self.label_posterior.logits_parameter()
        logits = weight * logits + (1 - weight) * tf.stop_gradient(logits)
        return dataclasses.replace(self, label_posterior=tfd.OneHotCategorical(logits, dtype=logits.dtype))

    @property
    def labelled(self) -> tf.Tensor:
        """1 for a row with a label and 0 for one without, `[batch]` float32."""
        return tf.reduce_sum(self.one_hot, axis=-1)

    def label_weights(self) -> tf.Tensor:
        """w(y): all on the label that was given, or q(y|x), `[batch, num_classes]` float32."""
        return self.one_hot + (1 - self.labelled[:, tf.newaxis]) * self.label_posterior.mean()

    def label_rate(self) -> tf.Tensor:
        """KL(w(y) || p(y)) with the uniform p(y), `[batch]` float32, nats per image."""
        return math.log(self.one_hot.shape[-1]) - (1 - self.labelled) * self.label_posterior.entropy()

    def log_label_prior(self) -> tf.Tensor:
        """Log p(y) of the labels that a row can have, and -infinity of the others, `[batch, num_classes]` float32."""
        possible = self.one_hot + (1 - self.labelled[:, tf.newaxis])
        return tf.math.log(possible) - math.log(self.one_hot.shape[-1])

    def for_each_label(self, image: tf.Tensor) -> tf.Tensor:
        """Images as the rows of `given_each_label`: `[batch * num_classes, height, width, channels]`."""
        return tf.repeat(image, self.one_hot.shape[-1], axis=0)

    def by_label(self, values: tf.Tensor) -> tf.Tensor:
        """Values of the rows of `given_each_label`, `[batch * num_classes, ...]`, as `[batch, num_classes, ...]`."""
        return tf.reshape(values, tf.concat([[-1, self.one_hot.shape[-1]], tf.shape(values)[1:]], axis=0))

    def expectation(self, values: tf.Tensor) -> tf.Tensor:
        """sum_y w(y) v(y) of values of the rows of `given_each_label`, `[batch * num_classes, ...]`: `[batch, ...]`."""
        return tf.einsum("bk,bk...->b...", self.label_weights(), self.by_label(values))

    def mean_image(self) -> tf.Tensor:
        """Pixel probabilities, the mean over labels and latent samples: `[batch, height, width, channels]` float32."""
        return self.expectation(self.given_each_label.mean_image())


tf.register_tensor_conversion_function(
    SemiSupervisedOutput, lambda value, dtype=None, name=None, as_ref=False: value.mean_image()
)


@keras.saving.register_keras_serializable("tfp_cvae")
class SemiSupervisedCVAE(CVAE):
    """CVAE with q(y|x), which learns from images with and without label: p(x,y,z) = p(y) p(z|y) p(x|z,y).

    The label of an image is in the row of `one_hot`; a row of zeros is an image without label. With the loss
    `SemiSupervisedNegativeELBO` it is the model M2 of the source. p(y) is uniform.

    Source: Kingma, Mohamed, Rezende and Welling 2014, section 2.

    Args:
        encoder: As of `CVAE`, with a label.
        decoder: As of `CVAE`, with a label.
        classifier: Functional Keras model from `image` to a `OneHotCategorical` layer, q(y|x).
        prior: As of `CVAE`.
        num_samples: As of `CVAE`, for each label.
        seed: As of `CVAE`, and of the augmentation.
        deformation: Strength, >= 0, at which the image that q(y|x) sees in training is moved and bent
            (`augmentation.random_affine`); 0 for not at all. The bound stays one, as q is any distribution of y.
        **kwargs: Of `keras.Model`.

    Raises:
        TypeError: If a network is not a functional Keras model with these inputs.
        ValueError: If the networks do not fit each other.
    """

    takes_unlabelled = True

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        classifier: keras.Model,
        prior: keras.Model | None = None,
        num_samples: int = 1,
        seed: int = 0,
        deformation: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, decoder, prior, num_samples, seed, **kwargs)
        image_shape, _, classes = checked_network("classifier", classifier, "image", OneHotCategorical)
        if (image_shape, classes) != (self.image_shape, self.num_classes):
            raise ValueError(
                f"classifier: expected images of {self.image_shape} and {self.num_classes} classes, as of the other "
                f"networks, got {image_shape} and {classes}"
            )
        checks.number("deformation", deformation, 0)
        self.classifier = classifier
        self.deformation = deformation

    def label_posterior(self, image: tf.Tensor) -> tfd.Distribution:
        """Approximate posterior of the label, q(y|x).

        Args:
            image: `[batch, height, width, channels]` float32, in [0, 1].

        Returns:
            `tfd.OneHotCategorical`, batch shape `[batch]`, event shape `[num_classes]`.
        """
        return self.classifier(image)

    def classify(self, image: Any) -> np.ndarray:
        """Classifies images by q(y|x).

        Args:
            image: `[n, height, width, channels]` float, in [0, 1]; binarized as in training.

        Returns:
            Probabilities, `[n, num_classes]` float32.

        Raises:
            ValueError: If image has the wrong shape or range.
        """
        image = np.asarray(image, np.float32)
        checks.unit_interval("image", image, self.image_shape)
        parts = np.split(image, range(_CLASSIFIED_AT_ONCE, len(image), _CLASSIFIED_AT_ONCE))
        return np.concatenate([self.label_posterior(part).mean().numpy() for part in parts])

    def call(self, inputs: Any, training: bool = False) -> SemiSupervisedOutput:  # type: ignore[override]
        """Classifies, and encodes, samples and decodes under each label; what `fit` and `evaluate` run.

        Args:
            inputs: `(image, one_hot)`.
            training: Whether this is a training step.

        Returns:
            The distributions and samples of `SemiSupervisedOutput`.

        Raises:
            ValueError: If image or one_hot is missing or has the wrong shape.
        """
        image, one_hot = self.checked_inputs(inputs)
        num_latent = self.num_samples * self.latent_size
        deforms = training and self.deformation > 0
        noise = self.noise(image, num_latent + (augmentation.NUM_RANDOM if deforms else 0), training)
        given_each_label = self._given_each_label(image, noise[:, :num_latent])
        if deforms:
            image = augmentation.random_affine(image, self.deformation * noise[:, num_latent:])
        return SemiSupervisedOutput(one_hot, self.label_posterior(image), given_each_label)

    def predict_step(self, data: Any) -> tf.Tensor:
        """Pixel probabilities at the posterior mean, under the labels as q(y|x) weighs them where there is none."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        image, one_hot = self.checked_inputs(x)
        at_mean = self._given_each_label(image, tf.zeros([tf.shape(image)[0], self.num_samples * self.latent_size]))
        return SemiSupervisedOutput(one_hot, self.label_posterior(image), at_mean).mean_image()

    def _given_each_label(self, image: tf.Tensor, noise: tf.Tensor) -> CVAEOutput:
        """Output of the CVAE under each label, with the same noise, as the bounds under them are compared."""
        return self.infer(
            tf.repeat(image, self.num_classes, axis=0),
            tf.tile(tf.eye(self.num_classes), [tf.shape(image)[0], 1]),
            tf.repeat(noise, self.num_classes, axis=0),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "deformation": self.deformation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SemiSupervisedCVAE":
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects)
        return super().from_config({**config, "classifier": classifier}, custom_objects)
