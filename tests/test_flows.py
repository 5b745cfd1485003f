import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import stats
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfp_cvae import objectives
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.losses import ELBO, Distortion, NegativeELBO, Rate, SemiSupervisedNegativeELBO
from tfp_cvae.outputs import CVAEOutput


@pytest.fixture
def flow():
    """A flow over two dimensions under two labels, away from N(0, I)."""
    keras.utils.set_random_seed(0)
    one_hot = keras.Input((2,))
    model = keras.Model(one_hot, CouplingFlow(2, depth=4, width=8)(one_hot))
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * generator.standard_normal(variable.shape))
    return model


ONE_HOT = np.eye(2, dtype=np.float32)


def test_density_integrates_to_one_and_differs_between_labels(flow):
    axis = np.linspace(-12, 12, 801, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    density = np.exp(flow(ONE_HOT).log_prob(np.repeat(grid, 2, axis=1)).numpy().astype(np.float64))
    assert density.shape == (801**2, 2)
    np.testing.assert_allclose(density.sum(axis=0) * (axis[1] - axis[0]) ** 2, 1, atol=5e-3)
    assert np.abs(density[:, 0] - density[:, 1]).max() > 0.01


def test_samples_follow_the_density(flow):
    """The probability integral transform of one coordinate, by sums over a grid, is uniform."""
    sample = flow(ONE_HOT).sample(4000, seed=[0, 1]).numpy()[:, 0]
    axis = np.linspace(-12, 12, 801, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    density = np.exp(flow(ONE_HOT[:1]).log_prob(grid).numpy()).reshape(801, 801).sum(axis=0)
    cumulative = np.cumsum(density) / density.sum()
    assert stats.kstest(np.interp(sample[:, 0], axis, cumulative), "uniform").pvalue > 1e-3


def test_starts_as_a_standard_normal_and_inverts():
    one_hot = keras.Input((3,))
    prior = keras.Model(one_hot, CouplingFlow(5)(one_hot))(np.eye(3, dtype=np.float32))
    noise = tf.random.stateless_normal([7, 3, 5], seed=[0, 0])
    np.testing.assert_allclose(prior.log_prob(noise), stats.norm.logpdf(noise).sum(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(prior.bijector.inverse(prior.bijector.forward(noise)), noise, atol=1e-5)


def test_it_broadcasts_as_distributions_do(flow):
    """Vectors of other shapes than the labels: each with each, one for all, and all for one label."""
    prior = flow(ONE_HOT)
    vectors = np.random.default_rng(0).standard_normal((7, 2)).astype(np.float32)
    each = np.stack([flow(ONE_HOT[[k]]).log_prob(vectors[:, np.newaxis])[:, 0] for k in range(2)], axis=1)
    np.testing.assert_allclose(prior.log_prob(vectors[:, np.newaxis]), each, rtol=1e-5)
    np.testing.assert_allclose(prior.log_prob(vectors[0]), each[0], rtol=1e-5)
    np.testing.assert_allclose(flow(ONE_HOT[[1]]).log_prob(vectors), each[:, 1], rtol=1e-5)
    moved = prior.bijector.forward(vectors[:, np.newaxis])
    assert moved.shape == (7, 2, 2)
    np.testing.assert_allclose(prior.bijector.inverse(moved + 0.0)[:, 1], vectors, atol=1e-5)


def test_tensor_value_is_no_random_sample(flow):
    first, second = tf.convert_to_tensor(flow(ONE_HOT)), tf.convert_to_tensor(flow(ONE_HOT))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (2, 2)


def test_rate_is_estimated_without_bias(flow):
    cvae = build_cvae((8, 8, 1), 2, latent_size=2, width=8)
    image = np.random.default_rng(0).integers(0, 2, (2, 8, 8, 1)).astype(np.float32)
    posterior, prior = cvae.posterior(image, ONE_HOT), flow(ONE_HOT)
    # KL(q || p) by sums over a grid.
    axis = np.linspace(-10, 10, 601, dtype=np.float32)
    grid = np.repeat(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2), 2, axis=1)
    log_q, log_p = (part.log_prob(grid).numpy().astype(np.float64) for part in (posterior, prior))
    exact = np.sum(np.exp(log_q) * (log_q - log_p), axis=0) * (axis[1] - axis[0]) ** 2
    latent = posterior.sample(20_000, seed=[0, 1])
    samples = -objectives.log_ratio(CVAEOutput(posterior, prior, latent, None)).numpy()
    estimate = objectives.rate(CVAEOutput(posterior, prior, latent, None))
    np.testing.assert_allclose(estimate, samples.mean(axis=0), rtol=1e-4)
    assert np.all(np.abs(estimate - exact) < 4 * samples.std(axis=0) / np.sqrt(len(samples)) + 1e-3)


def test_gradient_of_the_rate_has_no_score_term():
    """With q = p each sample's log q(z) - log p(z) is zero wherever z goes, and so is its gradient: no noise at all."""
    loc, raw = tf.Variable([0.5, -1.0]), tf.Variable([-0.3, 0.4])
    same = tfd.MultivariateNormalDiag([0.5, -1.0], np.exp([-0.3, 0.4]).astype(np.float32))
    other = tfd.MultivariateNormalDiag([1.0, 0.5], [0.8, 1.5])

    def gradient(prior, draws):
        with tf.GradientTape() as tape:
            posterior = tfd.MultivariateNormalDiag(loc, tf.exp(raw))
            output = CVAEOutput(posterior, prior, posterior.sample([draws, 1], seed=[0, 1]), None)
            rate = tf.reduce_mean(objectives.rate(output))
        return np.concatenate([part.numpy() for part in tape.gradient(rate, [loc, raw])])

    def without_closed_form(prior):
        hidden = tfd.TransformedDistribution(prior, tfb.Chain([tfb.Identity()]))
        assert objectives.exact_rate(tfd.MultivariateNormalDiag(loc), hidden) is None
        return hidden

    np.testing.assert_allclose(gradient(without_closed_form(same), 1), 0, atol=1e-5)
    # Elsewhere it agrees with that of the closed form, in expectation.
    np.testing.assert_allclose(gradient(without_closed_form(other), 50_000), gradient(other, 1), atol=0.03)
    assert np.abs(gradient(other, 1)).max() > 0.5


def test_odd_sizes_invert_and_their_density_has_the_jacobian():
    keras.utils.set_random_seed(0)
    one_hot = keras.Input((3,))
    model = keras.Model(one_hot, CouplingFlow(5, width=8)(one_hot))
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * generator.standard_normal(variable.shape))
    label = np.eye(3, dtype=np.float32)[[1]]
    bijector = model(label).bijector
    noise = tf.constant(generator.standard_normal((1, 5)), tf.float32)
    latent = bijector.forward(noise)
    assert np.all(np.abs(latent - noise) > 1e-3)
    np.testing.assert_allclose(bijector.inverse(latent + 0.0), noise, atol=1e-4)
    with tf.GradientTape() as tape:
        tape.watch(noise)
        moved = bijector.forward(tf.identity(noise))
    jacobian = tape.batch_jacobian(moved, noise)[0].numpy().astype(np.float64)
    expected = stats.norm.logpdf(noise.numpy()).sum() - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(model(label).log_prob(latent + 0.0)[0], expected, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 5])
def test_flow_is_a_chain_of_real_nvp(size):
    layer = CouplingFlow(size, depth=3, width=8)
    one_hot = np.eye(3, dtype=np.float32)[[2, 0]]
    layer(one_hot)
    generator = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(variable + 0.3 * generator.standard_normal(variable.shape))

    def shift_and_log_scale(conditioner):
        def apply(half, units):
            shift, raw = np.split(conditioner([half, one_hot]).numpy(), [units], axis=-1)
            return shift, 2 * np.tanh(raw / 2)

        return apply

    read = size // 2
    chain = tfb.Chain(
        [
            tfb.RealNVP(num_masked=masked, shift_and_log_scale_fn=shift_and_log_scale(conditioner))
            for masked, conditioner in zip([read, -read, read], layer.conditioners, strict=True)
        ]
    )
    expected = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([2, size])), chain)
    noise = generator.standard_normal((2, size)).astype(np.float32)
    found = layer(one_hot)
    np.testing.assert_allclose(found.bijector.forward(noise), chain.forward(noise), rtol=1e-5)
    np.testing.assert_allclose(found.log_prob(noise), expected.log_prob(noise), rtol=1e-5)


def test_the_determinant_of_the_inverse_is_of_now_and_has_a_gradient(flow):
    prior = flow(ONE_HOT)
    latent = tf.constant([[0.3, -0.8], [1.2, 0.4]])
    same = tf.identity(latent)
    kept = [prior.bijector.inverse(each) for each in (latent, same)]
    with tf.GradientTape() as tape:
        tape.watch(latent)
        log_det = prior.bijector.inverse_log_det_jacobian(latent, 1)
    gradient = tape.gradient(log_det, latent)
    for variable in flow.trainable_variables:
        variable.assign(1.5 * variable)
    moved = prior.bijector.inverse_log_det_jacobian(same, 1)

    def expected(vectors):
        """From the density, which has that of the noise and the determinant in it."""
        prior = flow(ONE_HOT)
        noise = prior.bijector.inverse(tf.constant(vectors, tf.float32)).numpy()
        return prior.log_prob(tf.constant(vectors, tf.float32)) - stats.norm.logpdf(noise).sum(axis=-1)

    np.testing.assert_allclose(moved, expected(latent.numpy()), atol=1e-5)
    for variable in flow.trainable_variables:
        variable.assign(variable / 1.5)
    step = 1e-2 * np.eye(2, dtype=np.float32)
    differences = [(expected(latent + each) - expected(latent - each)) / 2e-2 for each in step]
    np.testing.assert_allclose(gradient, np.stack(differences, axis=1), atol=2e-3)
    assert np.abs(gradient).max() > 0.05
    assert np.abs(moved - log_det).max() > 0.05
    del kept


def test_a_model_with_a_flow_trains_saves_and_generates(dataset, tmp_path):
    keras.utils.set_random_seed(0)
    cvae = build_cvae(dataset.image_shape, 3, latent_size=4, width=16, prior="flow")
    before = [variable.numpy() for variable in cvae.trainable_variables]
    cvae.compile(keras.optimizers.Adam(3e-3), loss=NegativeELBO())
    history = cvae.fit(dataset.train.batches(24), epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]
    for variable, old in zip(cvae.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), variable.name
    cvae.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    image, one_hot = dataset.test.binarized(), dataset.test.one_hot()
    np.testing.assert_array_equal(loaded.generate([0, 1, 2], 5), cvae.generate([0, 1, 2], 5))
    latent = cvae.posterior(image, one_hot).mean()
    np.testing.assert_array_equal(loaded.prior(one_hot).log_prob(latent), cvae.prior(one_hot).log_prob(latent))
    # An image depends on its own label and seed alone.
    np.testing.assert_allclose(cvae.generate([2], 7)[0], cvae.generate([0, 1, 2], 5)[2], atol=1e-6)


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("prior", ["standard", "label", "flow", "stacked"])
def test_metrics_are_of_the_weights_that_the_loss_is_of(batch, prior, run_eagerly):
    """Keras updates them when the optimizer has changed the weights, which a density must not read again."""
    keras.utils.set_random_seed(0)
    image, one_hot = batch
    loss, metrics = NegativeELBO(), [ELBO(), Rate(), Distortion()]
    if prior == "stacked":
        cvae = build_semi_supervised_cvae((8, 8, 1), 3, latent_size=4, width=8, stacked=True)
        loss = SemiSupervisedNegativeELBO(classification_weight=0.0)
    else:
        cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=8, prior=prior)
    cvae.compile(keras.optimizers.Adam(0.01), loss=loss, metrics=metrics, run_eagerly=run_eagerly)
    history = cvae.fit((image, one_hot), image, batch_size=len(image), epochs=3, verbose=0).history
    np.testing.assert_allclose(-np.array(history["elbo"]), history["loss"], rtol=1e-5)
    np.testing.assert_allclose(np.add(history["rate"], history["distortion"]), history["loss"], rtol=1e-5)
    assert abs(history["loss"][1] - history["loss"][0]) > 0.1


def test_mistakes():
    with pytest.raises(ValueError, match="depth: expected an integer >= 1, got 0"):
        CouplingFlow(2, depth=0)
    with pytest.raises(ValueError, match="width: expected an integer >= 1, got 0"):
        CouplingFlow(2, width=0)
    with pytest.raises(TypeError, match=r"event_shape: expected an integer >= 2, got 4\.7"):
        CouplingFlow(4.7)
    with pytest.raises(ValueError, match="event_shape: expected an integer >= 2, got 1"):
        CouplingFlow(1)
    with pytest.raises(ValueError, match="prior: expected standard for a model without classes, got flow"):
        build_cvae((8, 8, 1), 0, prior="flow")
    cvae = build_cvae((8, 8, 1), 2, latent_size=2, width=8, prior="flow")
    image = np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="prior: expected a diagonal one for the rate of each dimension"):
        NegativeELBO(free_bits=0.1)(image, cvae((image, ONE_HOT)))
