import numpy as np
import pytest
import tf_keras as keras
from tensorflow_probability import distributions as tfd

from tfp_cvae.layers import IndependentBernoulli, MultivariateNormalDiag, PixelBias


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
