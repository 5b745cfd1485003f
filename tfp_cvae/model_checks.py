"""Checks of what a model is made of and fed with, where Keras would fail late or not at all."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


def checked_network(name: str, network: Any, first: str, *outputs: Any) -> tuple[tuple[int, ...], int, Any]:
    """Shape of the first input without the batch, width of the one-hot input or 0, and event shape of the output."""
    if not isinstance(network, keras.Model) or not getattr(network, "inputs", None):
        raise TypeError(
            f"{name}: expected a functional Keras model (tf_keras.Model(inputs, outputs)) with the inputs {first} or "
            f"[{first}, one_hot], got {type(network).__module__}.{type(network).__name__}"
        )
    last = network.layers[-1]
    if not isinstance(last, outputs):
        expected = " or ".join(kind.__name__ for kind in outputs)
        raise TypeError(f"{name}: expected an output of the layer {expected}, got {type(last).__name__}")
    shapes = [tuple(tensor.shape[1:]) for tensor in network.inputs]
    if len(shapes) > 2 or None in shapes[0] or (len(shapes) == 2 and len(shapes[1]) != 1):
        raise ValueError(f"{name}: expected the inputs {first} or [{first}, one_hot] of known shape, got {shapes}")
    return shapes[0], (shapes[1][0] if len(shapes) == 2 else 0), last.event_shape


def checked_dataset(data: Any) -> Any:
    """A `tf.data.Dataset` that stops with an error at an input that is not in [0, 1]; anything else as it is."""
    if not isinstance(data, tf.data.Dataset):
        return data

    def check(x: Any, *rest: Any) -> Any:
        assertions = []
        for name, tensor in zip(("image", "one_hot"), tf.nest.flatten(x), strict=False):
            hint = "divide grey values by 255, or binarize them" if name == "image" else "give one-hot rows"
            # Written so that NaN fails it.
            holds = tf.reduce_all((tensor >= 0) & (tensor <= 1))
            assertions.append(tf.debugging.Assert(holds, [f"{name}: expected values in [0, 1]; {hint}. Got:", tensor]))
        with tf.control_dependencies(assertions):
            return tf.nest.map_structure(tf.identity, (x, *rest))

    return data.map(check)


def check_callbacks(callbacks: Any) -> None:
    """Raises TypeError for a callback of another Keras."""
    for callback in callbacks if isinstance(callbacks, (tuple, list)) else (callbacks,):
        if not isinstance(callback, (keras.callbacks.Callback, keras.callbacks.CallbackList, type(None))):
            kind = type(callback)
            raise TypeError(
                f"callbacks: expected callbacks of tf_keras, got {kind.__module__}.{kind.__name__}; "
                f"tf.keras is Keras 3 here, so use tf_keras.callbacks.{kind.__name__}"
            )
