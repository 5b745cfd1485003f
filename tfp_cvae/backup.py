"""Backups of a training, from which it goes on as if it had never been interrupted."""

import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import atomic
from tfp_cvae.callbacks import SwapEMAWeights
from tfp_cvae.data import EpochCounter

# What Keras's own callbacks remember from epoch to epoch.
_ATTRIBUTES = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.History: ("epoch", "history"),
}
_CHECKPOINT = "checkpoint"
_STATE = "state.json"
_ARRAYS = "arrays.npz"


@runtime_checkable
class Stateful(Protocol):
    """A callback that says what it remembers from epoch to epoch, in types of JSON, and NumPy arrays."""

    def get_state(self) -> Mapping[str, Any]:
        """What it remembers."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` has given."""


class Backup(keras.callbacks.Callback):
    """Backs a training up between epochs; `fit` with the same arguments goes on exactly from there.

        batches = data.train.batches(128)
        backup = Backup("backup", batches, callbacks)
        cvae.fit(batches, epochs=100, initial_epoch=backup.initial_epoch, callbacks=[*callbacks, backup])

    A backup is a folder that appears whole: a TensorFlow checkpoint of the model with its optimizer, and beside it
    what the callbacks remember. The next one replaces it. Weights, optimizer, moving averages, history and what the
    callbacks do are then bit for bit those of a training that was never interrupted, on the same machine with the same
    versions. The callbacks whose memory is kept are `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` of
    Keras, those of this package, the `History` that `fit` returns, and your own if they are `Stateful`.

    Args:
        folder: Folder for the backups; made if it is not there.
        batches: What `fit` trains on: a result of `Split.batches`, or, if another function is mapped over it, that
            result itself; None for data whose order is not another one in each epoch.
        callbacks: The other callbacks that `fit` is given, before this one in its list.
        every_seconds: Time that has to pass until the next backup; what was trained since the last one is trained
            again, with the same result.

    Raises:
        TypeError: If `batches` does not count its epochs.
        ValueError: If the folder holds a backup that cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batches: tf.data.Dataset | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        *,
        every_seconds: float = 30.0,
    ) -> None:
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.callbacks = list(callbacks)
        self.every_seconds = every_seconds
        self._epochs: EpochCounter | None = None
        if batches is not None:
            self._epochs = getattr(batches, "epochs", None)
            if not isinstance(self._epochs, EpochCounter):
                raise TypeError(
                    f"batches: expected a result of Split.batches of the training split, got {type(batches).__name__}; "
                    "give None if the order of the data is the same in each epoch"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self._read()
        self.initial_epoch: int = state["epoch"]
        self.finished: bool = state["finished"]
        self._restored: Mapping[str, Any] | None = None
        self._last = 0.0

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        atomic.delete_temporary(self.folder)
        # What an earlier `fit` with this callback has left, too.
        state = self._read()
        self.initial_epoch = state["epoch"]
        if self._epochs is not None:
            self._epochs.next = self.initial_epoch
        if state["epoch"]:
            self._restore_weights(state["epoch"])
            self._restored = state
        self._last = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if epoch < self.initial_epoch:
            raise ValueError(
                f"initial_epoch: expected {self.initial_epoch}, as the backup in {self.folder} has so many epochs, "
                f"got {epoch}; pass initial_epoch=backup.initial_epoch to fit, or begin again with another folder"
            )
        # Only now, as other callbacks begin afresh in `on_train_begin`.
        self._restore_callbacks()
        if epoch > self.initial_epoch and time.monotonic() >= self._last + self.every_seconds:
            self._write(epoch, finished=False)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self._restored is not None:
            # There was nothing left to do.
            self._restore_callbacks()
        elif np.isfinite((logs or {}).get("loss", np.nan)):
            self._write(self.model.history.epoch[-1] + 1, finished=True)

    def delete(self) -> None:
        """Deletes the backup, after which a training begins at the beginning."""
        atomic.delete_folder(self.folder)

    def _all_callbacks(self) -> list[keras.callbacks.Callback]:
        return [*self.callbacks, self.model.history]

    def _restore_callbacks(self) -> None:
        if self._restored is not None:
            for callback, state in zip(self._all_callbacks(), self._restored["callbacks"], strict=True):
                _set_state(callback, state)
            self._restored = None

    def _write(self, epoch: int, *, finished: bool) -> None:
        if any(isinstance(callback, SwapEMAWeights) and callback.swapped for callback in self.callbacks):
            raise ValueError("callbacks: expected Backup after SwapEMAWeights in the list, got it before")
        arrays: dict[str, Any] = {}
        state = {
            "epoch": epoch,
            "finished": finished,
            "callbacks": [_without_arrays(_get_state(callback), arrays) for callback in self._all_callbacks()],
        }
        text = json.dumps(state)

        def write(folder: pathlib.Path) -> None:
            try:
                tf.train.Checkpoint(model=self.model).write(str(folder / _CHECKPOINT))
            except tf.errors.OpError as error:
                # The last part of the message is the reason; before it are temporary names.
                raise OSError(error.message.rpartition("; ")[2]) from error
            (folder / _STATE).write_text(text)
            np.savez(folder / _ARRAYS, **arrays)

        earlier = atomic.numbered(self.folder)
        if epoch in earlier:
            # The end of a training, just after a backup of its last epoch.
            atomic.delete_folder(self.folder / str(epoch))
        atomic.write_folder(self.folder / str(epoch), write)
        for number in earlier:
            if number != epoch:
                atomic.delete_folder(self.folder / str(number))
        self._last = time.monotonic()

    def _read(self) -> dict[str, Any]:
        """State of the newest backup."""
        newest = max(atomic.numbered(self.folder), default=0)
        if not newest:
            return {"epoch": 0, "finished": False, "callbacks": []}
        path = self.folder / str(newest)
        try:
            with np.load(path / _ARRAYS, allow_pickle=False) as arrays:
                state = _with_arrays(json.loads((path / _STATE).read_text()), arrays)
            if state["epoch"] != newest:
                raise ValueError(f"epoch {state['epoch']}")
            return {"epoch": newest, "finished": bool(state["finished"]), "callbacks": list(state["callbacks"])}
        except Exception as error:
            raise ValueError(
                f"{path}: expected a whole backup, got an unreadable one ({error}); delete {self.folder} to begin again"
            ) from error

    def _restore_weights(self, epoch: int) -> None:
        self.model.optimizer.build(self.model.trainable_variables)
        path = self.folder / str(epoch) / _CHECKPOINT
        try:
            tf.train.Checkpoint(model=self.model).read(str(path)).assert_consumed()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{path.parent}: expected a backup of this model and optimizer, got another one ({reason}); go on with "
                "what was trained there, or begin again with another folder"
            ) from error


def _get_state(callback: keras.callbacks.Callback) -> Mapping[str, Any]:
    if isinstance(callback, Stateful):
        return callback.get_state()
    return {name: getattr(callback, name) for name in _attributes(callback)}


def _set_state(callback: keras.callbacks.Callback, state: Mapping[str, Any]) -> None:
    if isinstance(callback, Stateful):
        callback.set_state(state)
    else:
        for name in _attributes(callback):
            setattr(callback, name, state[name])


def _attributes(callback: keras.callbacks.Callback) -> Iterable[str]:
    found = (names for kind, names in _ATTRIBUTES.items() if isinstance(callback, kind))
    return [name for name in itertools.chain(*found) if hasattr(callback, name)]


def _without_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value for JSON, each array in it replaced by its name in `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _without_arrays(part, arrays) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(part, arrays) for part in value]
    return value


def _with_arrays(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Inverse of `_without_arrays`."""
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {key: _with_arrays(part, arrays) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_arrays(part, arrays) for part in value]
    return value
