"""What a served model answers: graph functions that check their inputs and draw from the seeds they are given."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_cvae.importance import estimator
from tfp_cvae.model import CVAE
from tfp_cvae.semi_supervised import SemiSupervisedCVAE

Outputs = dict[str, tf.Tensor]

_PNG_CHANNELS = (1, 2, 3, 4)


def signatures(cvae: CVAE, num_samples: int, class_probabilities: np.ndarray) -> dict[str, Callable[..., Outputs]]:
    """Makes a graph function for each signature.

    Dimension 0 of every input and output is the batch. A row of an answer depends on its own row of the inputs alone.
    A row that is out of range fails the whole request, with INVALID_ARGUMENT and a sentence.

    Args:
        cvae: The model.
        num_samples: Importance samples K of `log_likelihood` and `classify`, >= 1.
        class_probabilities: p(y), `[num_classes]` float, by which `classify` weighs the classes.

    Returns:
        Concrete functions by the name of the signature, for `tf.saved_model.save`.
    """
    with np.errstate(divide="ignore"):
        log_class_probabilities = np.log(class_probabilities).astype(np.float32)
    answers = _Answers(cvae, estimator(cvae, num_samples), log_class_probabilities)
    label = ["label"] if cvae.num_classes else []
    names: dict[str, tuple[Callable[..., Outputs], list[str]]] = {
        "generate": (answers.generate, [*label, "seed"]),
        "decode": (answers.decode, ["latent", *label]),
        "encode": (answers.encode, ["image", *label]),
        "reconstruct": (answers.reconstruct, ["image", *label]),
        "log_likelihood": (answers.log_likelihood, ["image", *label, "seed"]),
    }
    if cvae.num_classes:
        names["classify"] = (answers.classify, ["image", "seed"])
    if isinstance(cvae, SemiSupervisedCVAE):
        names["classify_fast"] = (answers.classify_fast, ["image"])
    if cvae.image_shape[-1] in _PNG_CHANNELS:
        names["generate_png"] = (answers.generate_png, [*label, "seed"])
    specs = {
        "image": tf.TensorSpec([None, *cvae.image_shape], tf.float32, "image"),
        "latent": tf.TensorSpec([None, cvae.latent_size], tf.float32, "latent"),
        "label": tf.TensorSpec([None], tf.int64, "label"),
        "seed": tf.TensorSpec([None], tf.int64, "seed"),
    }
    return {
        name: _signature(answer, [specs[input_name] for input_name in inputs], cvae.num_classes)
        for name, (answer, inputs) in names.items()
    }


@dataclasses.dataclass(frozen=True)
class _Answers:
    """The signatures, on inputs that have been checked; `label` is None without classes."""

    cvae: CVAE
    estimate: Callable[[tf.Tensor, tf.Tensor | None, tf.Tensor], tuple[tf.Tensor, ...]]
    log_class_probabilities: np.ndarray

    def one_hot(self, label: tf.Tensor | None) -> tf.Tensor | None:
        return None if label is None else tf.one_hot(label, self.cvae.num_classes)

    def image(self, latent: tf.Tensor, label: tf.Tensor | None) -> tf.Tensor:
        return self.cvae.likelihood(latent, self.one_hot(label)).mean()

    def generate(self, seed: tf.Tensor, label: tf.Tensor | None = None) -> Outputs:
        return {"image": self.image(self.cvae.sample_prior(seed, self.one_hot(label)), label)}

    def generate_png(self, seed: tf.Tensor, label: tf.Tensor | None = None) -> Outputs:
        pixels = tf.cast(tf.round(255 * self.generate(seed, label)["image"]), tf.uint8)
        # The suffix _bytes makes the REST interface write base64.
        return {"image_bytes": tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.TensorSpec([], tf.string))}

    def decode(self, latent: tf.Tensor, label: tf.Tensor | None = None) -> Outputs:
        image = self.image(latent, label)
        # Finite latents can be too large for float32 in the network.
        good = tf.reduce_all(tf.math.is_finite(image), axis=[1, 2, 3])
        with tf.control_dependencies([_require(good, "latent: expected values with a finite image, got {}", latent)]):
            return {"image": tf.identity(image)}

    def encode(self, image: tf.Tensor, label: tf.Tensor | None = None) -> Outputs:
        count = tf.shape(image)[0]
        posterior = self.cvae.posterior(_one_or_more(image), self.one_hot(_one_or_more(label)))
        return {"mean": posterior.mean()[:count], "stddev": posterior.stddev()[:count]}

    def reconstruct(self, image: tf.Tensor, label: tf.Tensor | None = None) -> Outputs:
        return {"image": self.image(self.encode(image, label)["mean"], label)}

    # The next two take an image at a time: its K samples are batch enough, and the memory stays that of one image.
    # Their seeds are those of `importance_estimate`, whose range keeps apart the streams of samples.

    def log_likelihood(self, image: tf.Tensor, seed: tf.Tensor, label: tf.Tensor | None = None) -> Outputs:
        one_hot = self.one_hot(label)

        def row(index: tf.Tensor) -> Outputs:
            own_one_hot = None if one_hot is None else one_hot[index, tf.newaxis]
            log_likelihood, _, rate, distortion = self.estimate(image[index, tf.newaxis], own_one_hot, seed[index])
            return {"elbo": -distortion[0] - rate[0], "log_likelihood": log_likelihood[0]}

        scalar = tf.TensorSpec([], tf.float32)
        return _map_rows(row, seed, {"elbo": scalar, "log_likelihood": scalar})

    def classify(self, image: tf.Tensor, seed: tf.Tensor) -> Outputs:
        classes = self.cvae.num_classes

        def row(index: tf.Tensor) -> tf.Tensor:
            under_each_label = tf.repeat(image[index, tf.newaxis], classes, axis=0)
            return self.estimate(under_each_label, tf.eye(classes), seed[index])[0]

        log_likelihood = _map_rows(row, seed, tf.TensorSpec([classes]))
        # log p(x,y) = log p(x|y) + log p(y)
        log_joint = log_likelihood + self.log_class_probabilities
        return {"probabilities": tf.nn.softmax(log_joint), "label": tf.argmax(log_joint, axis=-1)}

    def classify_fast(self, image: tf.Tensor) -> Outputs:
        probabilities = self.cvae.label_posterior(_one_or_more(image)).mean()[: tf.shape(image)[0]]
        return {"probabilities": probabilities, "label": tf.argmax(probabilities, axis=-1)}


def _one_or_more(rows: tf.Tensor | None) -> tf.Tensor | None:
    """The rows, or one of zeros if there is none, of which TensorFlow cannot make a convolution with an activation."""
    if rows is None:
        return None
    missing = tf.cast(tf.shape(rows)[0] == 0, tf.int32)
    return tf.concat([rows, tf.zeros([missing, *rows.shape[1:]], rows.dtype)], axis=0)


def _map_rows(row: Callable[[tf.Tensor], Any], seed: tf.Tensor, spec: Any) -> Any:
    good = (seed >= 0) & (seed < 2**31)
    with tf.control_dependencies([_require(good, "seed: expected 0 to 2147483647, got {}", seed)]):
        rows = tf.range(tf.size(seed))
    return tf.map_fn(row, rows, fn_output_signature=spec, parallel_iterations=1)


def _signature(answer: Callable[..., Outputs], specs: list[tf.TensorSpec], num_classes: int) -> Callable[..., Outputs]:
    @tf.function(input_signature=specs, autograph=False)
    def signature(*inputs: tf.Tensor) -> Outputs:
        # Each computation waits for the checks before it, so that theirs is the message.
        with tf.control_dependencies([_check_shape(*pair) for pair in zip(specs, inputs, strict=True)]):
            named = {spec.name: tf.identity(tensor) for spec, tensor in zip(specs, inputs, strict=True)}
            checks = [_check_sizes(named), *(_check_values(name, named[name], num_classes) for name in named)]
        with tf.control_dependencies(checks):
            return answer(**{name: tf.identity(tensor) for name, tensor in named.items()})

    return signature.get_concrete_function()


def _check_shape(spec: tf.TensorSpec, tensor: tf.Tensor) -> tf.Operation:
    # The server does not compare what it is sent with the signature, and TensorFlow drops a check that the static shape
    # seems to answer: hide that one.
    shape = tf.shape(tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None)), out_type=tf.int64)
    own = ", ".join(map(str, spec.shape[1:]))
    fits = (tf.size(shape) > 0) & (tf.strings.reduce_join(tf.strings.as_string(shape[1:]), separator=", ") == own)
    return _assert(fits, f"{spec.name}: expected shape [{', '.join(filter(None, ['n', own]))}], got {{}}", shape)


def _check_sizes(named: dict[str, tf.Tensor]) -> tf.Operation:
    sizes = tf.stack([tf.shape(tensor)[0] for tensor in named.values()])
    return _assert(
        tf.reduce_all(sizes == sizes[0]), f"{', '.join(named)}: expected one of each for each row, got {{}}", sizes
    )


def _check_values(name: str, tensor: tf.Tensor, num_classes: int) -> tf.Operation:
    if name == "image":
        return _require((tensor >= 0) & (tensor <= 1), "image: expected values in [0, 1], got {}", tensor)
    if name == "latent":
        return _require(tf.math.is_finite(tensor), "latent: expected finite values, got {}", tensor)
    if name == "label":
        good = (tensor >= 0) & (tensor < num_classes)
        return _require(good, f"label: expected 0 to {num_classes - 1}, got {{}}", tensor)
    return tf.no_op()


def _require(good: tf.Tensor, sentence: str, tensor: tf.Tensor) -> tf.Operation:
    """Asserts that all elements are good; the sentence shows those that are not."""
    return _assert(tf.reduce_all(good), sentence, tf.boolean_mask(tensor, ~good))


def _assert(condition: tf.Tensor, sentence: str, got: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(condition, [tf.strings.format(sentence, got)])
