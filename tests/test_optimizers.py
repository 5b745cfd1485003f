import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import stripes

from tfp_cvae.build import build_cvae
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.layers import dtype_policy
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.optimizers import FusedAdam
from tfp_cvae.training import build_model, compile_model

KINDS = (FusedAdam, keras.optimizers.Adam)


def gradients(shape=(3, 5), steps=6):
    """Of each step; those of some weights are zero in all."""
    found = np.random.default_rng(0).standard_normal((steps, *shape))
    found[:, 0] = 0
    return found


def trained(optimizer, dtype=tf.float32, jit_compile=False, sparse=False):
    """Weights, and the optimizer's variables, after some steps from weights of ones."""
    weights = tf.Variable(tf.ones((3, 5), dtype))
    unused = tf.Variable(tf.ones(2, dtype))
    optimizer.build([weights, unused])

    @tf.function(jit_compile=jit_compile)
    def step(gradient):
        if sparse:
            gradient = tf.IndexedSlices(gradient[1:], tf.constant([1, 2]), tf.constant([3, 5]))
        optimizer.apply_gradients([(gradient, weights), (None, unused)])

    for gradient in gradients():
        step(tf.constant(gradient, dtype))
    return [weights.numpy(), *(variable.numpy() for variable in optimizer.variables)]


def adam_by_numpy(learning_rate, beta_1, beta_2, epsilon_hat):
    """The weights, with each moment corrected by itself, as in algorithm 1 of Kingma and Ba."""
    weights = np.ones((3, 5))
    first = second = np.zeros((3, 5))
    for step, gradient in enumerate(gradients(), start=1):
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        first_corrected, second_corrected = first / (1 - beta_1**step), second / (1 - beta_2**step)
        epsilon = epsilon_hat / np.sqrt(1 - beta_2**step)
        weights = weights - learning_rate * first_corrected / (np.sqrt(second_corrected) + epsilon)
    return weights


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-6), (tf.float64, 1e-12)])
def test_weights_are_those_of_numpy(dtype, tolerance, jit_compile):
    # The learning rate is kept in float32, in which this one is exact.
    optimizer = FusedAdam(0.125, beta_1=0.8, beta_2=0.95, epsilon=0.01)
    weights, *_ = trained(optimizer, dtype, jit_compile)
    expected = adam_by_numpy(0.125, 0.8, 0.95, 0.01)
    np.testing.assert_allclose(weights, expected, rtol=tolerance)
    assert np.ptp(weights[1:]) > 0.1
    np.testing.assert_array_equal(weights[0], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 7)},
        {"amsgrad": True},
        {"adaptive_epsilon": True, "epsilon": 0.1},
        {"use_ema": True, "ema_momentum": 0.5},
        {"weight_decay": 0.1},
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"sparse": True},
    ],
)
def test_is_that_of_keras(settings):
    settings = {"learning_rate": 0.1, **settings}
    sparse = settings.pop("sparse", False)
    ours, theirs = (trained(kind(**settings), sparse=sparse) for kind in KINDS)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        # Keras takes 1 - beta_2 of an unrounded beta_2, which differs by a hundred-thousandth.
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-7)


def fit(optimizer, **settings):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(optimizer, NegativeELBO(), **settings)
    data = make_dataset("stripes", ["left", "middle", "right"], stripes())
    cvae.fit(data.train.batches(32, drop_remainder=True), epochs=2, verbose=0)
    return cvae


@pytest.mark.parametrize("settings", [{}, {"jit_compile": True, "steps_per_execution": 2}])
def test_fit_is_that_with_the_optimizer_of_keras(settings):
    ours, theirs = (fit(kind(0.01), **settings) for kind in KINDS)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_fit_in_mixed_precision_is_that_with_the_optimizer_of_keras(precision):
    scaled = keras.mixed_precision.LossScaleOptimizer if precision == "mixed_float16" else lambda inner: inner
    with dtype_policy(precision):
        ours, theirs = (fit(scaled(kind(0.01))) for kind in KINDS)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        # A weight that is rounded the other way changes gradients by a step of the network's own precision.
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_each_weight_tensor_is_one_operation():
    optimizer = FusedAdam()
    weights = [tf.Variable(tf.ones((3, 5))), tf.Variable(tf.ones(2))]
    optimizer.build(weights)
    step = tf.function(lambda: optimizer.apply_gradients([(tf.ones_like(part), part) for part in weights]))
    kinds = [operation.type for operation in step.get_concrete_function().graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == 2
    assert "Sqrt" not in kinds


def test_train_has_it(dataset):
    config = TrainConfig(dataset="stripes", latent_size=2, width=8)
    cvae = build_model(config, dataset)
    compile_model(cvae, config, steps_per_epoch=5)
    assert isinstance(cvae.optimizer, FusedAdam)


@pytest.mark.parametrize(("saved", "read"), [KINDS, KINDS[::-1]])
def test_goes_on_from_a_checkpoint_of_the_other(saved, read, tmp_path):
    first, second = saved(0.1), read(0.1)
    _, *variables = trained(first)
    path = tf.train.Checkpoint(optimizer=first).write(str(tmp_path / "checkpoint"))
    second.build([tf.Variable(tf.ones((3, 5))), tf.Variable(tf.ones(2))])
    tf.train.Checkpoint(optimizer=second).read(path).assert_consumed()
    for variable, expected in zip(second.variables, variables, strict=True):
        np.testing.assert_array_equal(variable, expected)


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
import tf_keras as keras

model = keras.models.load_model(sys.argv[1])
data = np.load(sys.argv[2])
model.fit((data["image"], data["one_hot"]), data["image"], batch_size=32, shuffle=False, verbose=0)
print(type(model.optimizer).__module__, type(model.optimizer).__name__)
np.savez(sys.argv[3], *model.get_weights())
"""


def test_a_saved_model_goes_on_in_another_process(tmp_path):
    cvae = fit(FusedAdam(0.01))
    cvae.save(tmp_path / "cvae.keras")
    images, labels = stripes()
    image, one_hot = (images / 255).astype(np.float32), np.eye(3, dtype=np.float32)[labels]
    np.savez(tmp_path / "data.npz", image=image, one_hot=one_hot)
    (tmp_path / "go_on.py").write_text(IN_ANOTHER_PROCESS)
    ended = subprocess.run(
        [sys.executable, "go_on.py", "cvae.keras", "data.npz", "weights.npz"],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.stdout == "tfp_cvae.optimizers FusedAdam\n"
    cvae.fit((image, one_hot), image, batch_size=32, shuffle=False, verbose=0)
    for weights, loaded in zip(cvae.get_weights(), np.load(tmp_path / "weights.npz").values(), strict=True):
        np.testing.assert_allclose(loaded, weights, atol=1e-5)
