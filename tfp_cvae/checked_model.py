"""The Keras model that checks what it is compiled and fed with, where Keras would fail late or not at all."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import array_checks
from tfp_cvae.atomic import write_atomically
from tfp_cvae.batch_checks import (
    TARGET,
    CheckedSequence,
    check_is_batches,
    check_shape,
    check_single,
    check_spec,
    checked_dataset,
    target_is_checked,
    weight_is_checked,
)
from tfp_cvae.layers import clear_bijector_cache
from tfp_cvae.model_checks import (
    KERAS_FORMAT_ONLY,
    check_callbacks,
    check_loss,
    check_metrics,
    check_optimizer,
    check_order,
    compute_dtypes,
    introduce,
)

_ARRAYS = (np.ndarray, tf.Tensor, tf.Variable)


class CheckedModel(keras.Model):
    """A model of images that checks what `fit`, `evaluate` and `predict` are given, and saves as `.keras` alone.

    Attributes:
        image_shape: `(height, width, channels)`.
        num_classes: Width of the one-hot label; 0 without labels.
        takes_unlabelled: Whether a row of zeros may stand for an image without label.
        reads_metrics: Whether a step returns its metrics; `execution` may read them later instead.
        compiled_with: Optimizer, loss and their settings as they were given to `compile`, for comparison.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    compiled_with: str
    # What Keras makes of the steps when it first needs them.
    train_function: Any
    test_function: Any
    predict_function: Any
    takes_unlabelled = False
    reads_metrics = True
    _num_running = 0
    # Names of what is reported and is to rise.
    _bounds = frozenset({"elbo"})

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, *args: Any, **kwargs: Any) -> None:
        """Compiles as `keras.Model.compile` does, after a check of what is given.

        Args:
            optimizer: As of `keras.Model.compile`.
            loss: `NegativeELBO` or `NegativeIWAE`, or a loss of your own that takes image and `CVAEOutput`.
            *args: Of `keras.Model.compile`. A metric that is a function is given the mean image, as by Keras; one that
                reads the whole `CVAEOutput` is a subclass of `keras.metrics.Mean` with an `update_state`.
            **kwargs: Of `keras.Model.compile`.

        Raises:
            TypeError: If the optimizer or a metric is not one of `tf_keras`, there is more than one loss, or a class
                stands in the place of an instance.
            ValueError: If the loss is one of Keras, which sees the mean image alone, a metric is "accuracy", which
                would be that of pixels, or networks in float16 are trained without scaling of the loss.
        """
        metrics = tf.nest.flatten([args[:1], kwargs.get("metrics"), kwargs.get("weighted_metrics")])
        check_optimizer(optimizer, compute_dtypes(self))
        check_loss(loss)
        check_metrics(metrics)
        super().compile(optimizer, loss, *args, **kwargs)
        rising = (part.name for part in [loss, *metrics] if getattr(part, "is_to_rise", False))
        self._bounds = frozenset({"elbo", *rising})
        compared = [(type(part).__name__, _settings(part)) for part in (self.optimizer, loss)]
        self.compiled_with = json.dumps(compared, default=_plain)

    def compile_from_config(self, config: Any) -> None:
        """Compiles as `keras.Model.compile_from_config`, which leaves out a model that overrides `compile`."""
        # These arguments were given to this `compile`; that of a subclass may take others.
        CheckedModel.compile(self, **keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def _set_traced(self, name: str, value: Any) -> None:
        """Sets what is part of the steps of `fit`, `evaluate` and `predict`: another value has them traced again."""
        if getattr(self, name, None) == value:
            return
        if self._num_running:
            raise ValueError(
                f"{name.removeprefix('_')}: expected {getattr(self, name)} until fit, evaluate or predict has ended, "
                f"as its steps are traced with it, got {value}; change it between two calls"
            )
        setattr(self, name, value)
        self.train_function = self.test_function = self.predict_function = None

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Has settings of the steps refuse to change, and puts back the number of steps at a time after an exception.

        Keras leaves it lower if that comes in the last steps of an epoch. Afterwards no density keeps a graph.
        """
        several = self._steps_per_execution
        number = None if several is None else several.numpy()
        self._num_running += 1
        try:
            yield
        except BaseException:
            if several is not None:
                several.assign(number)
            raise
        finally:
            self._num_running -= 1
            if not self._num_running:
                clear_bijector_cache()

    def build_optimizer(self) -> None:
        """Makes the variables of the optimizer: those made in a step that is being traced have it traced once more.

        With `use_ema` the averages begin at the weights that the model has now, until a step is made.
        """
        if not hasattr(self.optimizer, "build") or not self.trainable_variables:
            return
        self.optimizer.build(self.trainable_variables)
        optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if getattr(optimizer, "use_ema", False) and not optimizer.iterations.numpy():
            # Those of a loaded model were made before its weights were read. The optimizer may have been built
            # before some layers were frozen.
            averages, places = optimizer._model_variables_moving_average, optimizer._index_dict
            for weight in self.weights:
                if optimizer._var_key(weight) in places:
                    averages[places[optimizer._var_key(weight)]].assign(weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Values of the metrics, as of `keras.Model`; none while `reads_metrics` is False."""
        return super().get_metrics_result() if self.reads_metrics else {}

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, after a check of what is given.

        The form of a `tf.data.Dataset` is checked before the training, and each batch when it comes: one that is out of
        range stops the training with an `InvalidArgumentError` of TensorFlow. A subclass with a `call` or a step of its
        own may be given what these take; it is checked as far as it is the image and the label of this model. What a
        `Sequence` gives in a process that is spawned (`use_multiprocessing`) is not checked.

        Args:
            x: `(image, one_hot)` arrays, or `image` without classes; or a `tf.data.Dataset`, `Sequence` or generator of
                `((image, one_hot), image)`.
            y: `image` again, with arrays.
            batch_size: As of `keras.Model.fit`, and so are the others.
            epochs: As of `keras.Model.fit`.
            verbose: As of `keras.Model.fit`.
            callbacks: Callbacks of `tf_keras`.
            validation_split: As of `keras.Model.fit`.
            validation_data: As `x`, or `((image, one_hot), image)` arrays.
            shuffle: As of `keras.Model.fit`.
            class_weight: None: Keras takes it for weights of the values of `y`, which is the image.
            **kwargs: Of `keras.Model.fit`.

        Returns:
            The history: loss and metrics of each epoch.

        Raises:
            TypeError: If a callback is not one of `tf_keras`, or values are no numbers.
            ValueError: If an array is not finite, out of range or of the wrong shape, batches have no target, a
                sample_weight is negative or not finite, there is a class_weight, or the callbacks do not fit.
        """
        if class_weight is not None:
            raise ValueError(
                "class_weight: expected None, as y is the image and Keras would weigh its pixels, got "
                f"{class_weight!r:.80}; give sample_weight, one for each image"
            )
        self._check_arrays("train_step", x, y, kwargs.get("sample_weight"))
        x = self._checked_batches("train_step", x)
        if isinstance(validation_data, (tuple, list)):
            self._check_arrays("test_step", *validation_data[:3])
        elif validation_data is not None:
            validation_data = self._checked_batches("test_step", validation_data)
        check_callbacks(callbacks, self._bounds)
        introduce(callbacks)
        if shuffle and isinstance(x, (*_ARRAYS, tuple, list, keras.utils.Sequence)):
            check_order(callbacks)
        # Where the last `fit` ended with an exception, Keras would validate on its data again.
        self._eval_data_handler = None
        with self._running():
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data, shuffle, **kwargs
            )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Evaluates as `keras.Model.evaluate` does, after the checks of `fit`.

        Args:
            x: As for `fit`.
            y: As for `fit`.
            batch_size: As of `keras.Model.evaluate`, and so are the others.
            verbose: As of `keras.Model.evaluate`.
            sample_weight: As of `keras.Model.evaluate`.
            steps: As of `keras.Model.evaluate`.
            callbacks: Callbacks of `tf_keras`.
            **kwargs: Of `keras.Model.evaluate`.

        Returns:
            Loss and metrics, as of `keras.Model.evaluate`.

        Raises:
            TypeError: As of `fit`.
            ValueError: As of `fit`.
        """
        # `fit` validates through this method too, with what it has checked itself.
        if "_use_cached_eval_dataset" not in kwargs:
            self._check_arrays("test_step", x, y, sample_weight)
            x = self._checked_batches("test_step", x)
            check_callbacks(callbacks, self._bounds)
        with self._running():
            return super().evaluate(x, y, batch_size, verbose, sample_weight, steps, callbacks, **kwargs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Reconstructs images at the posterior mean, as `reconstruct`, after the checks of `fit`.

        Args:
            x: As for `fit`; batches may have a target, which is left aside.
            batch_size: As of `keras.Model.predict`, and so are the others.
            verbose: As of `keras.Model.predict`.
            steps: As of `keras.Model.predict`.
            callbacks: Callbacks of `tf_keras`.
            **kwargs: Of `keras.Model.predict`.

        Returns:
            Pixel probabilities, `[n, height, width, channels]` float32 in [0, 1], NumPy.

        Raises:
            TypeError: As of `fit`.
            ValueError: As of `fit`.
        """
        self._check_arrays("predict_step", x)
        x = self._checked_batches("predict_step", x)
        check_callbacks(callbacks, self._bounds)
        with self._running():
            return super().predict(x, batch_size, verbose, steps, callbacks, **kwargs)

    def save(self, filepath: Any, overwrite: bool = True, save_format: str | None = None, **kwargs: Any) -> None:
        """Saves the model in the `.keras` format, which `keras.models.load_model` reads with `safe_mode` on.

        The file is replaced as a whole: an interrupted save leaves the earlier file as it was.

        Args:
            filepath: File to write, a name that ends in `.keras`.
            overwrite: Whether it may exist.
            save_format: None or "keras".
            **kwargs: Of `keras.Model.save`.

        Raises:
            ValueError: If `filepath` does not end in `.keras`, another format is asked for, or the file exists and
                `overwrite` is False.
        """
        if save_format not in (None, "keras") or not os.fspath(filepath).endswith(".keras"):
            raise ValueError(f"filepath: {KERAS_FORMAT_ONLY}, got {os.fspath(filepath)!r}")
        if not overwrite and os.path.exists(filepath):
            raise ValueError(
                f"filepath: expected a new file, got {os.fspath(filepath)!r}, which exists; pass overwrite=True"
            )
        write_atomically(filepath, lambda path: super(CheckedModel, self).save(path, **kwargs))

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Refuses: a SavedModel of `call` would serve samples that cannot be repeated."""
        raise ValueError(f"filepath: {KERAS_FORMAT_ONLY}, got export to {os.fspath(filepath)!r}")

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        # Saving in the TensorFlow format fails half-way and leaves a model that cannot be trained any more.
        if save_type == "savedmodel":
            raise ValueError(f"filepath: {KERAS_FORMAT_ONLY}, got the SavedModel format")
        return super()._trackable_children(save_type, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def checked_inputs(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Image, and one-hot label or None, of what `call` is given."""
        checked = []
        for name, shape, given in self._named(inputs):
            tensor = tf.cast(given, tf.float32)
            check_shape(name, tensor.shape, shape)
            # Those of a generator are not known.
            checked.append(tensor if tensor.shape[1:].is_fully_defined() else tf.ensure_shape(tensor, [None, *shape]))
        return checked[0], (checked[1] if self.num_classes else None)

    def _named(self, inputs: Any) -> list[tuple[str, tuple[int, ...], Any]]:
        """Name, shape without the batch, and value or specification of each input, if they are those of this model."""
        given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        expected = self._input_shapes()
        if isinstance(inputs, Mapping) or len(given) != len(expected):
            use = (
                "(image, one_hot), so fit((image, one_hot), image) or a dataset of ((image, one_hot), image)"
                if self.num_classes
                else "image alone, as num_classes is 0, so fit(image, image) or batches(..., conditional=False)"
            )
            got = "1 array" if len(given) == 1 else f"{len(given)} arrays"
            got = "a dict" if isinstance(inputs, Mapping) else got
            raise ValueError(f"inputs: expected {use}, got {got} in the place of the inputs")
        named = [(name, shape, value) for (name, shape), value in zip(expected, given, strict=True)]
        for name, shape, value in named:
            check_single(name, value, shape)
        return named

    def _input_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape, without the batch, of each input of the model."""
        return [("image", self.image_shape), *([("one_hot", (self.num_classes,))] if self.num_classes else [])]

    def has_stock(self, *names: str) -> bool:
        """Whether no subclass outside of this package has methods of these names of its own."""
        methods = (getattr(type(self), name) for name in names)
        return all(method.__module__.partition(".")[0] in ("tfp_cvae", "tf_keras") for method in methods)

    def _formed(
        self, step: str, inputs: Any, check: Callable[[str, Any, tuple[int, ...]], None]
    ) -> list[tuple[str, tuple[int, ...], Any]]:
        """As `_named`, after a check of the form of each; none where a `call` or step of a subclass takes others."""
        try:
            named = self._named(inputs)
            for name, shape, given in named:
                check(name, given, shape)
        except (TypeError, ValueError):
            # The step of predictions does not go through `call`.
            if self.has_stock(step) and (step == "predict_step" or self.has_stock("call")):
                raise
            return []
        return named

    def _check_arrays(self, step: str, x: Any = None, y: Any = None, sample_weight: Any = None) -> None:
        """Checks arrays given to Keras, or one batch of them, for the step of this name."""
        if not any(isinstance(part, _ARRAYS) for part in tf.nest.flatten(x)):
            return
        for name, shape, given in self._formed(step, x, array_checks.form):
            array_checks.unit_interval(name, np.asarray(given), shape)
            if name == "one_hot":
                check = array_checks.one_hot_or_zero if self.takes_unlabelled else array_checks.sum_to_one
                check(name, np.asarray(given))
        if step == "predict_step":
            return
        if y is None and self.has_stock(step):
            raise ValueError("y: expected the image again, as in fit((image, one_hot), image), got None")
        if self.has_stock(step) or np.shape(y)[1:] == self.image_shape:
            array_checks.unit_interval(TARGET, np.asarray(y), self.image_shape)
        if sample_weight is not None and self.has_stock(step):
            array_checks.sample_weight(sample_weight)

    def _checked_batches(self, step: str, data: Any) -> Any:
        """What Keras takes batches from, for the step of this name; it stops with an error at one out of range."""

        def checked(batch: Any) -> Any:
            self._check_arrays(step, *keras.utils.unpack_x_y_sample_weight(batch))
            return batch

        if isinstance(data, keras.utils.Sequence):
            return CheckedSequence(data, checked)
        if isinstance(data, Iterator):
            return map(checked, data)
        check_is_batches(data, self.takes_unlabelled)
        if not isinstance(data, tf.data.Dataset):
            return data
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data.element_spec)
        inputs = self._formed(step, x, check_spec)
        has_target = step != "predict_step" and target_is_checked(y, self.image_shape, strict=self.has_stock(step))
        has_weight = has_target and self.has_stock(step) and weight_is_checked(weight)
        return checked_dataset(
            data, self.takes_unlabelled, inputs=bool(inputs), target=has_target, sample_weight=has_weight
        )


def _settings(part: Any) -> dict[str, Any] | None:
    """Settings of an optimizer or a loss; None if it does not tell, as a function, or with a schedule that does not."""
    try:
        return part.get_config() if hasattr(part, "get_config") else None
    except NotImplementedError:
        return None


def _plain(value: Any) -> Any:
    """For JSON, a value that is the same in another process."""
    return value.item() if isinstance(value, np.generic) else type(value).__name__
