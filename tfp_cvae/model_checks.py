"""Checks of what a model is made of and compiled with, and of its callbacks."""

import os
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import tf_keras as keras

KERAS_FORMAT_ONLY = "expected a name that ends in .keras, the format that keras.models.load_model reads again"


def checked_network(name: str, network: Any, first: str, *outputs: Any) -> tuple[tuple[int, ...], int, Any]:
    """Shape of the first input without the batch, width of the one-hot input or 0, and event shape of the output."""
    # A prior reads the label alone.
    inputs = first if first == "one_hot" else f"{first} or [{first}, one_hot]"
    if not isinstance(network, keras.Model) or not getattr(network, "inputs", None):
        raise TypeError(
            f"{name}: expected a functional Keras model (tf_keras.Model(inputs, outputs)) with the inputs {inputs}, "
            f"got {type(network).__module__}.{type(network).__name__}"
        )
    expected = " or ".join(kind.__name__ for kind in outputs)
    if len(network.outputs) != 1:
        raise ValueError(f"{name}: expected one output, of the layer {expected}, got {len(network.outputs)}")
    last = network
    while isinstance(last, keras.Model) and getattr(last, "inputs", None):
        last = last.get_layer(last.output_names[0])
    if not isinstance(last, outputs):
        raise TypeError(f"{name}: expected an output of the layer {expected}, got {type(last).__name__}")
    shapes = [tuple(tensor.shape[1:]) for tensor in network.inputs]
    most = 1 if first == "one_hot" else 2
    if len(shapes) > most or None in shapes[0] or (len(shapes) == 2 and len(shapes[1]) != 1):
        raise ValueError(f"{name}: expected the inputs {inputs} of known shape, got {shapes}")
    form, rank = ("images [height, width, channels]", 3) if first == "image" else (f"{first} [size]", 1)
    if len(shapes[0]) != rank:
        raise ValueError(f"{name}: expected {form}, got {list(shapes[0])}; reshape them")
    return shapes[0], (shapes[1][0] if len(shapes) == 2 else 0), last.event_shape


def check_separate(**networks: keras.Model | None) -> None:
    """Raises ValueError if two networks have a weight in common, with which Keras cannot load the model again."""
    owners: dict[int, str] = {}
    for name, network in networks.items():
        for weight in network.weights if network is not None else ():
            owner = owners.setdefault(id(weight), name)
            if owner != name:
                raise ValueError(
                    f"{name}: expected layers of its own, got one with the weight {weight.name!r} that {owner} has, "
                    "too, with which a saved model could not be loaded; make a second layer"
                )


def compute_dtypes(model: keras.Model) -> list[str]:
    """Names of the dtypes in which the layers of a model compute, sorted."""
    layers = [layer for layer in model.submodules if isinstance(layer, keras.layers.Layer)]
    return sorted({layer.compute_dtype for layer in layers if not isinstance(layer, keras.metrics.Metric)})


def check_optimizer(optimizer: Any, dtypes: Collection[str]) -> None:
    """Raises TypeError for a class or an optimizer of another Keras, ValueError for one that fails in a dtype."""
    _check_no_class("optimizer", optimizer)
    if _is_of_keras_3(optimizer):
        raise _another_keras("optimizer", optimizer, "one", "optimizers")
    # Keras scales the loss by itself only where the model is float16 as a whole.
    if "float16" in dtypes and not isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        raise ValueError(
            "optimizer: expected tf_keras.mixed_precision.LossScaleOptimizer for networks in float16, whose "
            f"gradients vanish without it, got {optimizer!r}; or make them under the policy mixed_bfloat16"
        )


def check_loss(loss: Any) -> None:
    """Raises TypeError for several losses or a class, and ValueError for a loss of Keras."""
    if isinstance(loss, list | tuple | dict):
        raise TypeError(f"loss: expected one loss, as the model has one output, got {loss!r:.80}; give it alone")
    module = getattr(loss, "__module__", "") if callable(loss) else ""
    if isinstance(loss, str) or module.split(".")[0] in ("keras", "tf_keras"):
        raise ValueError(
            f"loss: expected tfp_cvae.NegativeELBO() or NegativeIWAE(), got {loss!r}, which compares the image "
            "with its reconstruction and knows nothing of the latent"
        )
    _check_no_class("loss", loss)


def check_metrics(metrics: Iterable[Any]) -> None:
    """Raises TypeError for a class or a metric of another Keras, and ValueError for the accuracy of pixels."""
    for metric in metrics:
        if isinstance(metric, str) and metric in ("accuracy", "acc"):
            raise ValueError(
                f"metrics: expected such as tfp_cvae.ELBO(), got {metric!r}, which would be that of pixels; "
                "tfp_cvae.evaluate classifies by Bayes' rule"
            )
        _check_no_class("metrics", metric)
        if _is_of_keras_3(metric):
            raise _another_keras("metrics", metric, "one", "metrics")


def check_callbacks(callbacks: Any, bounds: Collection[str]) -> None:
    """Raises TypeError for a callback of another Keras, and ValueError for what would minimise a bound, or cannot save.

    The bounds are known by their names, with "val_" before them or without.
    """
    for callback in _listed(callbacks):
        if not isinstance(callback, (keras.callbacks.Callback, keras.callbacks.CallbackList, type(None))):
            _check_no_class("callbacks", callback)
            if _is_of_keras_3(callback):
                raise _another_keras("callbacks", callback, "callbacks", "callbacks")
            raise TypeError(f"callbacks: expected callbacks of tf_keras, got {callback!r:.80}")
        monitor = getattr(callback, "monitor", None)
        falls = getattr(callback, "monitor_op", None) is np.less or getattr(callback, "mode", None) in ("auto", "min")
        if str(monitor).removeprefix("val_") in bounds and falls:
            raise ValueError(
                f'callbacks: expected mode="max" of {type(callback).__name__}, as {monitor} is to rise, got "min", '
                "which Keras supposes where no mode is given"
            )
        if isinstance(callback, keras.callbacks.ModelCheckpoint):
            path = os.fspath(callback.filepath)
            if not callback.save_weights_only and not path.endswith(".keras"):
                raise ValueError(
                    f"callbacks: ModelCheckpoint: {KERAS_FORMAT_ONLY}, got {path!r}; or pass save_weights_only=True"
                )


def introduce(callbacks: Any) -> None:
    """Tells those callbacks of this package that have to know of the others, with a method `meet_callbacks`, of all."""
    listed = list(_listed(callbacks))
    for callback in listed:
        if hasattr(callback, "meet_callbacks"):
            callback.meet_callbacks(listed)


def check_order(callbacks: Any) -> None:
    """Raises ValueError if a callback needs data in an order that Keras is to shuffle."""
    for callback in _listed(callbacks):
        if getattr(callback, "needs_order", False):
            raise ValueError(
                f"shuffle: expected False for arrays or a Sequence beside {type(callback).__name__} without batches, "
                "as Keras shuffles them by a generator that no backup has, got True; pass shuffle=False, or train on "
                "Split.batches and give them to it"
            )


def _listed(callbacks: Any) -> Any:
    return callbacks if isinstance(callbacks, (tuple, list)) else getattr(callbacks, "callbacks", [callbacks])


def _check_no_class(name: str, part: Any) -> None:
    if isinstance(part, type):
        kind = part.__name__
        raise TypeError(f"{name}: expected an instance, got the class {kind}; add parentheses: {kind}()")


def _is_of_keras_3(part: Any) -> bool:
    return type(part).__module__.split(".")[0] == "keras"


def _another_keras(name: str, part: Any, what: str, place: str) -> TypeError:
    kind = type(part)
    return TypeError(
        f"{name}: expected {what} of tf_keras, got {kind.__module__}.{kind.__name__}; tf.keras is Keras 3 here, so "
        f"use tf_keras.{place}.{kind.__name__}"
    )
