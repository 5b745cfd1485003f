import concurrent.futures
import contextlib
import gc
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from conftest import small_cvae, stripes
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.data import make_dataset
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.importance import importance_estimate
from tfp_cvae.layers import (
    IndependentBernoulli,
    MultivariateNormalDiag,
    OneHotCategorical,
    PixelBias,
    SiLU,
    clear_bijector_cache,
)
from tfp_cvae.losses import ELBO, NegativeELBO


def test_multivariate_normal_diag():
    params = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    layer = MultivariateNormalDiag(3)
    distribution = layer(params)
    assert isinstance(distribution.tensor_distribution, tfd.MultivariateNormalDiag)
    assert MultivariateNormalDiag.params_size(3) == 6
    np.testing.assert_array_equal(distribution.mean(), params[:, :3])
    np.testing.assert_allclose(distribution.stddev(), np.log1p(np.exp(params[:, 3:]) * (np.e - 1)), rtol=1e-5)
    np.testing.assert_allclose(layer(np.zeros((1, 6), np.float32)).stddev(), np.ones((1, 3)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 12), (2, 2, 3, 2)])
def test_independent_bernoulli(shape):
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    distribution = IndependentBernoulli((2, 3, 2))(logits)
    assert isinstance(distribution.tensor_distribution, tfd.Independent)
    assert IndependentBernoulli.params_size((2, 3, 2)) == 12
    probability = 1 / (1 + np.exp(-np.float64(logits.reshape(2, 2, 3, 2))))
    np.testing.assert_allclose(distribution.mean(), probability, rtol=1e-5)
    image = (probability > 0.4).astype(np.float32)
    expected = np.log(np.where(image == 1, probability, 1 - probability)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(distribution.log_prob(image), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "event_shape", "error"),
    [
        (MultivariateNormalDiag, -1, ValueError),
        (MultivariateNormalDiag, 2.5, TypeError),
        (OneHotCategorical, 0, ValueError),
        (IndependentBernoulli, (2, 0, 1), ValueError),
        (IndependentBernoulli, (2, None, 1), TypeError),
    ],
)
def test_an_event_has_a_size(layer, event_shape, error):
    with pytest.raises(error, match="event_shape: expected an integer >= 1, got"):
        layer(event_shape)


def test_log_prob_of_grey_pixels_and_large_logits():
    generator = np.random.default_rng(0)
    logits = generator.uniform(-60, 60, (5, 3, 4, 1)).astype(np.float32)
    image = generator.uniform(0, 1, logits.shape).astype(np.float32)
    image[:2] = image[:2].round()
    expected = tfd.Independent(tfd.Bernoulli(logits=np.float64(logits), dtype=tf.float64), 3).log_prob(
        np.float64(image)
    )
    distribution = IndependentBernoulli((3, 4, 1))(logits)
    np.testing.assert_allclose(distribution.log_prob(image), expected, rtol=1e-6)
    # Images may be integers, as those of `tfd.Bernoulli`.
    binary = image[:2].astype(np.uint8)
    np.testing.assert_array_equal(
        IndependentBernoulli((3, 4, 1))(logits[:2]).log_prob(binary), distribution.log_prob(image)[:2]
    )


@pytest.mark.parametrize(("layer", "size"), [(MultivariateNormalDiag(3), 6), (IndependentBernoulli((2, 1, 1)), 2)])
def test_layers_load_with_safe_mode_and_are_their_mean(tmp_path, layer, size):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(PixelBias()(keras.layers.Dense(size)(inputs))))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    data = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(loaded(data).mean(), model(data).mean())
    # A tensor made of the distribution is its mean, not a sample.
    np.testing.assert_array_equal(model.predict(data, verbose=0), model(data).mean())
    assert type(loaded.layers[-1]) is type(layer)


def test_several_threads_use_one_model():
    """As those of a web server do."""
    keras.utils.set_random_seed(0)
    cvae = small_cvae("mlp", "flow")
    images, labels = stripes(6)

    def use(seed):
        return cvae.generate([0, 1], seed=[seed, seed]).numpy(), cvae.reconstruct(images / 255, labels, seed).numpy()

    expected = [use(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(use, np.tile(np.arange(4), 50)))
    for number, pair in enumerate(found):
        for one, other in zip(pair, expected[number % 4], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_silu():
    x = np.linspace(-20, 20, 41, dtype=np.float32)
    with tf.GradientTape() as tape:
        tensor = tf.constant(x)
        tape.watch(tensor)
        activated = SiLU()(tensor)
    sigmoid = 1 / (1 + np.exp(-np.float64(x)))
    np.testing.assert_allclose(activated, x * sigmoid, rtol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(activated, tensor), sigmoid + x * sigmoid * (1 - sigmoid), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("prior", ["label", "flow"])
def test_what_is_forgotten_makes_no_noise_when_it_goes(prior, batch, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    image, one_hot = (part[:4] for part in batch)
    model = small_cvae("mlp", prior)

    def work():
        posterior = model.posterior(image, one_hot)
        latent = posterior.sample(seed=1)
        kept = posterior.log_prob(latent), model.prior(one_hot).log_prob(latent), tfb.Softplus().forward(latent)
        importance_estimate(model, image, one_hot.argmax(axis=1), num_samples=3)
        return len(kept)

    work()
    gc.collect()
    assert unraisable == []


@pytest.mark.parametrize("layer", [MultivariateNormalDiag, CouplingFlow])
def test_a_second_kl_is_refused(layer):
    """As in TFP's examples, whose loss is the distortion alone."""
    regularizer = tfp.layers.KLDivergenceRegularizer(tfd.MultivariateNormalDiag(tf.zeros([2])))
    with pytest.raises(
        ValueError, match=r"activity_regularizer: expected none, .*, got KLDivergenceRegularizer; leave"
    ):
        layer(2, activity_regularizer=regularizer)


def graphs():
    gc.collect()
    return sum(isinstance(item, FuncGraph) for item in gc.get_objects())


@pytest.mark.parametrize(("network", "prior"), [("mlp", "flow"), ("residual", "label"), ("conv", "standard")])
def test_no_graph_stays_behind(network, prior, tmp_path):
    """TensorFlow keeps those with a custom gradient, and TensorFlow Probability those that ask for a density."""
    images, labels = stripes(20)
    data = make_dataset("stripes", ["a", "b", "c"], *[(images, labels)] * 3)
    cvae = small_cvae(network, prior)
    image, batches = data.test.binarized()[:4], data.test.batches(10)

    def save_and_load():
        cvae.save(tmp_path / "cvae.keras")
        keras.models.load_model(tmp_path / "cvae.keras").generate([1])

    def bound():
        evaluate_bound(cvae, batches)

    def importance():
        importance_estimate(cvae, image, data.test.labels[:4], num_samples=3)

    def keras_evaluates():
        cvae.compile(loss=NegativeELBO(), metrics=[ELBO()])
        cvae.evaluate(batches, verbose=0)

    def keras_predicts():
        cvae.compile(loss=NegativeELBO())
        cvae.predict(batches, verbose=0)

    def function_of_a_user():
        tf.function(lambda *given: cvae(given).mean_image())(image, data.test.one_hot()[:4])

    # One by one, as each clears up what the others have left.
    for work in (save_and_load, bound, importance, function_of_a_user):
        # Twice, as what is traced once more for another shape is so by the end of the second time.
        work()
        work()
        before = graphs()
        work()
        assert graphs() <= before, work
    for work in (keras_evaluates, keras_predicts):
        before = len(tfb.Bijector._cache.storage)
        work()
        assert len(tfb.Bijector._cache.storage) <= before, work


def test_the_cache_of_bijectors_is_emptied_while_others_use_it():
    """Of graphs alone. A determinant without its value, an error, and another thread leave entries without outputs."""
    x = tf.constant([0.5, 2.0])
    # An eager one is that of a user, who may need it: this bijector has no inverse.
    one_way = tfb.Inline(forward_fn=tf.exp, forward_log_det_jacobian_fn=lambda x: x, forward_min_event_ndims=0)
    flow = tfd.TransformedDistribution(tfd.Normal(0.0, 1.0), one_way)
    sample = flow.sample(seed=0)

    def entries():
        return {tuple(map(id, tf.nest.flatten(key()))) for key in tfb.Bijector._cache.storage}

    clear_bijector_cache()
    kept = entries()

    class Broken(tfb.Bijector):
        def __init__(self):
            super().__init__(forward_min_event_ndims=0)

        def _forward(self, x):
            raise RuntimeError

    def traced(x):
        with contextlib.suppress(RuntimeError):
            Broken().forward(x)
        return tfb.Exp().forward_log_det_jacobian(x, 0)

    function = tf.function(traced).get_concrete_function(x)
    # Of an eager tensor only the determinant is then of a graph.
    tf.function(lambda: tfb.Exp().forward_log_det_jacobian(x, 0))()
    assert len(tfb.Bijector._cache.storage) > len(kept)
    clear_bijector_cache()
    assert entries() == kept
    np.testing.assert_allclose(function(x), x)
    np.testing.assert_allclose(tfb.Exp().forward(x), np.exp(x), rtol=1e-6)
    # log p(y) = log N(log y | 0, 1) - log y
    np.testing.assert_allclose(flow.log_prob(sample), tfd.LogNormal(0.0, 1.0).log_prob(sample), rtol=1e-6)
