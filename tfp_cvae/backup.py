"""Backups of a training, from which it goes on as if it had never been interrupted."""

import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import atomic, callback_state, checks, distribution, model_checks
from tfp_cvae.batches import EpochCounter
from tfp_cvae.callbacks import KLWarmUp, LabelWarmUp, SwapEMAWeights

_CHECKPOINT = "checkpoint"
_STATE = "state.json"
_ARRAYS = "arrays.npz"

# They remember nothing, but without them the training is another one.
_CHANGE_TRAINING = (KLWarmUp, LabelWarmUp, SwapEMAWeights, keras.callbacks.LearningRateScheduler)

# By default a backup is written when so many times as long has passed as the last one took.
_TIMES_AS_LONG = 100


class Backup(keras.callbacks.Callback):
    """Backs a training up between epochs; `CVAE.fit` with the same arguments goes on exactly from there.

        batches = data.train.batches(128)
        backup = Backup("backup", batches)
        cvae.fit(batches, epochs=100, initial_epoch=backup.initial_epoch, callbacks=[backup])

    A backup is a folder that appears whole: a TensorFlow checkpoint of the model with its optimizer, and beside it what
    the callbacks remember. The next one replaces it. Weights, optimizer, moving averages, history and what the
    callbacks do are then bit for bit those of a training that was never interrupted, on the same machine with the same
    versions. The callbacks whose memory is kept are `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` of
    Keras, those of this package, the `History` that `fit` returns, and your own if they are `callback_state.Stateful`.
    Not kept is the randomness of layers that draw by themselves, such as `Dropout`; and the images are not compared.

    A training that has come to its end is not trained again: `fit` restores the model and the history.

    Args:
        folder: Folder for the backups; made if it is not there.
        batches: What `fit` trains on: a result of `Split.batches` or `distribution.distribute`, or, if another function
            is mapped over it, that result itself; None for data in the same order in each epoch, such as arrays or a
            `Sequence` with `shuffle=False`.
        every_seconds: Time that has to pass until the next backup; by default so long that the backups take at most a
            hundredth of it. What was trained since the last one is trained again, with the same result.

    Attributes:
        initial_epoch: For `fit`: the epochs that the backup has, 0 without one; `sys.maxsize` once the training has
            come to its end, so that `fit` runs no epoch.
        epoch: The epochs that the backup has.
        finished: Whether the training has come to its end.
        needs_order: Whether there are no `batches`, so that the data have to be in the same order in each epoch.

    Raises:
        TypeError: If `batches` does not count its epochs, or `every_seconds` is not a number.
        ValueError: If `every_seconds` is negative, or the folder holds a backup that cannot be read; from `fit`, if it
            is one of another training, or `fit` trains on other batches, or on arrays or a `Sequence` that Keras
            shuffles.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batches: tf.data.Dataset | tf.distribute.DistributedDataset | None = None,
        *,
        every_seconds: float | None = None,
    ) -> None:
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.every_seconds = None if every_seconds is None else checks.number("every_seconds", every_seconds, 0)
        self._epochs: EpochCounter | None = getattr(batches, "epochs", None)
        if batches is not None and not isinstance(self._epochs, EpochCounter):
            raise TypeError(
                f"batches: expected a result of Split.batches of the training split, got {type(batches).__name__}; "
                "give None if the order of the data is the same in each epoch"
            )
        self.needs_order = batches is None
        # Number of the epoch of `batches` with which `fit` began: not 0 if they were read before.
        self._first = 0
        self._begun = False
        self._others: list[keras.callbacks.Callback] | None = None
        self._restored: list[dict[str, Any]] | None = None
        self._written = self._took = 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._set_epoch(self._read())

    def meet_callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Learns of the callbacks of a `fit`, whose memory it keeps; called by `CVAE.fit`.

        Args:
            callbacks: All of them.

        Raises:
            ValueError: If a `SwapEMAWeights` comes after this one, which would hide from it what is trained, or a
                `CSVLogger` would begin its file again where the training goes on.
        """
        if any(isinstance(callback, SwapEMAWeights) for callback in callbacks[callbacks.index(self) :]):
            raise ValueError("callbacks: expected Backup after SwapEMAWeights in the list, got it before")
        loggers = [callback for callback in callbacks if isinstance(callback, keras.callbacks.CSVLogger)]
        if self.epoch and not all(logger.append for logger in loggers):
            raise ValueError(
                "callbacks: expected CSVLogger with append=True where a training goes on, got append=False, with which "
                "the rows in its file would be lost; use HistoryCSV, or append=True, with which epochs may come twice"
            )
        self._others = [callback for callback in callbacks if callback is not self]

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self._check_fit()
        # Or the first backup, of a training that has not begun, would have no optimizer.
        self.model.optimizer.build(self.model.trainable_variables)
        if distribution.is_chief(self.model.distribute_strategy):
            atomic.delete_temporary(self.folder)
        state = self._read()
        self._set_epoch(state)
        if state is None:
            self._first = self._epochs.next if self._epochs else 0
        else:
            self._check_same(state)
            self._restore_weights()
            self._first, self._restored = state["first"], state["callbacks"]
        if self._epochs is not None:
            self._epochs.next = self._first + self.epoch
        self._written = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if not self._begun:
            self._first -= epoch
            self._write(epoch, finished=False)
        elif self._restored is not None:
            if epoch != self.epoch:
                raise ValueError(
                    f"initial_epoch: expected {self.epoch}, as the backup in {self.folder} has so many epochs, got "
                    f"{epoch}; pass initial_epoch=backup.initial_epoch to fit, or begin again with another folder"
                )
            # Only now, as other callbacks begin afresh in `on_train_begin`.
            self._restore_callbacks()
        else:
            wait = _TIMES_AS_LONG * self._took if self.every_seconds is None else self.every_seconds
            is_due = time.monotonic() >= self._written + wait
            if distribution.decided_by_chief(self.model.distribute_strategy, is_due):
                self._write(epoch, finished=False)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if self._epochs is None:
            return
        passes, expected = self._epochs.next - self._first, epoch + 1
        reads_ahead = self.model.distribute_strategy.num_replicas_in_sync > 1
        if passes < expected or (passes > expected and not reads_ahead):
            raise ValueError(
                f"batches: expected one pass over them in each epoch, {expected} by now, got {passes}; give Backup and "
                "fit the same result of Split.batches, which nothing else reads, not cached, and others for validation"
            )

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self._restored is not None:
            # Nothing was left to do, but Keras has turned the weights into their average, if the optimizer keeps one.
            self._restore_weights()
            self._restore_callbacks()
        elif np.isfinite((logs or {}).get("loss", np.nan)):
            self._write(self.model.history.epoch[-1] + 1, finished=True)

    def delete(self) -> None:
        """Deletes the backup, after which a training begins at the beginning; of several workers, one calls it."""
        for number in atomic.numbered(self.folder):
            atomic.delete_folder(self.folder / str(number))
        self._set_epoch(None)

    def _set_epoch(self, state: Mapping[str, Any] | None) -> None:
        self._begun = state is not None
        self.epoch: int = state["epoch"] if state else 0
        self.finished: bool = bool(state and state["finished"])
        self.initial_epoch: int = sys.maxsize if self.finished else self.epoch

    def _check_fit(self) -> None:
        """Raises ValueError for what could not be repeated."""
        if self._others is None:
            raise ValueError("model: expected a CVAE, whose fit tells Backup of the other callbacks, got another model")
        if not hasattr(self.model.optimizer, "build"):
            raise ValueError(
                f"optimizer: expected a new one of tf_keras, got {type(self.model.optimizer)}, a legacy one"
            )
        steps, passes = self.params.get("steps"), self._epochs.steps if self._epochs else None
        if passes and steps != passes:
            raise ValueError(f"steps_per_epoch: expected {passes}, one pass over the batches in an epoch, got {steps}")

    def _check_same(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the training to go on with is another one."""
        advice = "go on as it was begun, or begin again with another folder"
        for name, value in self._settings().items():
            # Older backups do not name all of them; those without a precision are of float32.
            before = {"precision": ["float32"], **state["settings"]}.get(name, value)
            # In a text, 1 and 1.0 are not the same.
            if before != value and not (name == "compile" and before and json.loads(before) == json.loads(value)):
                raise ValueError(
                    f"{name}: expected {before} as of the training in {self.folder}, got {value}; {advice}"
                )
        epochs = self.params["epochs"]
        if self.finished and not state["stopped"] and epochs != self.epoch:
            raise ValueError(
                f"epochs: expected {self.epoch}, after which the training in {self.folder} has come to its end, got "
                f"{epochs}; begin again with another folder"
            )

    def _settings(self) -> dict[str, Any]:
        """What has to be the same for the result to be the same, in types of JSON."""
        steps = self.params.get("steps")
        settings = {
            "compile": self.model.compiled_with,
            "seed": self.model.seed,
            "num_samples": self.model.num_samples,
            "deformation": getattr(self.model, "deformation", 0),
            "precision": model_checks.compute_dtypes(self.model),
            "batches": self._epochs.settings.to_dict() if self._epochs else None,
            # All that is known of other data.
            "steps": None if self._epochs or steps is None else int(steps),
            "callbacks": [type(callback).__name__ for callback in self._all_callbacks()],
            "training_callbacks": [
                type(callback).__name__ + (f"({callback.epochs})" if hasattr(callback, "epochs") else "")
                for callback in self._others or ()
                if isinstance(callback, _CHANGE_TRAINING)
            ],
        }
        return json.loads(json.dumps(settings))

    def _all_callbacks(self) -> list[keras.callbacks.Callback]:
        return [callback for callback in [*(self._others or ()), self.model.history] if callback_state.has(callback)]

    def _restore_callbacks(self) -> None:
        for callback, state in zip(self._all_callbacks(), self._restored or (), strict=True):
            callback_state.put_back(callback, state)
        self._restored = None

    def _write(self, epoch: int, *, finished: bool) -> None:
        begin = time.monotonic()
        arrays: dict[str, Any] = {}
        state = {
            "epoch": epoch,
            "finished": finished,
            "stopped": bool(self.model.stop_training),
            "first": self._first,
            "settings": self._settings(),
            "callbacks": [callback_state.get(callback, arrays) for callback in self._all_callbacks()],
        }
        text = json.dumps(state)

        def write(folder: pathlib.Path) -> None:
            self._write_checkpoint(folder)
            (folder / _STATE).write_text(text)
            np.savez(folder / _ARRAYS, **arrays)

        if distribution.is_chief(self.model.distribute_strategy):
            atomic.write_folder(self.folder / str(epoch), write)
            for number in atomic.numbered(self.folder):
                if number != epoch:
                    atomic.delete_folder(self.folder / str(number))
        else:
            # Variables that are summed when they are read, as of BatchNormalization, all workers have to read together.
            with tempfile.TemporaryDirectory() as folder:
                self._write_checkpoint(pathlib.Path(folder))
        self._set_epoch(state)
        self._written = time.monotonic()
        self._took = self._written - begin

    def _write_checkpoint(self, folder: pathlib.Path) -> None:
        try:
            tf.train.Checkpoint(model=self.model).write(str(folder / _CHECKPOINT))
        except tf.errors.OpError as error:
            # The last part of the message is the reason; before it are temporary names.
            raise OSError(error.message.rpartition("; ")[2]) from error

    def _read(self) -> dict[str, Any] | None:
        """State of the newest backup."""
        newest = max(atomic.numbered(self.folder), default=None)
        if newest is None:
            return None
        path = self.folder / str(newest)
        try:
            with np.load(path / _ARRAYS, allow_pickle=False) as arrays:
                state = callback_state.with_arrays(json.loads((path / _STATE).read_text()), arrays)
            if state["epoch"] != newest or not {"finished", "stopped", "first", "settings", "callbacks"} <= set(state):
                raise ValueError(f"a state of epoch {state['epoch']}")
        except Exception as error:
            raise ValueError(
                f"{path}: expected a whole backup, got an unreadable one ({type(error).__name__}: {error}); delete "
                "that folder to begin again"
            ) from error
        return state

    def _restore_weights(self) -> None:
        path = self.folder / str(self.epoch) / _CHECKPOINT
        try:
            tf.train.Checkpoint(model=self.model).read(str(path)).assert_consumed()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{path.parent}: expected a backup of this model and optimizer, got another one ({reason}); go on with "
                "what was trained there, or begin again with another folder"
            ) from error
