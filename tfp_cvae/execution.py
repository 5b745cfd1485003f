"""Several steps at once, for `fit` and `evaluate` after `compile(steps_per_execution=n)`.

Keras has AutoGraph trace a step twice, the first time to learn what it returns; here it is traced once (`traced_once`).
Keras also reads all metrics after each step, which of several replicas is a sum over them for each number in a metric;
here they are read once, after the last step, unless a subclass has steps of its own.

With XLA, Keras compiles a single step and runs it n times; each time all weights and moments go in and come out again.
Here the loop over the steps of training is part of the program, and they stay where they are (`make_train_function`). A
step is still `train_step`. One thing differs: the batches of a program are fetched before it begins, so that an input
that fails loses those before it, too.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfp_cvae.checked_model import CheckedModel

# Most bytes of the batches that are gathered for one run of the program.
_MAX_BYTES = 64 * 2**20
# What makes the logs of a step.
_MAKE_LOGS = ("train_step", "test_step", "compute_metrics", "get_metrics_result")

StepsFunction = Callable[[Any], dict[str, tf.Tensor]]


def traced_once(model: CheckedModel, make: Callable[..., Any]) -> StepsFunction:
    """What `make` makes for a compiled model, with a step that is traced once however many are run at a time.

    Of training that holds if the optimizer has its variables already. Where Keras tunes the number of steps, runs them
    eagerly or has a coordinator, it is what Keras makes.

    Args:
        model: A compiled model.
        make: `make_train_function` or `make_test_function` of `keras.Model`, of this model.
    """
    several = model.steps_per_execution
    number = 1 if several is None else several.numpy().item()
    by_keras = model.autotune_steps_per_execution or model.run_eagerly or model._cluster_coordinator
    if by_keras or number == 1:
        return make(force=True)
    reads_later = model.distribute_strategy.num_replicas_in_sync > 1 and model.has_stock(*_MAKE_LOGS)
    several.assign(1)
    try:
        step = make(force=True)
    finally:
        several.assign(number)

    @tf.function(reduce_retracing=True)
    def execute(iterator: Any) -> dict[str, tf.Tensor]:
        model.reads_metrics = not reads_later
        try:
            once = step.get_concrete_function(iterator)
        finally:
            model.reads_metrics = True
        shapes = [value.shape for value in tf.nest.flatten(once.structured_outputs)]
        known = all(shape.is_fully_defined() for shape in shapes)
        logs, left = (_zeros(once), several) if known else (once(iterator), several - 1)
        for _ in tf.range(left):
            logs = once(iterator)
        return model.get_metrics_result() if reads_later else logs

    return execute


def applies(model: keras.Model) -> bool:
    """Whether a compiled model is to run several steps at once, with XLA, on its own."""
    if tf.distribute.has_strategy() or model.autotune_steps_per_execution or model.run_eagerly:
        return False
    return bool(model.jit_compile and model.steps_per_execution is not None and int(model.steps_per_execution) > 1)


def make_train_function(model: keras.Model, stock: StepsFunction) -> StepsFunction:
    """Makes what `keras.Model.make_train_function` makes, for a model to which this `applies`.

    Args:
        model: A compiled model.
        stock: What `traced_once` makes for it, used if the shape of a batch is unknown, or two of them exceed 64 MiB.
    """
    most = int(model.steps_per_execution)

    def execute(iterator: Any) -> dict[str, tf.Tensor]:
        spec = iterator.element_spec
        limit = min(most, _MAX_BYTES // _num_bytes(spec))
        step = _step(model).get_concrete_function(spec)
        program = tf.function(_program(step, limit), jit_compile=True, autograph=False)
        wanted = tf.cast(model.steps_per_execution, tf.int32)

        def run(done: tf.Tensor, more: tf.Tensor, logs: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
            batches, count, more = _gather(iterator, tf.minimum(limit, wanted - done), limit)
            logs = program(batches, count, logs)
            return done + count, more, logs

        logs = _zeros(step)
        start = (tf.constant(0), tf.constant(True), logs)
        _, more, logs = tf.while_loop(
            lambda done, more, logs: more & (done < wanted), run, start, parallel_iterations=1
        )
        tf.cond(more, lambda: 0, lambda: _end(iterator))
        return logs

    compiled = tf.function(execute, autograph=False)

    def train_function(iterator: Any) -> dict[str, tf.Tensor]:
        size = _num_bytes(iterator.element_spec)
        if not size or 2 * size > _MAX_BYTES:
            return stock(iterator)
        # TensorBoard draws the graph of this attribute.
        model.train_tf_function = compiled
        return compiled(iterator)

    return train_function


def _zeros(step: Any) -> Any:
    """What a concrete function returns, as zeros."""
    return tf.nest.map_structure(lambda value: tf.zeros(value.shape, value.dtype), step.structured_outputs)


def _step(model: keras.Model) -> Any:
    """Function of a batch, as Keras would compile it."""

    def step(batch: Any) -> Any:
        logs = model.train_step(batch)
        model._train_counter.assign_add(1)
        return logs

    return tf.function(step)


def _program(step: Callable[[Any], Any], limit: int) -> Callable[[Any, tf.Tensor, Any], Any]:
    """Function of batches `[limit, ...]`, of which the first `count` are trained on, and logs, to the last logs."""

    def program(batches: Any, count: tf.Tensor, logs: Any) -> Any:
        def body(index: tf.Tensor, logs: Any) -> tuple[tf.Tensor, Any]:
            return index + 1, step(tf.nest.map_structure(lambda stacked: stacked[index], batches))

        start = (tf.constant(0), logs)
        _, logs = tf.while_loop(lambda index, logs: index < count, body, start, maximum_iterations=limit)
        return logs

    return program


def _gather(iterator: Any, wanted: tf.Tensor, limit: int) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """The next batches, stacked to `[limit, ...]`; how many they are; and whether there were as many as wanted."""
    spec = iterator.element_spec
    zeros = tf.nest.map_structure(lambda part: tf.zeros(part.shape, part.dtype), spec)
    arrays = [tf.TensorArray(part.dtype, limit, element_shape=part.shape) for part in tf.nest.flatten(spec)]

    def fetch(count: tf.Tensor, more: tf.Tensor, arrays: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
        batch = iterator.get_next_as_optional()
        more = batch.has_value()
        parts = tf.nest.flatten(tf.cond(more, batch.get_value, lambda: zeros))
        arrays = [array.write(count, part) for array, part in zip(arrays, parts, strict=True)]
        return count + tf.cast(more, tf.int32), more, arrays

    count, more, arrays = tf.while_loop(
        lambda count, more, arrays: more & (count < wanted),
        fetch,
        (tf.constant(0), tf.constant(True), arrays),
        parallel_iterations=1,
    )
    return tf.nest.pack_sequence_as(spec, [array.stack() for array in arrays]), count, more


def _end(iterator: Any) -> tf.Tensor:
    """Asks an iterator that has come to its end once more, so that it tells `fit`."""
    return tf.size(tf.nest.flatten(next(iterator))[0])


def _num_bytes(spec: Any) -> int:
    """Size of a batch; 0 if it is not known."""
    parts = tf.nest.flatten(spec)
    if not all(isinstance(part, tf.TensorSpec) and part.shape.is_fully_defined() for part in parts):
        return 0
    return sum(part.shape.num_elements() * part.dtype.size for part in parts)
