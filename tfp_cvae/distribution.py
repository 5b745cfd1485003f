"""Training on several devices or machines (no probability distributions): the strategy, and who does what.

A replica is a device with a copy of the model, a worker a process with some of them. Each worker reads its share of
each batch, the gradients are summed over all, and the chief, the first worker, writes the files.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_cvae.batches import EpochCounter

# What TensorFlow raises when another worker is gone, or has come again too soon.
_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)
_ROLES = ("chief", "worker")


def from_environment() -> tf.distribute.Strategy:
    """The strategy that the environment asks for.

    Returns:
        `tf.distribute.MultiWorkerMirroredStrategy` if `TF_CONFIG` names several workers, and else that of one device.
        It waits for the other workers.

    Raises:
        ValueError: If `TF_CONFIG` does not name a cluster of workers and one of them, or TensorFlow has computed
            something before.
        ConnectionError: If this worker's port is taken, or another worker does not come.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return tf.distribute.get_strategy()
    try:
        content = json.loads(text)
        cluster = content.get("cluster", {})
        task = content["task"] if cluster else None
        roles = {role: list(cluster[role]) for role in cluster}
        if task and not (set(roles) <= set(_ROLES) and 0 <= int(task["index"]) < len(roles[task["type"]])):
            raise ValueError(f"the roles {sorted(roles)} and the task {task}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            f"got {text!r} ({type(error).__name__}: {error}); docs: Several workers"
        ) from error
    if sum(map(len, roles.values())) < 2:
        return tf.distribute.get_strategy()
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ValueError(
            f"TF_CONFIG: expected a strategy to be made before TensorFlow computes anything, got: {error}; make it "
            "first, in a fresh process, and pass it as `strategy`"
        ) from error
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"TF_CONFIG: expected a free port and all workers, got {type(error).__name__}: "
            f"{error.message.partition(chr(10))[0]}; end what is left of an earlier start, and start all together"
        ) from error


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Number of processes that train together."""
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict() if resolver else {}
    return max(1, sum(len(cluster.get(role, ())) for role in _ROLES))


def worker_number(strategy: tf.distribute.Strategy) -> int:
    """Number of this process among those that train together, from 0; the chief comes first."""
    if num_workers(strategy) == 1:
        return 0
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().as_dict()
    return int(resolver.task_id) + int(has_chief and resolver.task_type != "chief")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this worker is the one that writes."""
    return worker_number(strategy) == 0


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when each worker has called this."""
    decided_by_chief(strategy, False)


def decided_by_chief(strategy: tf.distribute.Strategy, decision: bool) -> bool:
    """The chief's decision, on every worker; waits until all have called it."""
    if num_workers(strategy) == 1:
        return decision
    votes = _summed(strategy)(tf.constant(int(decision and is_chief(strategy)), tf.int64))
    return bool(strategy.experimental_local_results(votes)[0] > 0)


def rows_of_worker(count: int, strategy: tf.distribute.Strategy | None) -> np.ndarray:
    """The part of this worker in a number of rows that do not depend on each other: int64, in their order.

    Without a strategy all rows, also within the scope of one, where the other workers may have something else to do.
    """
    if strategy is None:
        return np.arange(count)
    return np.array_split(np.arange(count), num_workers(strategy))[worker_number(strategy)]


def gathered(rows: np.ndarray, strategy: tf.distribute.Strategy | None) -> np.ndarray:
    """Rows of all workers, in the order of `rows_of_worker`.

    Args:
        rows: Those of this worker, `[n, ...]` float32 or float64, or none; each worker has to call this.
        strategy: Strategy of all workers; None for this process alone.

    Returns:
        `[sum of n, ...]`, on each worker.
    """
    if strategy is None or num_workers(strategy) == 1:
        return rows
    workers = num_workers(strategy)
    replicas = strategy.num_replicas_in_sync // workers

    def of_replica(context: Any) -> tf.Tensor:
        # Of the replicas of a worker the first one has all.
        return tf.constant(rows if context.replica_id_in_sync_group % replicas == 0 else rows[:0])

    parts = strategy.experimental_distribute_values_from_function(of_replica)
    return strategy.gather(parts, axis=0).numpy()


@functools.cache
def _summed(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that sums what each replica gives, traced once."""

    def summed(value: tf.Tensor) -> tf.Tensor:
        # The sum takes a value on the device of the replica: an argument is on none, its identity is.
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

    return tf.function(lambda value: strategy.run(summed, (value,)))


def rows_of_replica(size: tf.Tensor) -> tf.Tensor:
    """Which rows of the whole batch the images of this replica are.

    Args:
        size: Number of images of this replica, `[]` int32.

    Returns:
        `[size]` int32.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.range(size)
    replica = context.replica_id_in_sync_group
    # int64, as int32 would stay in the memory of the host where devices sum.
    own = tf.one_hot(replica, context.num_replicas_in_sync, dtype=tf.int64) * tf.cast(size, tf.int64)
    sizes = tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, own), tf.int32)
    return tf.reduce_sum(sizes[:replica]) + tf.range(size)


@contextlib.contextmanager
def explained(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says in words that another worker is gone, if there are others.

    Raises:
        ConnectionError: In the place of what TensorFlow raises then.
    """
    try:
        yield
    except _GONE as error:
        if num_workers(strategy) == 1:
            raise
        raise ConnectionError(
            f"TF_CONFIG: expected all workers to stay until the end, got {type(error).__name__}: one was stopped or "
            "cannot be reached; start all of them again, a training with --resume"
        ) from error


def distribute(
    make: Callable[[tuple[int, int]], tf.data.Dataset], strategy: tf.distribute.Strategy
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Batches for `fit` on the replicas of a strategy, of which each worker makes its share alone.

        distribute(lambda share: data.train.batches(128, drop_remainder=True, share=share), strategy)

    Give `fit` the `steps_per_epoch`, as the epochs follow each other without end where there are several replicas.

    Args:
        make: From a share `(i, n)` to that part of the batches, as of `Split.batches`.
        strategy: Strategy whose replicas are trained.

    Returns:
        Batches with the attribute `epochs` of the share of this worker, for `Backup`.

    Raises:
        ValueError: If the replicas cannot have equal parts of a batch, or the last one may be smaller.
    """
    if strategy.num_replicas_in_sync == 1:
        return make((0, 1))
    epochs: list[EpochCounter] = []

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = make((context.input_pipeline_id, context.num_input_pipelines))
        epochs.append(batches.epochs)
        if not batches.epochs.settings.drop_remainder:
            raise ValueError(
                "batches: expected drop_remainder=True for several replicas, whose epochs follow each other without "
                "end, got False"
            )
        batch_size = batches.epochs.settings.batch_size
        check_batch_size(batch_size, strategy)
        return batches.repeat().rebatch(batch_size // strategy.num_replicas_in_sync)

    distributed = strategy.distribute_datasets_from_function(share)
    (distributed.epochs,) = epochs
    return distributed


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError if the replicas cannot have equal parts of a batch."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ValueError(
            f"batch_size: expected a multiple of {replicas}, the number of replicas, got {batch_size}; give each the "
            "same number of images"
        )
