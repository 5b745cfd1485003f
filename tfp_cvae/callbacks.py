"""Keras callbacks for training a CVAE."""

import csv
import io
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import checks, distribution
from tfp_cvae.atomic import write_atomically

HISTORY_COLUMNS = (
    "epoch",
    "seconds",
    "images_per_second",
    "loss",
    "elbo",
    "rate",
    "distortion",
    "val_loss",
    "val_elbo",
    "val_rate",
    "val_distortion",
)


class KLWarmUp(keras.callbacks.Callback):
    """Raises the weight of the KL in `NegativeELBO` linearly, from 1/epochs of it in the first epoch to its full value.

    The full value is the `kl_weight` that the loss was given. The reported bound stays the true one: the weight is in
    the loss only (Bowman et al. 2016; Sonderby et al. 2016). Losses of different epochs cannot be compared, so choose
    epochs by `val_elbo`. After a `fit` that ended with an exception the weight may be a lower one: compile with a new
    loss, or go on with this callback.

    Args:
        epochs: Epochs until the full weight is reached, >= 1.

    Raises:
        TypeError: If `epochs` is not an integer; from `fit`, if the loss is another one.
        ValueError: If `epochs` is less than 1; from `fit`, if a callback chooses epochs by `loss` or `val_loss`.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = checks.integer("epochs", epochs, 1)

    def meet_callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Learns of the callbacks of a `fit`; called by `CVAE.fit`.

        Args:
            callbacks: All of them.

        Raises:
            ValueError: If one compares losses of epochs in which the KL does not have its full weight.
        """
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            compares = getattr(callback, "save_best_only", True) and monitor in ("loss", "val_loss")
            if compares and getattr(callback, "start_from_epoch", 0) < self.epochs - 1:
                raise ValueError(
                    f'callbacks: expected monitor="val_elbo" and mode="max" of {type(callback).__name__} beside '
                    f"KLWarmUp, which raises the weight of the KL, and so the loss, with the epochs, got {monitor!r}"
                )

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        loss = self.model.loss
        if not hasattr(loss, "full_kl_weight"):
            raise TypeError(f"loss: expected NegativeELBO for KLWarmUp, got {loss!r}")
        loss.kl_weight.assign(loss.full_kl_weight * min(1.0, (epoch + 1) / self.epochs))

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        # There may have been fewer epochs, and the next `fit` may be without this callback.
        self.model.loss.kl_weight.assign(self.model.loss.full_kl_weight)


class LabelWarmUp(keras.callbacks.Callback):
    """Trains q(y|x) on labelled images alone at first, and lets in the gradient of the others' bound with the epochs.

    Encoder and decoder learn from all images from the beginning, with the labels that q(y|x) finds. They know no label
    yet, and would teach q(y|x) to give the same label to all images. It is a matter of gradients: loss and bound stay
    what they are. For `SemiSupervisedNegativeELBO`. After a `fit` that ended with an exception some of the gradient may
    stay out: compile with a new loss, or go on with this callback.

    Args:
        epochs: Epochs until all of the gradient is taken: 0 in the first, 1/epochs in the second; >= 1.

    Raises:
        TypeError: If `epochs` is not an integer; from `fit`, if the loss is another one.
        ValueError: If `epochs` is less than 1.
    """

    def __init__(self, epochs: int = 1) -> None:
        super().__init__()
        self.epochs = checks.integer("epochs", epochs, 1)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        weight = getattr(self.model.loss, "label_gradient", None)
        if weight is None:
            raise TypeError(f"loss: expected SemiSupervisedNegativeELBO for LabelWarmUp, got {self.model.loss!r}")
        weight.assign(min(1.0, epoch / self.epochs))

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        # As in a loss that is new, for a `fit` without this callback.
        self.model.loss.label_gradient.assign(1.0)


class NonFiniteLossError(ValueError):
    """A loss that is NaN or infinite."""


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Stops with an error when loss or weights are not finite, and puts back the weights that the epoch began with.

    Put it before `ModelCheckpoint` and after `SwapEMAWeights`.

    Attributes:
        epoch: Number of the epoch, from 0.

    Raises:
        NonFiniteLossError: From `fit`; a ValueError, whose message tells the step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: list[np.ndarray] = []
        self.epoch = self._batch = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.epoch, self._batch = epoch, 0
        self._weights = self.model.get_weights()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            # Several steps are one execution if the model was compiled so.
            several = batch > self._batch
            self._stop("loss", loss, f"steps {self._batch + 1} to {batch + 1}" if several else f"step {batch + 1}")
        self._batch = batch + 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        # The last step may have spoilt the weights, and its loss was computed before.
        for name in ("loss", "val_loss"):
            value = (logs or {}).get(name, 0.0)
            if not np.isfinite(value):
                self._stop(name, value, "after its last step")
        for weight in self.model.weights:
            values = weight.numpy()
            if not np.all(np.isfinite(values)):
                self._stop(f"weight {weight.name}", values[~np.isfinite(values)][0], "after its last step")

    def _stop(self, name: str, value: float, where: str) -> None:
        self.model.set_weights(self._weights)
        raise NonFiniteLossError(
            f"{name}: expected finite values, got {value} in epoch {self.epoch + 1}, {where}, and stopped; the weights "
            "are those at the beginning of the epoch; compile again before another fit, as the optimizer may have kept "
            "such values. Likely reasons: the learning rate is too high, the model began with values too large, or own "
            "networks divide or take a logarithm of 0"
        )


class SwapEMAWeights(keras.callbacks.Callback):
    """Validates, and shows to the callbacks after it, the moving average of the weights that the optimizer keeps.

    For an optimizer with `use_ema=True`. Keras itself puts the average into the model only when training ends, so that
    validation during training would measure other weights than those that are kept. Put it before all callbacks that
    keep weights, but after Keras's `BackupAndRestore`, which is to have those that are trained.

    Raises:
        ValueError: From `fit`, if the optimizer keeps no average, or the order of the callbacks is another one.
    """

    def __init__(self) -> None:
        super().__init__()
        # The variables that hold their average at the moment, with what was trained, and with that average.
        self._swapped: list[tuple[tf.Variable, np.ndarray, np.ndarray]] = []

    def meet_callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Learns of the callbacks of a `fit`; called by `CVAE.fit`.

        Args:
            callbacks: All of them.

        Raises:
            ValueError: If one would keep other weights than it is to keep, as it comes before or after this one.
        """
        place = callbacks.index(self)
        for callback in callbacks[:place]:
            if _keeps_validated(callback) or isinstance(callback, StopAtNonFiniteLoss):
                kind = type(callback).__name__
                raise ValueError(
                    f"callbacks: expected {kind} after SwapEMAWeights in the list, got it before, where the model has "
                    f"other weights than those that {kind} is to keep; swap them"
                )
        for callback in callbacks[place:]:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                raise ValueError(
                    "callbacks: expected BackupAndRestore before SwapEMAWeights in the list, got it after, where it "
                    "would go on from the average; swap them, or use tfp_cvae.Backup, which comes after"
                )

    def set_model(self, model: keras.Model) -> None:
        if model is not self.model:
            self._swapped = []
        super().set_model(model)

    def _swap_in(self) -> None:
        variables = self.model.trainable_variables
        trained = [variable.numpy() for variable in variables]
        self.model.optimizer.finalize_variable_values(variables)
        self._swapped = [
            (variable, value, variable.numpy()) for variable, value in zip(variables, trained, strict=True)
        ]

    def _swap_out(self) -> None:
        for variable, value, _ in self._swapped:
            variable.assign(value)
        self._swapped = []

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        optimizer = self.model.optimizer
        if not getattr(getattr(optimizer, "inner_optimizer", optimizer), "use_ema", False):
            raise ValueError(
                f"optimizer: expected use_ema=True for SwapEMAWeights, got {type(optimizer).__name__} without; "
                "give it to the optimizer, or leave the callback out"
            )
        # After a `fit` that ended with an exception in between; but the model may have been given other weights since.
        if not all(np.array_equal(variable.numpy(), average) for variable, _, average in self._swapped):
            self._swapped = []
        self._swap_out()

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self._swap_in()

    def on_test_end(self, logs: Mapping[str, float] | None = None) -> None:
        self._swap_out()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._swap_in()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._swap_out()

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        # The model keeps the average.
        self._swapped = []


def _keeps_validated(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback keeps the weights of the epoch that was best in validation."""
    keeps = getattr(callback, "save_best_only", False) or getattr(callback, "restore_best_weights", False)
    return bool(keeps) and str(getattr(callback, "monitor", "")).startswith("val_")


class HistoryCSV(keras.callbacks.Callback):
    """Writes one row for each epoch, whole or not at all; of several workers, the chief writes.

    The columns are `HISTORY_COLUMNS`. `seconds` and `images_per_second` are of the training alone, without
    validation and other callbacks; the bounds are in nats per image.

    Args:
        path: File to write.
        images_per_epoch: Number of images that an epoch trains on.
    """

    def __init__(self, path: str | os.PathLike[str], images_per_epoch: int) -> None:
        super().__init__()
        self.path = pathlib.Path(path)
        self.images_per_epoch = images_per_epoch
        self.rows: list[Mapping[str, Any]] = []
        self._begin: float | None = None
        self._seconds: float | None = None

    def get_state(self) -> Mapping[str, Any]:
        """The rows, for `Backup`."""
        return {"rows": self.rows}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` has given."""
        self.rows = state["rows"]

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._begin = self._seconds = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        # After all that other callbacks do before an epoch.
        if self._begin is None:
            self._begin = time.perf_counter()

    def _stop_clock(self) -> None:
        if self._seconds is None:
            assert self._begin is not None
            self._seconds = time.perf_counter() - self._begin

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self._stop_clock()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._stop_clock()
        assert self._seconds is not None
        row = {
            "epoch": epoch + 1,
            "seconds": round(self._seconds, 3),
            "images_per_second": round(self.images_per_epoch / self._seconds, 1),
            **(logs or {}),
        }
        # Those after it are of an earlier `fit`.
        self.rows = [*(kept for kept in self.rows if kept["epoch"] <= epoch), row]
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        if distribution.is_chief(self.model.distribute_strategy):
            write_atomically(self.path, lambda path: path.write_text(text.getvalue()))


class ImageGrid(keras.callbacks.Callback):
    """Generates one image of each class after each epoch, always from the same latent, and keeps some of them.

    Kept are the epochs 1, 2, 5, 10, 20, 50, ... and the newest one, in an `.npz` file with `epochs` `[e]` int64 and
    `images` `[e, rows, height, width, channels]` uint8, pixel probabilities times 255. A row is a class; of a model
    without classes, one of eight latents. Of several workers, the chief writes. A file that is there is replaced, also
    by a new object with which a training goes on (`initial_epoch`), unless `Backup` gives it the images of before.

    Args:
        path: File to write; its name ends in `.npz`.
        seed: Seed of the latent.

    Raises:
        ValueError: If the name of the file does not end in `.npz`.
    """

    def __init__(self, path: str | os.PathLike[str], seed: int = 0) -> None:
        super().__init__()
        self.path = pathlib.Path(path)
        if self.path.suffix != ".npz":
            raise ValueError(
                f"path: expected a name that ends in .npz, got {str(path)!r}; plotting.image_table draws it"
            )
        self.seed = seed
        self.images: dict[int, np.ndarray] = {}

    def get_state(self) -> Mapping[str, Any]:
        """The images that are kept, for `Backup`."""
        return {"epochs": list(self.images), "images": list(self.images.values())}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` has given."""
        self.images = dict(zip(state["epochs"], state["images"], strict=True))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        num_classes = self.model.num_classes
        if num_classes:
            images = self.model.generate(np.arange(num_classes), np.full(num_classes, self.seed))
        else:
            images = self.model.generate(seed=self.seed + np.arange(8))
        # Those after it are of an earlier `fit`.
        self.images = {number: kept for number, kept in self.images.items() if number <= epoch and _is_round(number)}
        self.images[epoch + 1] = np.round(images.numpy() * 255).astype(np.uint8)
        epochs, images = np.array(list(self.images)), np.stack(list(self.images.values()))
        if distribution.is_chief(self.model.distribute_strategy):
            write_atomically(self.path, lambda path: np.savez_compressed(path, epochs=epochs, images=images))


def _is_round(number: int) -> bool:
    """Whether the number is 1, 2 or 5 times a power of ten."""
    return str(number).rstrip("0") in ("1", "2", "5")
