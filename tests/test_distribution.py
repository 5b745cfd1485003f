import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfp_cvae import distribution

CLUSTER = {"worker": ["localhost:1", "localhost:2"]}


@pytest.mark.parametrize(
    "text",
    [
        "worker 0",
        "[]",
        json.dumps({"cluster": CLUSTER}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": {**CLUSTER, "ps": ["localhost:3"]}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_cluster_that_there_is_not(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r'TF_CONFIG: expected \{"cluster": \{"worker": \["host:port", ...\]\}'):
        distribution.from_environment()


def test_a_strategy_that_comes_too_late(monkeypatch):
    tf.zeros([]).numpy()
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(ValueError, match="TF_CONFIG: expected a strategy to be made before TensorFlow computes"):
        distribution.from_environment()


@pytest.mark.parametrize(
    "text", ["", "{}", json.dumps({"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}})]
)
def test_a_single_worker(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    strategy = distribution.from_environment()
    assert strategy.num_replicas_in_sync == distribution.num_workers(strategy) == 1
    assert distribution.is_chief(strategy)


MIRRORED = """
import os
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

import tfp_cvae
from tfp_cvae.distribution import distribute, rows_of_replica
from tfp_cvae.on_disk import RowsOnDisk

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
memory, disk = map(tfp_cvae.load_dataset, sys.argv[1:])
assert isinstance(disk.train.images, RowsOnDisk)


def train(data, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        cvae = tfp_cvae.build_cvae((8, 8, 1), 3, latent_size=4, width=16, num_samples=2)
        # Not Adam, to which the scale of a gradient is nothing: a sum over replicas would be as good as their mean.
        cvae.compile(keras.optimizers.SGD(1e-3), loss=tfp_cvae.NegativeELBO(), metrics=[tfp_cvae.ELBO()])
    batches = distribute(lambda share: data.train.batches(32, drop_remainder=True, share=share), strategy)
    validation = data.validation.batches(8)
    history = cvae.fit(batches, validation_data=validation, epochs=5, steps_per_epoch=6, verbose=0).history
    assert cvae.step.numpy() == 5 * 6
    for size, whole, message in (
        (31, True, "batch_size: expected a multiple of 2, the number of replicas, got 31"),
        (32, False, "batches: expected drop_remainder=True for several replicas"),
    ):
        try:
            distribute(lambda share: data.train.batches(size, drop_remainder=whole), strategy)
        except ValueError as error:
            assert message in str(error)
        else:
            assert strategy.num_replicas_in_sync == 1
    # And what Keras deals out by itself, the last batch of which is smaller.
    cvae.fit(data.train.batches(32), epochs=1, verbose=0)
    return history


def train_with_few_labels(data, strategy):
    few = data.with_few_labels(12)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        m2 = tfp_cvae.build_semi_supervised_cvae((8, 8, 1), 3, latent_size=4, width=16, deformation=1.0)
        m2.compile("adam", loss=tfp_cvae.SemiSupervisedNegativeELBO(classification_weight=10.0), metrics=[tfp_cvae.ELBO()])
    options = {"drop_remainder": True, "labelled_per_batch": 8}
    batches = distribute(lambda share: few.train.batches(32, share=share, **options), strategy)
    steps = few.train.num_batches(32, **options)
    warm_up = tfp_cvae.LabelWarmUp(2)
    return m2.fit(batches, epochs=3, steps_per_epoch=steps, callbacks=[warm_up], verbose=0).history


class Counted(keras.metrics.Mean):
    # Notes how often it is read.
    def __init__(self):
        super().__init__(name="counted")
        self.read = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(tfp_cvae.objectives.rate(y_pred))

    def result(self):
        value = super().result()
        return tf.ensure_shape(tf.numpy_function(lambda mean: self.read.append(mean) or mean, [value], tf.float32), [])


def train_several_steps_at_once(data, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        cvae = tfp_cvae.build_cvae((8, 8, 1), 3, latent_size=4, width=16)
        counted = Counted()
        metrics = [tfp_cvae.Rate(), counted]
        cvae.compile("adam", loss=tfp_cvae.NegativeELBO(), metrics=metrics, steps_per_execution=4)
    batches = distribute(lambda share: data.train.batches(32, drop_remainder=True, share=share), strategy)
    validation = data.validation.batches(8)
    history = cvae.fit(batches, validation_data=validation, epochs=2, steps_per_epoch=6, verbose=0).history
    np.testing.assert_allclose(history["counted"], history["rate"], rtol=1e-6)
    # Of several replicas after the executions of 4 and 2 steps, and as the epoch ends; the same of the validation's 3.
    if strategy.num_replicas_in_sync > 1:
        assert len(counted.read) == 2 * (3 + 2), counted.read
    return history


class OwnStep(tfp_cvae.CVAE):
    def train_step(self, batch):
        logs = super().train_step(batch)
        return {"loss": logs["loss"], "bits": logs["loss"] / np.log(2)}


def train_with_own_step(data, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        built = tfp_cvae.build_cvae((8, 8, 1), 3, latent_size=4, width=16)
        cvae = OwnStep(built.encoder, built.decoder)
        cvae.compile("adam", loss=tfp_cvae.NegativeELBO(), metrics=[tfp_cvae.Rate()], steps_per_execution=3)
    batches = distribute(lambda share: data.train.batches(32, drop_remainder=True, share=share), strategy)
    history = cvae.fit(batches, epochs=2, steps_per_epoch=6, verbose=0).history
    assert set(history) == {"loss", "bits"}
    # Which Keras sums over the replicas.
    history["bits"] = [bits / strategy.num_replicas_in_sync for bits in history["bits"]]
    return history


mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
config = tfp_cvae.TrainConfig(dataset=sys.argv[1], batch_size=31, width=16, latent_size=4)
try:
    tfp_cvae.train(config, sys.argv[1] + ".run", strategy=mirrored)
except ValueError as error:
    assert "batch_size: expected a multiple of 2, the number of replicas, got 31" in str(error)
assert not os.path.exists(sys.argv[1] + ".run")

# Of a batch of five images, the first replica has three.
sizes = mirrored.experimental_distribute_values_from_function(
    lambda context: tf.constant([3, 2][context.replica_id_in_sync_group])
)
rows = tf.function(lambda: mirrored.run(rows_of_replica, (sizes,)))()
assert [part.numpy().tolist() for part in mirrored.experimental_local_results(rows)] == [[0, 1, 2], [3, 4]]

# How steps are put together has nothing to do with where the images are.
for train_on, places in (
    (train, (memory, disk)),
    (train_several_steps_at_once, (memory,)),
    (train_with_own_step, (memory,)),
    (train_with_few_labels, (memory, disk)),
):
    one = train_on(memory, tf.distribute.get_strategy())
    for data in places:
        two = train_on(data, mirrored)
        for name, values in one.items():
            np.testing.assert_allclose(two[name], values, rtol=1e-4, err_msg=f"{data.name}: {name}")
    assert one["loss"][-1] < one["loss"][0]
"""


def test_two_replicas_are_as_one(npz):
    """From memory and from disk, which make no difference to one: `test_on_disk.py`."""
    folder = npz.with_suffix("")
    folder.mkdir()
    with np.load(npz) as arrays:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
    command = [sys.executable, "-c", MIRRORED, str(npz), str(folder)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
