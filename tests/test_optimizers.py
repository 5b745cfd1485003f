import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import stripes

from tfp_cvae.build import build_cvae
from tfp_cvae.data import make_dataset
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.optimizers import Adam


def gradients(shape=(3, 5), steps=6):
    """Of each step; those of some weights are zero in all."""
    found = np.random.default_rng(0).standard_normal((steps, *shape))
    found[:, 0] = 0
    return found


def trained(optimizer, dtype=tf.float32, jit_compile=False, sparse=False):
    """Weights, and the optimizer's variables, after some steps from weights of ones."""
    weights = tf.Variable(tf.ones((3, 5), dtype))
    optimizer.build([weights])

    @tf.function(jit_compile=jit_compile)
    def step(gradient):
        if sparse:
            gradient = tf.IndexedSlices(gradient[1:], tf.constant([1, 2]), tf.constant([3, 5]))
        optimizer.apply_gradients([(gradient, weights)])

    for gradient in gradients():
        step(tf.constant(gradient, dtype))
    return [weights.numpy(), *(variable.numpy() for variable in optimizer.variables)]


def adam_by_numpy(learning_rate, beta_1, beta_2, epsilon):
    """The weights, with the bias of each moment corrected by itself (algorithm 1 of Kingma and Ba)."""
    weights = np.ones((3, 5))
    first = second = np.zeros((3, 5))
    for step, gradient in enumerate(gradients(), start=1):
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        corrected = first / (1 - beta_1**step), second / (1 - beta_2**step)
        # The epsilon of this order of computation is not scaled by the correction.
        weights = weights - learning_rate * corrected[0] / (np.sqrt(corrected[1]) + epsilon / np.sqrt(1 - beta_2**step))
    return weights


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-6), (tf.float64, 1e-12)])
def test_weights_are_those_of_the_paper(dtype, tolerance, jit_compile):
    # The learning rate is kept in float32, in which this one is exact.
    optimizer = Adam(0.125, beta_1=0.8, beta_2=0.95, epsilon=0.01)
    weights, *_ = trained(optimizer, dtype, jit_compile)
    expected = adam_by_numpy(0.125, 0.8, 0.95, 0.01)
    np.testing.assert_allclose(weights, expected, rtol=tolerance)
    assert np.ptp(weights[1:]) > 0.1
    np.testing.assert_array_equal(weights[0], 1)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 7)},
        {"amsgrad": True},
        {"adaptive_epsilon": True, "epsilon": 0.1},
        {"use_ema": True, "ema_momentum": 0.5},
        {"weight_decay": 0.1},
        {"global_clipnorm": 0.5},
    ],
)
def test_is_that_of_keras(settings, sparse):
    ours, theirs = (
        trained(kind(**{"learning_rate": 0.1, **settings}), sparse=sparse) for kind in (Adam, keras.optimizers.Adam)
    )
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        # 1 - beta_2 is that of a rounded beta_2 here, which is 1e-5 of it, and v has the root of that.
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-7)


def fit(optimizer, **settings):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(optimizer, NegativeELBO(), **settings)
    data = make_dataset("stripes", ["left", "middle", "right"], stripes())
    cvae.fit(data.train.batches(16, drop_remainder=True), epochs=2, verbose=0)
    return cvae


@pytest.mark.parametrize("settings", [{}, {"jit_compile": True, "steps_per_execution": 2}])
def test_fit_is_that_with_the_optimizer_of_keras(settings):
    ours, theirs = (fit(kind(0.01), **settings) for kind in (Adam, keras.optimizers.Adam))
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_each_weight_tensor_is_one_operation():
    optimizer = Adam()
    weights = tf.Variable(tf.ones((3, 5)))
    optimizer.build([weights])
    graph = tf.function(lambda: optimizer.apply_gradients([(tf.ones((3, 5)), weights)])).get_concrete_function().graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == 1
    assert "Sqrt" not in kinds


def test_a_checkpoint_of_one_is_one_of_the_other(tmp_path):
    ours, theirs = Adam(0.1), keras.optimizers.Adam(0.1)
    saved = trained(theirs)
    path = tf.train.Checkpoint(optimizer=theirs).write(str(tmp_path / "checkpoint"))
    weights = tf.Variable(tf.ones((3, 5)))
    ours.build([weights])
    tf.train.Checkpoint(optimizer=ours).read(path).assert_consumed()
    for variable, expected in zip(ours.variables, saved[1:], strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_a_saved_model_goes_on_in_another_process(tmp_path):
    cvae = fit(Adam(0.01))
    cvae.save(tmp_path / "cvae.keras")
    script = (
        "import sys, numpy, tf_keras\n"
        "optimizer = tf_keras.models.load_model(sys.argv[1]).optimizer\n"
        "print(type(optimizer).__module__)\n"
        "numpy.savez(sys.argv[2], *[variable.numpy() for variable in optimizer.variables])\n"
    )
    arrays = tmp_path / "optimizer.npz"
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "cvae.keras", arrays], check=True, capture_output=True, text=True
    )
    assert ended.stdout == "tfp_cvae.optimizers\n"
    for variable, loaded in zip(cvae.optimizer.variables, np.load(arrays).values(), strict=True):
        np.testing.assert_array_equal(variable, loaded)
