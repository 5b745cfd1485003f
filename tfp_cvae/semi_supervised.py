"""The CVAE that learns from few labels: M2 of Kingma, Rezende, Mohamed and Welling 2014."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_probability import distributions as tfd
from tf_keras.src.engine.functional import Functional

from tfp_cvae import array_checks, augmentation, checks
from tfp_cvae.layers import OneHotCategorical
from tfp_cvae.model import CVAE
from tfp_cvae.model_checks import check_separate, checked_network
from tfp_cvae.outputs import CVAEOutput, SemiSupervisedOutput

_CLASSIFIED_AT_ONCE = 1000


@keras.saving.register_keras_serializable("tfp_cvae")
class SemiSupervisedCVAE(CVAE):
    """CVAE with q(y|x), which learns from images with and without label: p(x,y,z) = p(y) p(z|y) p(x|z,y).

    The label of an image is in the row of `one_hot`; a row of zeros is an image without label. With the loss
    `SemiSupervisedNegativeELBO` it is the model M2 of the source. p(y) is uniform.

    Source: Kingma, Rezende, Mohamed and Welling 2014, section 2.

    Args:
        encoder: As of `CVAE`, with a label.
        decoder: As of `CVAE`; of M1+M2 without a label (`networks.stacked`).
        classifier: Functional Keras model from `image` to a `OneHotCategorical` layer, q(y|x).
        prior: As of `CVAE`.
        num_samples: As of `CVAE`, for each label.
        seed: As of `CVAE`, and of the augmentation.
        deformation: Strength, >= 0, at which the image that q(y|x) sees in training is moved, slanted and bent
            (`augmentation.deform`); 0 for not at all. The bound stays one, as q may be any distribution of y.
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
        deformation: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, decoder, prior, num_samples, seed, **kwargs)
        image_shape, _, classes = checked_network("classifier", classifier, "image", OneHotCategorical)
        if (image_shape, classes) != (self.image_shape, self.num_classes):
            raise ValueError(
                f"classifier: expected images of {self.image_shape} and {self.num_classes} classes, as of the other "
                f"networks, got {image_shape} and {classes}"
            )
        check_separate(encoder=encoder, decoder=decoder, prior=prior, classifier=classifier)
        self.classifier = classifier
        self.deformation = deformation
        self._posterior_given_each_label = _shared_encoder(encoder, self.num_classes)

    @property
    def deformation(self) -> float:
        """Strength, >= 0, at which the image that q(y|x) sees in training is deformed."""
        return self._deformation

    @deformation.setter
    def deformation(self, value: float) -> None:
        self._set_traced("_deformation", checks.number("deformation", value, 0))

    def label_posterior(self, image: tf.Tensor, training: bool = False) -> tfd.Distribution:
        """Approximate posterior of the label, q(y|x).

        Args:
            image: `[batch, height, width, channels]` float32, in [0, 1].
            training: As for `posterior`; the image is deformed by `call`, and not here.

        Returns:
            `tfd.OneHotCategorical`, batch shape `[batch]`, event shape `[num_classes]`.
        """
        return self.classifier(image, training=training)

    def classify_fast(self, image: Any) -> np.ndarray:
        """Classifies images by q(y|x).

        Args:
            image: `[n, height, width, channels]` float, in [0, 1]: binarized as in training; or grey, pixel / 255, of a
                model trained on dynamic binarization, which makes fewer errors there on MNIST.

        Returns:
            Probabilities, `[n, num_classes]` float32.

        Raises:
            TypeError: If image is symbolic.
            ValueError: If image has the wrong shape or range.
        """
        image = array_checks.images("image", image, self.image_shape)
        parts = [image[start : start + _CLASSIFIED_AT_ONCE] for start in range(0, len(image), _CLASSIFIED_AT_ONCE)]
        none = np.zeros([0, self.num_classes], np.float32)
        return np.concatenate([none, *(self.label_posterior(part).mean().numpy() for part in parts)])

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
        given_each_label = self._given_each_label(image, noise[:, :num_latent], training)
        if deforms:
            image = augmentation.deform(image, self.deformation * noise[:, num_latent:])
        return SemiSupervisedOutput(one_hot, self.label_posterior(image, training), given_each_label)

    def predict_step(self, data: Any) -> tf.Tensor:
        """Pixel probabilities at the posterior mean, under the labels as q(y|x) weighs them where there is none."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        image, one_hot = self.checked_inputs(x)
        each_label = self._each_label(image)
        posterior = self._posterior_given_each_label(image, each_label, False)
        latent = posterior.mean()[tf.newaxis]
        at_mean = CVAEOutput(posterior, self.prior(each_label), latent, self.likelihood(latent, each_label))
        return SemiSupervisedOutput(one_hot, self.label_posterior(image), at_mean).mean_image()

    def _given_each_label(self, image: tf.Tensor, noise: tf.Tensor, training: bool) -> CVAEOutput:
        """Output of the CVAE under each label, with the same noise, as the bounds under them are compared."""
        one_hot = self._each_label(image)
        posterior = self._posterior_given_each_label(image, one_hot, training)
        return self.infer(posterior, one_hot, tf.repeat(noise, self.num_classes, axis=0), training)

    def _each_label(self, image: tf.Tensor) -> tf.Tensor:
        """The label of each row of `SemiSupervisedOutput.given_each_label`, one-hot."""
        return tf.tile(tf.eye(self.num_classes), [tf.shape(image)[0], 1])

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


def _shared_encoder(encoder: keras.Model, num_classes: int) -> Callable[[tf.Tensor, tf.Tensor, bool], tfd.Distribution]:
    """Function from images, one-hot labels of `num_classes` rows for each, and `training` to q(z|x,y) of each row.

    What reads the image alone is computed once for all labels. Keras would track attributes of the model a second time,
    and so this is a function.
    """

    def rows(tensor: tf.Tensor) -> tf.Tensor:
        return tf.repeat(tensor, num_classes, axis=0)

    if len(encoder.inputs) == 1:
        return lambda image, one_hot, training: encoder(rows(image), training=training)
    image, one_hot = encoder.inputs
    with_label, shared = {id(one_hot)}, {}
    # The nodes of this model, from its inputs on; its layers also have those of other models that they are part of.
    for depth in sorted(encoder._nodes_by_depth, reverse=True):
        for node in encoder._nodes_by_depth[depth]:
            if with_label.intersection(map(id, node.keras_inputs)):
                with_label.update(map(id, tf.nest.flatten(node.outputs)))
                shared.update({id(tensor): tensor for tensor in node.keras_inputs})
    adds_losses = any(type(layer).__name__ in ("AddLoss", "AddMetric") for layer in encoder.layers)
    overrides_call = type(encoder).call is not Functional.call
    if adds_losses or overrides_call or id(encoder.output) not in with_label:
        # What is added, or overridden, belongs to the encoder as a whole.
        return lambda image, one_hot, training: encoder([rows(image), one_hot], training=training)
    alone = [tensor for key, tensor in shared.items() if key not in with_label]
    first = keras.Model(image, alone)
    rest = keras.Model([*alone, one_hot], encoder.output)

    def split(image: tf.Tensor, one_hot: tf.Tensor, training: bool) -> tfd.Distribution:
        read = tf.nest.flatten(first(image, training=training))
        return rest([*map(rows, read), one_hot], training=training)

    return split
