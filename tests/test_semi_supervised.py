"""M2 and M1+M2 against the CVAE, a sum over labels in NumPy, and a model whose log-likelihood is known in closed form."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import perturb, spread_prior, stripes, threefry_normal
from scipy import stats
from scipy.special import log_softmax, logsumexp
from sklearn.linear_model import LogisticRegression
from tensorflow_probability import distributions as tfd
from test_losses import numpy_rates, numpy_terms
from test_objectives import log_evidence, observed, output

from tfp_cvae import export, networks, objectives
from tfp_cvae.augmentation import NUM_RANDOM, deform
from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.callbacks import LabelWarmUp
from tfp_cvae.config import EvaluationConfig, TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.evaluation import evaluate, evaluate_run
from tfp_cvae.export import export_saved_model
from tfp_cvae.figures import under_label
from tfp_cvae.layers import MultivariateNormalDiag, OneHotCategorical
from tfp_cvae.likelihood import likelihood_under_each_label
from tfp_cvae.losses import ELBO, NegativeELBO, NegativeIWAE, Rate, SemiSupervisedNegativeELBO
from tfp_cvae.model import CVAE
from tfp_cvae.model_files import load_keras
from tfp_cvae.outputs import SemiSupervisedOutput
from tfp_cvae.run import Run
from tfp_cvae.semi_supervised import SemiSupervisedCVAE
from tfp_cvae.training import train

assert observed  # A fixture of the tests of the objectives, used here too.

TINY = EvaluationConfig(num_importance_samples=120, generated_per_class=3, classifier_epochs=1)
NONE = np.zeros(3, np.float32)
# K, and whether M2 stands on M1. Where the samples do not matter, K=3 is not taken without M1.
PLAIN, SAMPLES, STACKED = (
    pytest.param((1, False), id="K=1"),
    pytest.param((3, False), id="K=3"),
    pytest.param((3, True), id="M1+M2"),
)


@pytest.fixture(params=[PLAIN, SAMPLES, STACKED])
def m2(request):
    return new_m2(*request.param)


@pytest.fixture(scope="module", params=[PLAIN, SAMPLES, STACKED])
def shared(request):
    """One for all tests that only call it, and do not fit, compile or set anything of it."""
    model = new_m2(*request.param)
    weights, settings = model.get_weights(), (model.num_samples, model.seed, model.deformation)
    yield model
    assert settings == (model.num_samples, model.seed, model.deformation)
    assert not {"posterior", "prior", "likelihood"} & set(vars(model))
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def new_m2(num_samples, stacked):
    keras.utils.set_random_seed(0)
    model = build_semi_supervised_cvae(
        (8, 8, 1),
        3,
        latent_size=4,
        width=16,
        prior="standard" if stacked else "label",
        num_samples=num_samples,
        stacked=stacked,
    )
    if stacked:
        perturb(model.prior_network, scale=0.3)
    else:
        spread_prior(model)
    # So that q(y|x) is far from uniform, and not certain.
    image, kernel = stripes(60, seed=1)[0] / np.float32(255), model.classifier.layers[-2].kernel
    kernel.assign(2 * kernel / np.std(log_label_posterior(model, image)))
    assert 0.5 < model.classify_fast(image).max(axis=1).mean() < 0.99
    return model


def plain(m2):
    return CVAE(m2.encoder, m2.decoder, m2.prior_network, m2.num_samples, m2.seed)


def log_label_posterior(m2, image):
    logits = keras.Model(m2.classifier.input, m2.classifier.layers[-2].output)
    return log_softmax(np.float64(logits(image)), axis=-1)


def terms_given_label(m2, image, one_hot):
    """Rate [batch], log-likelihood [K, batch], log weights [K, batch] of the CVAE in NumPy."""
    return numpy_terms(plain(m2), image, one_hot) if m2.latent_size == 4 else stacked_terms(m2, image, one_hot)


def terms_given_each_label(m2, image):
    """The same under each label: [batch, 3] and twice [K, batch, 3]."""
    terms = [terms_given_label(m2, image, one_hot_rows(label, len(image))) for label in range(3)]
    return (np.stack(columns, axis=-1) for columns in zip(*terms, strict=True))


def one_hot_rows(label, count):
    return np.tile(np.eye(3, dtype=np.float32)[label], (count, 1))


def stacked_terms(m2, image, one_hot):
    """As `numpy_terms`, of log p(x|z1) + log p(z1|z2,y) + log p(z2) - log q(z1|x) - log q(z2|z1,y)."""
    result = plain(m2)((image, one_hot))
    mean, stddev, latent = (
        np.float64(part) for part in (result.posterior.mean(), result.posterior.stddev(), result.latent)
    )
    probability = np.float64(result.likelihood.mean())
    log_likelihood = np.where(image == 1, np.log(probability), np.log1p(-probability)).sum(axis=(-3, -2, -1))
    log_posterior = stats.norm.logpdf(latent, mean, stddev).sum(axis=-1)
    upper, lower = np.split(latent, 2, axis=-1)
    (decoder,) = m2.prior_network.layers[-1].conditioners
    loc, raw = np.split(np.stack([np.float64(decoder([sample, one_hot])) for sample in np.float32(upper)]), 2, axis=-1)
    assert np.ptp(raw) > 0.1
    assert np.ptp(loc) > 0.1
    log_prior = stats.norm.logpdf(upper) + stats.norm.logpdf(lower, loc, np.exp(2 * np.tanh(raw / 2)))
    log_ratio = log_prior.sum(axis=-1) - log_posterior
    return -log_ratio.mean(axis=0), log_likelihood, log_likelihood + log_ratio


@pytest.mark.parametrize("m2", [PLAIN], indirect=True)
def test_layers_that_move_images_in_training_rest_else(m2, batch):
    """In the networks of one's own that read images, with a loss that one of them has for itself, too."""
    image, one_hot = (part[:6] for part in batch)

    def moved(network, *others):
        given = keras.Input((8, 8, 1))
        inner = keras.layers.RandomTranslation(0.4, 0.4)(given)
        return keras.Model([given, *others] if others else given, network([inner, *others] if others else inner))

    encoder = moved(m2.encoder, keras.Input((3,)))
    encoder.add_loss(1000 + tf.reduce_mean(encoder.inputs[0]))
    model = SemiSupervisedCVAE(encoder, m2.decoder, moved(m2.classifier), m2.prior_network)
    np.testing.assert_allclose(model.classify_fast(image), m2.classify_fast(image), rtol=1e-5)
    bounds = [objectives.elbo(tf.constant(image), each((image, one_hot))) for each in (model, m2)]
    np.testing.assert_allclose(*bounds, rtol=1e-5)
    pixels = [each.predict((image, one_hot), verbose=0) for each in (model, m2)]
    np.testing.assert_allclose(*pixels, rtol=1e-5)
    trained = model((image, one_hot), training=True)
    assert np.abs(trained.label_posterior.mean() - m2.classify_fast(image)).max() > 0.01
    assert np.abs(objectives.elbo(tf.constant(image), trained) - bounds[1]).max() > 0.1
    model.compile("adam", SemiSupervisedNegativeELBO())
    assert model.fit((image, one_hot), image, verbose=0).history["loss"][0] > 1000


@pytest.mark.parametrize("shared", [STACKED], indirect=True)
def test_m2_stands_on_the_latent_of_m1(shared, batch):
    image, label = batch[0][:6], np.arange(6) % 3
    one_hot, other = np.eye(3, dtype=np.float32)[label], np.eye(3, dtype=np.float32)[(label + 1) % 3]
    posterior, of_other = shared.posterior(image, one_hot), shared.posterior(image, other)
    for first, second in ((posterior.mean(), of_other.mean()), (posterior.stddev(), of_other.stddev())):
        difference = np.abs(first - second).max(axis=0)
        assert np.all(difference[:4] > 1e-3)
        assert np.all(difference[4:] == 0)
    # The image is made of z1 alone, and z1 of z2 and the label.
    latent = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    changed = latent.copy()
    changed[:, :4] += 1
    np.testing.assert_array_equal(shared.decode(latent, label), shared.decode(changed, (label + 1) % 3))
    first, second = shared.generate(label, seed=0), shared.generate((label + 1) % 3, seed=0)
    assert np.abs(first - second).max() > 1e-3


BUILT = ("mlp", "residual", "conv", "stacked")


class Rows(keras.layers.Layer):
    """Notes the number of rows of each call."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def call(self, inputs):
        self.noted.append(inputs.shape[0])
        return inputs


class Plus(keras.layers.Layer):
    def call(self, inputs, other):
        return inputs + other


class Shifted(keras.Model):
    """A functional model that does more than its layers."""

    def call(self, inputs, training=None, mask=None):
        image, one_hot = inputs
        return super().call([image, one_hot[:, ::-1]], training=training, mask=mask)


@pytest.mark.parametrize(
    "network",
    [
        *BUILT,
        "no label",
        "label that is not used",
        "twice",
        "image and label",
        "operator",
        "argument",
        "keyword",
        "call",
    ],
)
def test_each_label_has_the_posterior_of_the_encoder(network, batch):
    """What does not depend on the label is computed once, whatever the encoder is made of."""
    keras.utils.set_random_seed(0)
    built = network in BUILT
    model = build_semi_supervised_cvae(
        (8, 8, 1), 3, 4, network if built and network != "stacked" else "mlp", width=16, stacked=network == "stacked"
    )
    size, encoder, counted = model.latent_size, model.encoder, Rows()
    if not built:
        image, one_hot = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="one_hot")
        hidden, twice = keras.layers.Dense(3)(keras.layers.Flatten()(counted(image))), keras.layers.Dense(3)
        hidden = {
            "no label": lambda: hidden,
            "label that is not used": lambda: hidden,
            "twice": lambda: twice(keras.layers.Add()([twice(hidden), twice(one_hot)])),
            "image and label": lambda: keras.layers.Dot(axes=(3, 1))([image, keras.layers.Dense(1)(one_hot)]),
            "operator": lambda: hidden + twice(one_hot),
            "argument": lambda: Plus()(hidden, twice(one_hot)),
            "keyword": lambda: Plus()(hidden, other=twice(one_hot)),
            "call": lambda: hidden + twice(one_hot),
        }[network]()
        params = keras.layers.Dense(2 * size)(keras.layers.Flatten()(hidden))
        inputs = [image] if network == "no label" else [image, one_hot]
        kind = Shifted if network == "call" else keras.Model
        encoder = kind(inputs, MultivariateNormalDiag(size)(params))
        model = SemiSupervisedCVAE(encoder, model.decoder, model.classifier)
    perturb(encoder)
    image, one_hot = batch[0][:6], np.tile(np.eye(3, dtype=np.float32), (6, 1))
    each = np.repeat(image, 3, axis=0)
    expected = encoder(each if network == "no label" else [each, one_hot])
    counted.noted.clear()
    # And in a second model of the same encoder, whose layers are part of the first one too.
    again = SemiSupervisedCVAE(encoder, model.decoder, model.classifier, model.prior_network)
    for made in (model, again):
        found = made((image, np.tile(NONE, (6, 1)))).given_each_label.posterior
        np.testing.assert_allclose(found.mean(), expected.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.stddev(), expected.stddev(), rtol=1e-5, atol=1e-6)
        assert len(made.weights) == len({id(weight) for weight in made.weights})
    if network not in ("no label", "label that is not used"):
        assert np.abs(np.diff(np.reshape(expected.mean(), (6, 3, size)), axis=1)).max() > 1e-3
        assert set(counted.noted) <= {18 if network == "call" else 6}
        assert built or network == "image and label" or counted.noted


def test_an_analogy_has_the_style_and_another_label(m2, batch):
    image, label = batch[0][:6], np.arange(6) % 3
    eye = np.eye(3, dtype=np.float32)
    for other in range(3):
        found = under_label(m2, image, eye[label], eye[other])
        own = label == other
        np.testing.assert_allclose(found[own], m2.reconstruct(image, label).numpy()[own], atol=1e-5)
        assert np.abs(found[~own] - m2.reconstruct(image, label).numpy()[~own]).max() > 1e-3
    # Of a generated image the style is the noise that it was made of.
    posterior = tfd.MultivariateNormalDiag(m2.sample_prior(tf.range(6), eye[label]), tf.ones([6, m2.latent_size]))
    m2.posterior = lambda image, one_hot: posterior
    made = under_label(m2, image, eye[label], eye[1])
    np.testing.assert_allclose(made, m2.generate([1] * 6, seed=0), atol=1e-5)


def test_stacked_takes_no_other_prior():
    with pytest.raises(ValueError, match=r"prior: expected standard with stacked, .* got flow"):
        build_semi_supervised_cvae((8, 8, 1), 3, prior="flow", stacked=True)
    with pytest.raises(TypeError, match="stacked: expected a bool, got"):
        build_semi_supervised_cvae((8, 8, 1), 3, stacked="yes")


def test_without_labels_the_loss_is_a_sum_over_labels(shared, batch):
    image = batch[0][:50]
    log_q = log_label_posterior(shared, image)
    rate, log_likelihood, log_weights = terms_given_each_label(shared, image)
    # U(x) = sum_y q(y|x) L(x,y) - H(q(y|x)), with p(y) = 1/3 in L(x,y)
    rate = np.sum(np.exp(log_q) * (rate + np.log(3) + log_q), axis=1)
    distortion = -np.sum(np.exp(log_q) * log_likelihood.mean(axis=0), axis=1)
    result = shared((image, np.tile(NONE, (50, 1))))
    np.testing.assert_allclose(objectives.rate(result), rate, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(objectives.distortion(image, result), distortion, rtol=1e-5)
    np.testing.assert_allclose(objectives.elbo(image, result), -distortion - rate, rtol=1e-5)
    for kl_weight in (1.0, 0.3):
        loss = SemiSupervisedNegativeELBO(classification_weight=7.0, kl_weight=kl_weight)
        np.testing.assert_allclose(loss.call(image, result), distortion + kl_weight * rate, rtol=1e-5)
    iwae = logsumexp(log_weights, axis=(0, 2)) - np.log(shared.num_samples) - np.log(3)
    np.testing.assert_allclose(objectives.iwae(image, result), iwae, rtol=1e-5)


def test_with_all_labels_the_loss_is_that_of_the_cvae_and_the_classification_term(shared, batch):
    image, one_hot = batch[0][:50], batch[1][:50]
    classification = -np.sum(one_hot * log_label_posterior(shared, image), axis=1)
    assert classification.max() > 1
    rate, log_likelihood, log_weights = terms_given_label(shared, image, one_hot)
    result = shared((image, one_hot))
    for kl_weight in (1.0, 0.3):
        expected = kl_weight * (rate + np.log(3)) - log_likelihood.mean(axis=0) + 7 * classification
        loss = SemiSupervisedNegativeELBO(classification_weight=7.0, kl_weight=kl_weight)
        np.testing.assert_allclose(loss.call(image, result), expected, rtol=1e-5)
    iwae = logsumexp(log_weights, axis=0) - np.log(shared.num_samples) - np.log(3)
    np.testing.assert_allclose(objectives.iwae(image, result), iwae, rtol=1e-5)


def test_the_bound_on_held_out_images_is_that_given_their_label(shared, dataset):
    rate, log_likelihood, log_weights = terms_given_label(shared, dataset.test.binarized(), dataset.test.one_hot())
    distortion, iwae = -log_likelihood.mean(axis=0), logsumexp(log_weights, axis=0) - np.log(shared.num_samples)
    found = evaluate_bound(shared, dataset.test.batches(10))
    for estimate, values in (
        (found.rate, rate),
        (found.distortion, distortion),
        (found.elbo, -distortion - rate),
        *([(found.iwae, iwae)] if shared.num_samples > 1 else []),
    ):
        assert estimate.mean == pytest.approx(values.mean(), rel=1e-5)
        assert estimate.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)), rel=1e-3)
    assert found.to_dict() == evaluate_bound(plain(shared), dataset.test.batches(10)).to_dict()


@pytest.mark.parametrize("options", [{}, {"kl_weight": 0.3}])
def test_a_mixed_batch_has_the_loss_of_its_rows(m2, batch, options):
    image, one_hot = batch[0][:24], batch[1][:24].copy()
    one_hot[::3] = 0
    loss = SemiSupervisedNegativeELBO(**options)
    mixed = loss.call(image, m2((image, one_hot))).numpy()
    for rows in (one_hot.any(axis=1), ~one_hot.any(axis=1)):
        np.testing.assert_allclose(mixed[rows], loss.call(image[rows], m2((image[rows], one_hot[rows]))), rtol=1e-5)
    # What Keras measures of them is the sum.
    m2.compile(loss=loss, metrics=[ELBO(), Rate()])
    measured = m2.evaluate((image, one_hot), image, batch_size=7, verbose=0, return_dict=True)
    assert measured["loss"] == pytest.approx(mixed.mean(), rel=1e-5)


@pytest.mark.parametrize("shared", [PLAIN, SAMPLES], indirect=True)
def test_free_bits_count_the_label_as_a_dimension(shared, batch):
    image, one_hot = batch[0][:24], batch[1][:24].copy()
    one_hot[::3] = 0
    result, log_q = shared((image, one_hot)), log_label_posterior(shared, image)
    weights = np.where(one_hot.any(axis=1, keepdims=True), one_hot, np.exp(log_q))
    each = [numpy_rates(plain(shared)((image, one_hot_rows(label, 24)))) for label in range(3)]
    _, log_likelihood, _ = terms_given_each_label(shared, image)
    # KL(w(y) || p(y)), which is log 3 where the label is known.
    of_label = np.log(3) + np.where(one_hot.any(axis=1), 0, np.sum(np.exp(log_q) * log_q, axis=1))
    per_dimension = np.column_stack([np.einsum("bk,kbd->bd", weights, each), of_label])
    np.testing.assert_allclose(objectives.rate_per_dimension(result), per_dimension, rtol=1e-4, atol=1e-5)
    rate = np.maximum(per_dimension.mean(axis=0), 0.5).sum()
    distortion = -np.sum(weights * log_likelihood.mean(axis=0), axis=1)
    loss = SemiSupervisedNegativeELBO(classification_weight=1.0, free_bits=0.5)
    surprise = -np.sum(one_hot * log_q, axis=1)
    np.testing.assert_allclose(loss.call(image, result), distortion + rate + surprise, rtol=1e-5)


def test_predict_is_the_mean_over_the_labels_at_the_posterior_mean(shared, batch):
    image, one_hot = batch[0][:6], batch[1][:6].copy()
    one_hot[::2] = 0
    weights = np.where(one_hot.any(axis=1, keepdims=True), one_hot, shared.classify_fast(image))
    expected = sum(weights[:, [label], None, None] * shared.reconstruct(image, label) for label in range(3))
    np.testing.assert_allclose(shared.predict((image, one_hot), verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_bounds_are_the_evidence_at_the_exact_posterior(observed, num_samples):
    x, _ = observed
    each, label = np.repeat(x, 2, axis=0), np.tile([0, 1], len(x))
    log_joint = tf.constant(log_evidence(each, label).reshape(-1, 2) + np.log(0.5))
    exact = SemiSupervisedOutput(
        tf.zeros([len(x), 2], tf.float64),
        tfd.OneHotCategorical(logits=log_joint, dtype=tf.float64),
        output(each, label, num_samples, 0),
    )
    log_p_x = logsumexp(log_joint, axis=1)
    np.testing.assert_allclose(objectives.iwae(x, exact), log_p_x)
    many = dataclasses.replace(exact, given_each_label=output(each, label, 4000, 0))
    # Each of the two terms that are averaged over samples has a variance of no more than the size of x.
    np.testing.assert_allclose(objectives.elbo(x, many), log_p_x, atol=5 * np.sqrt(2 * 5 / 4000))
    # Any other q(y|x) is worse, by its divergence from the true one.
    uniform = dataclasses.replace(many, label_posterior=tfd.OneHotCategorical(logits=0 * log_joint, dtype=tf.float64))
    gap = tfd.kl_divergence(uniform.label_posterior, many.label_posterior)
    bounds = [objectives.elbo(x, found).numpy() for found in (many, uniform)]
    assert np.all(bounds[0] - bounds[1] - gap > -5 * np.sqrt(2 * 5 / 4000))
    # With a label it is log p(x,y).
    for k in range(2):
        given = dataclasses.replace(exact, one_hot=tf.one_hot([k] * len(x), 2, dtype=tf.float64))
        np.testing.assert_allclose(objectives.iwae(x, given), log_joint[:, k])


def test_at_first_only_labels_teach_the_classifier(m2, batch):
    image, one_hot = batch[0][:24], batch[1][:24].copy()
    one_hot[::3] = 0
    loss = SemiSupervisedNegativeELBO(classification_weight=1.0)
    m2.compile("sgd", loss=loss)
    weights = m2.classifier.trainable_variables

    def gradients(function, epoch):
        warm_up = LabelWarmUp(4)
        warm_up.set_model(m2)
        warm_up.on_epoch_begin(epoch)
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(function(m2((image, one_hot))))
        return np.concatenate([part.numpy().ravel() for part in tape.gradient(value, weights)])

    label = gradients(objectives.label_surprise, 0)
    bound = gradients(lambda result: -objectives.elbo(image, result), 0)
    assert np.abs(label).max() > 0.1
    assert np.abs(bound).max() > 0.1
    for epoch, share in ((0, 0), (1, 0.25), (3, 0.75), (4, 1), (9, 1)):
        found = gradients(lambda result: loss.call(image, result), epoch)
        np.testing.assert_allclose(found, label + share * bound, rtol=1e-4, atol=1e-4)


def test_images_without_label_have_no_part_in_the_classification_term(shared, batch):
    image, one_hot = batch[0][:24], batch[1][:24].copy()
    one_hot[::3] = 0
    rows = one_hot.any(axis=1)
    gradients = []
    for inputs in ((image, one_hot), (image[rows], one_hot[rows])):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(objectives.label_surprise(shared(inputs)))
        gradients.append(tape.gradient(value, shared.classifier.trainable_variables))
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_for_another_model(cvae, batch):
    cvae.compile("sgd", loss=SemiSupervisedNegativeELBO())
    with pytest.raises(TypeError, match=r"loss: expected a SemiSupervisedCVAE .* got the output CVAEOutput of another"):
        cvae.fit(batch, batch[0], verbose=0)


@pytest.mark.parametrize(("epochs", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_label_warm_up_takes_epochs(epochs, error):
    with pytest.raises(error, match="epochs: expected an integer >= 1, got"):
        LabelWarmUp(epochs)


@pytest.mark.parametrize("m2", [PLAIN], indirect=True)
def test_after_a_training_the_bound_teaches_again(m2, batch):
    m2.compile("sgd", loss=SemiSupervisedNegativeELBO())
    m2.fit(batch, batch[0], callbacks=[LabelWarmUp(5)], epochs=2, verbose=0)
    assert m2.loss.label_gradient.numpy() == 1


@pytest.mark.parametrize("m2", [PLAIN], indirect=True)
def test_label_warm_up_needs_its_loss(m2, batch):
    m2.compile("sgd", loss=NegativeELBO())
    with pytest.raises(TypeError, match="loss: expected SemiSupervisedNegativeELBO for LabelWarmUp, got"):
        m2.fit(batch, batch[0], callbacks=[LabelWarmUp()], verbose=0)


def test_the_bound_of_a_plain_loss_learns_without_labels_too(m2, batch):
    m2.compile("adam", loss=NegativeIWAE())
    losses = m2.fit((batch[0], 0 * batch[1]), batch[0], epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0] - 1


def test_images_are_deformed_in_training_alone(batch):
    keras.utils.set_random_seed(0)
    model = build_semi_supervised_cvae((8, 8, 1), 3, latent_size=4, width=16, deformation=1.0)
    image, one_hot = batch[0][:24], batch[1][:24]
    seen = [model((image, one_hot), training=True).label_posterior.mean().numpy() for _ in range(2)]
    assert np.abs(seen[0] - seen[1]).max() > 1e-4
    measured = [model((image, one_hot)).label_posterior.mean().numpy() for _ in range(2)]
    np.testing.assert_array_equal(measured[0], measured[1])
    np.testing.assert_array_equal(measured[0], model.classify_fast(image))
    # The encoder sees the images as they are.
    encoded = [model((image, one_hot), training=training).given_each_label.posterior for training in (True, False)]
    np.testing.assert_array_equal(encoded[0].mean(), encoded[1].mean())


@pytest.mark.parametrize("m2", [SAMPLES], indirect=True)
def test_the_strength_of_a_deformation(m2, batch):
    m2.seed, m2.deformation = 5, 0.5
    image, one_hot = batch[0][:24], batch[1][:24]
    seen = m2((image, one_hot), training=True).label_posterior.mean()
    # Of the first step, after the numbers of the K latents.
    noise = threefry_normal((5, 1), range(24), 3 * 4 + NUM_RANDOM)[:, 3 * 4 :]
    expected = m2.label_posterior(deform(image, np.float32(0.5 * noise))).mean()
    np.testing.assert_allclose(seen, expected, atol=1e-4)


# The noise of a deformation comes after that of the K samples.
@pytest.mark.parametrize("m2", [STACKED], indirect=True)
def test_a_deformation_that_is_changed_takes_effect(m2, batch):
    m2.compile(keras.optimizers.SGD(0.0), loss=SemiSupervisedNegativeELBO())
    losses = []
    for deformation in (0.0, 0.0, 1.0):
        m2.deformation = deformation
        m2.step.assign(0)
        losses.append(m2.fit(batch, batch[0], shuffle=False, verbose=0).history["loss"][0])
    assert losses[0] == losses[1] != losses[2]


def test_it_is_saved_and_loaded(m2, batch, tmp_path):
    m2.save(tmp_path / "m2.keras")
    unlabelled = (batch[0], 0 * batch[1])
    for load in (keras.models.load_model, load_keras):
        loaded = load(tmp_path / "m2.keras")
        assert isinstance(loaded, SemiSupervisedCVAE)
        assert loaded.deformation == 0
        for inputs in (batch, unlabelled):
            np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), m2.predict(inputs, verbose=0))
        np.testing.assert_array_equal(loaded.classify_fast(batch[0]), m2.classify_fast(batch[0]))
        np.testing.assert_array_equal(loaded.generate([0, 1, 2]), m2.generate([0, 1, 2]))


def test_predict_reconstructs_at_the_posterior_mean(shared, batch):
    image, one_hot = batch[0][:20], batch[1][:20]
    label = np.argmax(one_hot, axis=1)
    np.testing.assert_allclose(shared.predict((image, one_hot), verbose=0), shared.reconstruct(image, label), atol=1e-6)
    mixture = sum(
        shared.classify_fast(image)[:, k, None, None, None] * shared.reconstruct(image, k).numpy() for k in range(3)
    )
    np.testing.assert_allclose(shared.predict((image, 0 * one_hot), verbose=0), mixture, atol=1e-6)


@pytest.mark.parametrize("row", [[0.5, 0.5, 0], [1, 1, 0], [0.5, 0, 0]])
@pytest.mark.parametrize("m2", [PLAIN], indirect=True)
def test_labels_are_given_or_not(m2, batch, row):
    m2.compile("adam", loss=SemiSupervisedNegativeELBO())
    one_hot = np.tile(np.float32(row), (8, 1))
    with pytest.raises(
        ValueError, match="one_hot: expected rows that are one-hot, or 0 for no label, got another in row 0"
    ):
        m2.fit((batch[0][:8], one_hot), batch[0][:8], verbose=0)


@pytest.mark.parametrize("m2", [PLAIN], indirect=True)
def test_a_mixture_in_a_dataset_is_refused_too(m2, batch):
    m2.compile("adam", loss=SemiSupervisedNegativeELBO())
    one_hot = np.tile(np.float32([0.5, 0.5, 0]), (8, 1))
    mixed = tf.data.Dataset.from_tensors(((batch[0][:8], one_hot), batch[0][:8]))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="one_hot: expected rows that are one-hot, or 0 for no label"
    ):
        m2.fit(mixed, verbose=0)


@pytest.mark.parametrize("m2", [PLAIN, STACKED], indirect=True)
def test_a_generator_of_integers_is_as_arrays(m2, batch):
    image, one_hot = batch[0][:16], batch[1][:16] * (np.arange(16) % 2)[:, np.newaxis]
    m2.compile("adam", loss=SemiSupervisedNegativeELBO(), metrics=[ELBO()])
    of_arrays = m2.evaluate((image, one_hot), image, batch_size=8, verbose=0)
    as_integers = image.astype(np.uint8), one_hot.astype(int)
    parts = [((as_integers[0][i : i + 8], as_integers[1][i : i + 8]), as_integers[0][i : i + 8]) for i in (0, 8)]
    np.testing.assert_allclose(m2.evaluate(iter(parts), verbose=0), of_arrays, rtol=1e-5)
    m2.deformation = 1.0
    assert np.isfinite(m2.fit(iter(parts), verbose=0).history["loss"]).all()


@pytest.mark.parametrize("shared", [PLAIN], indirect=True)
def test_no_image(shared):
    assert shared.classify_fast(np.zeros([0, 8, 8, 1])).shape == (0, 3)


@pytest.mark.parametrize("shared", [PLAIN], indirect=True)
def test_a_classifier_that_does_not_fit(shared):
    other = networks.convolutional_classifier((8, 8, 1), 4, 8)
    with pytest.raises(ValueError, match=r"classifier: expected images of \(8, 8, 1\) and 3 classes, .* and 4"):
        SemiSupervisedCVAE(shared.encoder, shared.decoder, other)
    with pytest.raises(TypeError, match="classifier: expected an output of the layer OneHotCategorical, got Multi"):
        SemiSupervisedCVAE(shared.encoder, shared.decoder, shared.encoder)


def trained(tmp_path, name, images, labels, **settings):
    """A run in a folder of its own."""
    (tmp_path / name).mkdir()
    test_images, test_labels = stripes(60, seed=1)
    np.savez(
        tmp_path / name / "stripes.npz", images=images, labels=labels, test_images=test_images, test_labels=test_labels
    )
    small = {"model": "m2", "width": 16, "latent_size": 4, "batch_size": 16, "epochs": 2}
    config = TrainConfig(dataset=str(tmp_path / name / "stripes.npz"), **{**small, **settings})
    return train(config, tmp_path / name / "run", verbose=0)


@pytest.mark.usefixtures("quick_judge", "no_figures")
def test_labels_that_are_not_given_change_nothing(tmp_path):
    images, labels = stripes(140)
    # The first sixty in the order of the choice are more than are looked at.
    others = np.random.default_rng(3).permutation(len(labels))[60:]
    changed = labels.copy()
    changed[others] = np.random.default_rng(0).permutation(changed[others])
    assert np.mean(changed != labels) > 0.3
    settings = {"num_labels": 6, "seed": 3, "deformation": 0.5, "epochs": 1, "label_warmup_epochs": 0}
    runs = [
        trained(tmp_path, name, images, given, **settings) for name, given in (("first", labels), ("second", changed))
    ]
    first, second = ([{**row, "seconds": 0, "images_per_second": 0} for row in run.history()] for run in runs)
    assert first == second
    for weight, other in zip(*(run.model().get_weights() for run in runs), strict=True):
        np.testing.assert_array_equal(weight, other)
    first, second = (run.evaluation() for run in runs)
    assert first["label_posterior_accuracy"] == second["label_posterior_accuracy"]
    results = [evaluate_run(run, run.training_data(), TINY).to_dict() for run in runs]
    for result in results:
        del result["protocol"]
    assert results[0] == results[1]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("model", ["m2", "m1+m2"])
def test_few_labels_are_enough(model, tmp_path, monkeypatch):
    """Stripes are told apart with two labels of each class, and the run tells so."""
    images, labels = stripes(600)
    settings = {"model": model, "num_labels": 6, "labelled_per_batch": 4, "classification_weight": 10.0}
    settings.update(epochs=20, label_warmup_epochs=4, learning_rate=3e-3)
    run = trained(tmp_path, "few", images, labels, **settings)
    accuracy = run.evaluation()["label_posterior_accuracy"]["mean"]
    assert accuracy > 0.95
    assert f"test images that q(y|x) has right: {accuracy:.2%}" in run.summary()
    assert Run.load(run.path).class_probabilities == pytest.approx([1 / 3] * 3)
    # The shares of the few labels are not served: p(y) is uniform in this model.
    served = mock.Mock()
    monkeypatch.setattr(export, "export_saved_model", served)
    export.export_run(dataclasses.replace(run, class_probabilities=(0.5, 0.3, 0.2)), tmp_path / "served")
    assert served.call_args.kwargs["class_probabilities"] == pytest.approx([1 / 3] * 3)


def test_the_cvae_refuses_images_without_label(cvae, dataset):
    cvae.compile("adam", loss=NegativeELBO())
    few = dataset.with_few_labels(6)
    with pytest.raises(ValueError, match="x: expected images that all have a label, got batches with some"):
        cvae.fit(few.train.batches(8), verbose=0)
    with pytest.raises(ValueError, match="x: expected images that all have a label, got batches with some"):
        cvae.evaluate(few.train.batches(8), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"one_hot: expected rows in .* that sum to 1"):
        cvae.evaluate(few.validation.batches(8), verbose=0)
    # The plain VAE needs none.
    vae = build_cvae((8, 8, 1), 0, latent_size=4, width=16)
    vae.compile("adam", loss=NegativeELBO())
    vae.fit(few.train.batches(8, conditional=False), verbose=0)
    with pytest.raises(ValueError, match="one_hot: expected rows that sum to 1"):
        cvae.fit((few.train.binarized(), few.train.one_hot()), few.train.binarized(), verbose=0)


@pytest.mark.parametrize("m2", [PLAIN, STACKED], indirect=True)
def test_it_is_served(m2, batch, tmp_path):
    version = export_saved_model(m2, tmp_path / "m2", num_importance_samples=20)
    served = tf.saved_model.load(str(version)).signatures
    image = batch[0][:20]
    answer = served["classify_fast"](image=tf.constant(image))
    np.testing.assert_allclose(answer["probabilities"], m2.classify_fast(image), atol=1e-6)
    np.testing.assert_array_equal(answer["label"], np.argmax(m2.classify_fast(image), axis=1))
    assert np.max(answer["probabilities"]) - np.min(answer["probabilities"]) > 0.5
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image: expected values in \[0, 1\]"):
        served["classify_fast"](image=tf.constant(2 * image))
    seeds = tf.range(20, dtype=tf.int64)
    expected = CVAE(m2.encoder, m2.decoder, m2.prior_network).generate([0, 1, 2, 0], seed=0)
    found = served["generate"](label=tf.constant([0, 1, 2, 0], tf.int64), seed=seeds[:4])["image"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("m2", [PLAIN, STACKED], indirect=True)
def test_it_is_evaluated(m2, dataset):
    result = evaluate(m2, dataset.with_few_labels(30), TINY)
    label = dataset.test.labels
    right = np.mean(np.argmax(m2.classify_fast(dataset.test.binarized()), axis=1) == label)
    assert result.label_posterior_accuracy.mean == pytest.approx(right)
    assert f"classification by q(y|x): accuracy: {100 * right:.2f} +- " in str(result)
    # Of the bounds, all that was given away are the labels of the test images: p(y) is the model's own.
    likelihood = likelihood_under_each_label(m2, dataset.test.binarized(), label, num_samples=120)
    log_p_x = logsumexp(likelihood.blind - np.log(3), axis=1)
    assert result.log_p_x.mean == pytest.approx(log_p_x.mean(), rel=1e-5)
    if m2.num_samples == 1:
        # The CVAE in it has no q(y|x), however few labels there are.
        cvae = CVAE(m2.encoder, m2.decoder, m2.prior_network)
        assert evaluate(cvae, dataset.with_few_labels(30), TINY).label_posterior_accuracy is None
        of_all = evaluate(m2, dataset, TINY)
        assert of_all.log_p_x.mean == pytest.approx(result.log_p_x.mean, rel=1e-6)
        assert of_all.label_posterior_accuracy == result.label_posterior_accuracy


def noisy_stripes(count, seed):
    """Stripes that one image of each class does not tell apart from the noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(0, 140, (count, 8, 8, 1))
    for index, label in enumerate(labels):
        images[index, :, 2 * label : 2 * label + 2] = generator.integers(100, 230, (8, 2, 1))
    return images.astype(np.uint8), labels


def test_images_without_label_teach():
    names = ["left", "middle", "right"]
    data = make_dataset("noisy", names, noisy_stripes(600, 0), test=noisy_stripes(1500, 1)).with_few_labels(3, seed=1)
    accuracies = []
    for batches, epochs in (
        # 300 epochs of a step each.
        (data.train.labelled().batches(3).repeat(300), 1),
        (data.train.batches(16, labelled_per_batch=3, drop_remainder=True), 25),
    ):
        keras.utils.set_random_seed(0)
        cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=16)
        # Dense, as max pooling alone would be good at stripes.
        image = keras.Input((8, 8, 1), name="image")
        hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(image))
        classifier = keras.Model(image, OneHotCategorical(3)(keras.layers.Dense(3)(hidden)))
        model = SemiSupervisedCVAE(cvae.encoder, cvae.decoder, classifier)
        loss = SemiSupervisedNegativeELBO(classification_weight=10.0)
        model.compile(keras.optimizers.Adam(3e-3), loss=loss, steps_per_execution=25)
        model.fit(batches, epochs=epochs, callbacks=[LabelWarmUp(4)], verbose=0)
        found = np.argmax(model.classify_fast(data.test.binarized()), axis=1)
        accuracies.append(np.mean(found == data.test.labels))
    # 0.88 and 0.95; with other initial weights 0.88 and 0.96. The standard error of one is below 0.01.
    assert accuracies[1] > max(0.85, accuracies[0] + 0.05)


@pytest.mark.usefixtures("quick_judge", "no_figures")
def test_m1_reads_the_latent_of_a_plain_vae(tmp_path):
    images, labels = stripes(300)
    settings = {"model": "m1", "conditional": False, "num_labels": 12, "epochs": 20, "learning_rate": 5e-3}
    run = trained(tmp_path, "m1", images, labels, **settings)
    accuracy = run.evaluation()["label_posterior_accuracy"]["mean"]
    assert accuracy > 0.9
    # An epoch has all images once, with a label or not.
    assert run.model().num_classes == 0
    few = run.training_data()
    assert few.train.num_batches(16, conditional=False, drop_remainder=True) == len(few.train) // 16
    # By other means: the same regression on what the encoder gives for the twelve images.
    encoder, labelled = run.model().encoder, few.train.labelled()
    known, test = (np.array(encoder(split.binarized()).mean()) for split in (labelled, few.test))
    regression = LogisticRegression(max_iter=1000).fit(known, labelled.labels)
    assert accuracy == pytest.approx(regression.score(test, few.test.labels))
    assert f"test images that logistic regression on the latent (M1) has right: {accuracy:.2%}" in run.summary()
    evaluation = evaluate_run(run, run.training_data(), TINY)
    assert evaluation.label_posterior_accuracy.mean == accuracy
    assert f"classification by logistic regression on the latent (M1): accuracy: {100 * accuracy:.2f} +- " in str(
        evaluation
    )


@pytest.mark.usefixtures("quick_judge", "no_figures")
def test_m1_of_all_labels_keeps_its_accuracy(tmp_path):
    images, labels = stripes(60)
    run = trained(tmp_path, "m1", images, labels, model="m1", conditional=False, epochs=1)
    accuracy = run.evaluation()["label_posterior_accuracy"]
    evaluate_run(run, run.training_data(), TINY)
    assert run.evaluation()["label_posterior_accuracy"] == accuracy


def test_m1_of_one_class_is_finished(tmp_path):
    """Of which no classifier can be fitted."""
    np.savez(tmp_path / "one.npz", images=stripes(60)[0], labels=np.zeros(60, int))
    settings = {"width": 16, "latent_size": 4, "batch_size": 16, "epochs": 1}
    config = TrainConfig(dataset=str(tmp_path / "one.npz"), model="m1", conditional=False, **settings)
    run = train(config, tmp_path / "run", verbose=0)
    assert run.is_finished()
    assert "label_posterior_accuracy" not in run.evaluation()
