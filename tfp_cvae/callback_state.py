"""What callbacks remember from epoch to epoch, as JSON and arrays."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tf_keras as keras

# What Keras's own callbacks remember from epoch to epoch.
_ATTRIBUTES = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ModelCheckpoint: (
        "best",
        "epochs_since_last_save",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.History: ("epoch", "history"),
}
# Stands for an array, with its name.
_ARRAY = "__array__"


@runtime_checkable
class Stateful(Protocol):
    """A callback that says what it remembers from epoch to epoch, in types of JSON and NumPy arrays.

    A tuple comes back as a list.
    """

    def get_state(self) -> Mapping[str, Any]:
        """What it remembers."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` has given."""


def has(callback: keras.callbacks.Callback) -> bool:
    """Whether it is known what a callback remembers."""
    return isinstance(callback, (Stateful, *_ATTRIBUTES))


def get(callback: keras.callbacks.Callback, arrays: dict[str, Any]) -> Any:
    """What a callback remembers.

    Args:
        callback: One of which it is known.
        arrays: Arrays by name, to which those of the callback are added.

    Returns:
        Types of JSON, with the name of an array in its place.
    """
    if isinstance(callback, Stateful):
        try:
            return _without_arrays(callback.get_state(), arrays)
        except TypeError as error:
            raise TypeError(f"{type(callback).__name__}.get_state: {error}") from error
    return _without_arrays({name: getattr(callback, name) for name in _attributes(callback)}, arrays)


def put_back(callback: keras.callbacks.Callback, state: Mapping[str, Any]) -> None:
    """Gives a callback back what it remembered: what `get` has returned, after `with_arrays`."""
    if isinstance(callback, Stateful):
        callback.set_state(state)
    else:
        for name in _attributes(callback):
            setattr(callback, name, state[name])


def _attributes(callback: keras.callbacks.Callback) -> Iterable[str]:
    found = (names for kind, names in _ATTRIBUTES.items() if isinstance(callback, kind))
    return [name for name in itertools.chain(*found) if hasattr(callback, name)]


def _without_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    """The value for JSON, each array in it replaced by its name in `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"expected names as keys, as JSON has them, got {list(value)!r:.80}; use str(key)")
        return {key: _without_arrays(part, arrays) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(part, arrays) for part in value]
    return value


def with_arrays(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value with each array in the place of its name."""
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: with_arrays(part, arrays) for key, part in value.items()}
    if isinstance(value, list):
        return [with_arrays(part, arrays) for part in value]
    return value
