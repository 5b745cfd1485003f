import collections
import contextlib
import hashlib
import os
import pickle
import re
import types

import keras as keras_3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import threefry_normal

from tfp_cvae.backup import Backup
from tfp_cvae.batch_checks import CheckedSequence
from tfp_cvae.build import build_cvae
from tfp_cvae.layers import IndependentBernoulli, MultivariateNormalDiag, OneHotCategorical
from tfp_cvae.losses import ELBO, Distortion, NegativeELBO, NegativeIWAE, Rate
from tfp_cvae.model import CVAE
from tfp_cvae.model_files import weights_sha256
from tfp_cvae.networks import label_prior

NAN = np.full((6, 3), np.nan, np.float32)
IMAGE, ONE_HOT = np.zeros((6, 8, 8, 1), np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]


@pytest.fixture(scope="module")
def refusing():
    """One compiled model for all tests of what is refused, after which it is as it was."""
    model = build_cvae((8, 8, 1), 3, latent_size=4, width=16, prior="label")
    model.compile("adam", loss=NegativeELBO())
    weights, compiled = model.get_weights(), model.compiled_with
    yield model
    assert model.compiled_with == compiled
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def custom_networks(num_classes=3, encoder_labels=True, latent_size=2, decoded=(8, 8, 1)):
    image, latent = keras.Input((8, 8, 1)), keras.Input((2,))
    one_hot, other = keras.Input((num_classes,)), keras.Input((num_classes,))
    flat = keras.layers.Flatten()(image)
    hidden = keras.layers.Concatenate()([flat, one_hot]) if encoder_labels else flat
    posterior = MultivariateNormalDiag(latent_size)(keras.layers.Dense(2 * latent_size)(hidden))
    encoder = keras.Model([image, one_hot] if encoder_labels else image, posterior)
    logits = keras.layers.Dense(int(np.prod(decoded)))(keras.layers.Concatenate()([latent, other]))
    return encoder, keras.Model([latent, other], IndependentBernoulli(decoded)(logits))


@pytest.mark.parametrize("encoder_labels", [True, False])
def test_own_networks(batch, encoder_labels):
    cvae = CVAE(*custom_networks(encoder_labels=encoder_labels), num_samples=2)
    assert (cvae.image_shape, cvae.num_classes, cvae.latent_size) == ((8, 8, 1), 3, 2)
    cvae.compile("adam", loss=NegativeELBO(), metrics=[ELBO()])
    losses = cvae.fit(batch, batch[0], epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def with_random_layers(network):
    """The same network, its images moved at random and some of its numbers dropped, in training."""
    (image, *rest), last = network.inputs, network.layers[-1]
    given = keras.Input(image.shape[1:])
    random = keras.layers.GaussianDropout(0.5)(given)
    if len(image.shape) == 4:
        # The layers of Keras that change images do so unless they are told not to.
        random = keras.layers.RandomTranslation(0.3, 0.3)(random)
    inner = keras.Model(network.inputs, network.layers[-2].output)
    outer = type(last).from_config({**last.get_config(), "name": "outer"})(inner([random, *rest]))
    return keras.Model([given, *rest], outer)


def test_layers_that_are_random_in_training_rest_else(batch):
    image, one_hot = batch
    nets = custom_networks()
    plain, model = CVAE(*nets), CVAE(*map(with_random_layers, nets))
    label = one_hot.argmax(axis=1)
    for work in (
        lambda model: model.predict(batch, verbose=0),
        lambda model: model.reconstruct(image, label, seed=3),
        lambda model: model.generate(label, seed=3),
        lambda model: model.posterior(image, one_hot).mean(),
        lambda model: model(batch).likelihood.log_prob(image),
        lambda model: model.likelihood(model.posterior(image, one_hot).mean()[tf.newaxis], one_hot).mean(),
    ):
        np.testing.assert_allclose(work(model), work(plain), atol=1e-4)
    moved = model.posterior(image, one_hot, training=True).mean()
    assert np.abs(moved - plain.posterior(image, one_hot).mean()).max() > 0.1
    latent = np.ones((len(image), 2), np.float32)
    dropped = model.likelihood(latent, one_hot, training=True).mean()
    assert np.abs(dropped - plain.likelihood(latent, one_hot).mean()).max() > 0.01
    # A step of training has both.
    step = model(batch, training=True)
    assert np.abs(step.posterior.mean() - plain.posterior(image, one_hot).mean()).max() > 0.1
    assert np.abs(step.likelihood.mean()[0] - plain.likelihood(step.latent[0], one_hot).mean()).max() > 0.01


def test_five_lines_of_keras(dataset):
    cvae = build_cvae(dataset.image_shape, dataset.num_classes, latent_size=4)
    cvae.compile(optimizer="adam", loss=NegativeELBO(), metrics=[ELBO(), Rate(), Distortion()])
    history = cvae.fit(dataset.train.batches(32), validation_data=dataset.test.batches(8), epochs=2, verbose=0).history
    assert set(history) == {f"{p}{n}" for p in ("", "val_") for n in ("loss", "elbo", "rate", "distortion")}
    np.testing.assert_allclose(
        history["val_loss"], np.array(history["val_rate"]) + history["val_distortion"], rtol=1e-5
    )


def test_generate_is_a_function_of_label_and_seed(cvae):
    images = cvae.generate([2, 0, 1], seed=[7, 8, 7]).numpy()
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.float32
    for index, (label, seed) in enumerate([(2, 7), (0, 8), (1, 7)]):
        np.testing.assert_allclose(cvae.generate(label, seed=seed)[0], images[index], rtol=1e-5)
    # One seed s stands for s, s + 1, ...
    np.testing.assert_array_equal(cvae.generate([1, 1, 1], seed=4), cvae.generate([1, 1, 1], seed=[4, 5, 6]))
    np.testing.assert_array_equal(cvae.generate(1, seed=[4, 5]), cvae.generate([1, 1], seed=4))
    assert np.abs(cvae.generate(1, seed=5) - cvae.generate(1, seed=5 + 2**32)).max() > 1e-3
    assert len(np.unique(cvae.generate([1] * 20, seed=0).numpy().sum(axis=(1, 2, 3)))) == 20
    assert not np.allclose(images[0], images[2])


def test_generated_latents_are_samples_of_the_prior(cvae):
    # A decoder that shows its latent: 4 pixels whose logits are z.
    latent, one_hot = keras.Input((4,)), keras.Input((3,))
    cvae.decoder = keras.Model([latent, one_hot], IndependentBernoulli((4, 1, 1))(latent))
    kernel = cvae.prior_network.trainable_variables[0]
    kernel.assign(np.random.default_rng(0).standard_normal(kernel.shape))
    probability = np.float64(cvae.generate(np.full(4000, 2), seed=100)[..., 0, 0])
    samples = np.log(probability) - np.log1p(-probability)
    prior = cvae.prior(tf.one_hot([2], 3))
    mean, stddev = prior.mean().numpy()[0], prior.stddev().numpy()[0]
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * stddev / np.sqrt(4000))
    assert np.all(np.abs(samples.std(axis=0) / stddev - 1) < 5 / np.sqrt(2 * 4000))
    assert np.all(np.abs(np.corrcoef(samples.T) - np.eye(4)) < 5 / np.sqrt(4000))


def test_reconstruct(cvae, batch):
    image, one_hot = batch[0][:5], batch[1][:5]
    label = one_hot.argmax(axis=1)
    mean = cvae.posterior(image, one_hot).mean()
    np.testing.assert_allclose(cvae.reconstruct(image, label), cvae.likelihood(mean, one_hot).mean(), rtol=1e-6)
    sampled = cvae.reconstruct(image, label, seed=3).numpy()
    np.testing.assert_allclose(cvae.reconstruct(image[2:3], label[2:3], seed=5)[0], sampled[2], rtol=1e-5)
    assert not np.allclose(sampled, cvae.reconstruct(image, label))


def test_the_prior_has_the_batch_of_its_labels():
    """Whichever it is, so that its samples go through the decoder as they are."""
    one_hot = np.eye(3, dtype=np.float32)[[2, 0]]
    for prior in ("standard", "label", "flow"):
        cvae = build_cvae((4, 4, 1), 3, latent_size=2, width=8, prior=prior)
        assert cvae.prior(one_hot).batch_shape == [2]
        assert cvae.prior(one_hot).event_shape == [2]
        latent = cvae.prior(one_hot).sample(5)
        assert cvae.likelihood(latent, one_hot).mean().shape == (5, 2, 4, 4, 1)
    assert build_cvae((4, 4, 1), 0, latent_size=2, width=8).prior().batch_shape == []


def test_decode(cvae):
    latent = np.random.default_rng(0).standard_normal((3, 4))
    one_hot = np.eye(3, dtype=np.float32)
    expected = cvae.likelihood(latent.astype(np.float32), one_hot[[2, 0, 2]]).mean()
    np.testing.assert_allclose(cvae.decode(latent, [2, 0, 2]), expected, rtol=1e-6)
    np.testing.assert_allclose(cvae.decode(latent[:1], 2)[0], expected[0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"latent: expected shape \[n, 4\], got \[4\]"):
        cvae.decode(latent[0], 2)
    with pytest.raises(ValueError, match="latent: expected finite numbers, got nan"):
        cvae.decode(latent * np.nan, 2)
    with pytest.raises(ValueError, match="label: expected one for each of 3 images, got 2"):
        cvae.decode(latent, [2, 1])


def test_decode_has_a_gradient(cvae):
    latent = tf.constant(np.random.default_rng(0).standard_normal((3, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(latent)
        total = tf.reduce_sum(cvae.decode(latent, [0, 1, 2]))
    step = 1e-2 * np.eye(4)[0]
    difference = tf.reduce_sum(cvae.decode(latent + step, [0, 1, 2]) - cvae.decode(latent - step, [0, 1, 2]), (1, 2, 3))
    np.testing.assert_allclose(tape.gradient(total, latent)[:, 0], difference / 2e-2, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("prior", ["label", "flow"])
def test_a_prior_without_rows_of_labels(prior):
    model = build_cvae((8, 8, 1), 3, latent_size=2, width=4, prior=prior)
    for given, shape in ((None, "None"), (np.array([0, 1]), r"shape \[2\]")):
        with pytest.raises(ValueError, match=f"one_hot: expected .batch, 3., one-hot rows, got {shape}"):
            model.prior(given)
    with pytest.raises(ValueError, match=r"one_hot: expected .batch, 3., one-hot rows, got shape \[2\]"):
        model.likelihood(np.zeros((4, 2, 2), np.float32), np.array([0, 1]))


def test_likelihood_of_many_samples_is_that_of_each(cvae, batch):
    one_hot = batch[1][:6]
    latent = np.random.default_rng(0).standard_normal((2, 5, 6, 4)).astype(np.float32)
    likelihood = cvae.likelihood(latent, one_hot)
    assert likelihood.batch_shape == (2, 5, 6)
    np.testing.assert_allclose(
        likelihood.log_prob(batch[0][:6])[1, 3],
        cvae.likelihood(latent[1, 3], one_hot).log_prob(batch[0][:6]),
        rtol=1e-5,
    )


def test_without_classes_it_is_the_plain_vae(batch):
    image = batch[0]
    cvae = build_cvae((8, 8, 1), 0, latent_size=3, width=16)
    cvae.compile("adam", loss=NegativeELBO(), metrics=[ELBO()])
    losses = cvae.fit(image, image, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert cvae.generate(seed=[1, 2]).shape == (2, 8, 8, 1)
    assert cvae.reconstruct(image[:3]).shape == (3, 8, 8, 1)
    assert cvae.predict(image, verbose=0).shape == image.shape


def test_eager_equals_compiled(cvae, batch):
    image, one_hot = batch
    loss = NegativeELBO()

    def bound():
        output = cvae((image, one_hot), training=True)
        return loss.call(image, output), output.latent, output.likelihood.mean()

    eager = bound()
    cvae.step.assign(0)
    for one, other in zip(eager, tf.function(bound)(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
    cvae.step.assign(0)
    value, latent, mean = tf.function(bound, jit_compile=True)()
    np.testing.assert_allclose(latent, eager[1], rtol=2e-5, atol=1e-6)
    likelihood = cvae.likelihood(latent, one_hot)
    rate = cvae.posterior(image, one_hot).kl_divergence(cvae.prior(one_hot))
    np.testing.assert_allclose(value, rate - likelihood.log_prob(image)[0], rtol=2e-5)
    np.testing.assert_allclose(mean, likelihood.mean(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_noise_of_training_is_that_of_seed_and_step(cvae, batch, jit_compile):
    """Whatever the images are: the rows of the sample of this key, number by number."""
    step, seed, size = 2**32 + 6, 3, 5
    model = CVAE(cvae.encoder, cvae.decoder, cvae.prior_network, seed=seed)
    expected = threefry_normal((seed, step % 2**32), range(4), size)
    draw = tf.function(lambda image: model.noise(image, size, training=True), jit_compile=jit_compile)
    for rows in (slice(0, 4), slice(50, 54)):
        model.step.assign(step - 1)
        np.testing.assert_allclose(draw(batch[0][rows]), expected, rtol=2e-5, atol=1e-7)
        assert int(model.step) == step


def test_latent_samples_follow_seed_step_and_image(cvae, batch):
    image, one_hot = batch

    def latent(rows, training=False, seed=0):
        model = CVAE(cvae.encoder, cvae.decoder, cvae.prior_network, seed=seed)
        model.step.assign(step)
        return model((image[rows], one_hot[rows]), training=training).latent.numpy()

    step = 5
    first, second = slice(0, 50), slice(50, 100)
    np.testing.assert_array_equal(latent(first), latent(first))
    np.testing.assert_array_equal(latent(first, training=True), latent(first, training=True))
    assert abs(np.corrcoef(np.ravel(latent(first)), np.ravel(latent(second)))[0, 1]) < 0.3
    assert not np.allclose(latent(first), latent(first, seed=1))
    trained = latent(first, training=True)
    step = 6
    assert not np.allclose(trained, latent(first, training=True))
    np.testing.assert_array_equal(latent(first), latent(first))


def test_training_draws_new_samples_in_each_step_and_evaluation_the_same(cvae, batch):
    cvae.compile("sgd", loss=NegativeELBO())
    first = cvae.evaluate(batch, batch[0], verbose=0)
    assert cvae.evaluate(batch, batch[0], verbose=0) == first
    cvae.compile(keras.optimizers.SGD(0.0), loss=NegativeELBO())
    losses = cvae.fit(batch, batch[0], batch_size=len(batch[0]), epochs=3, verbose=0).history["loss"]
    assert len(set(losses)) == 3
    assert cvae.step.numpy() == 3
    assert cvae.evaluate(batch, batch[0], verbose=0) == first


def test_evaluation_noise_is_one_for_each_image_whatever_the_batches(cvae, batch):
    image, one_hot = batch
    cvae.compile(loss=NegativeELBO())
    losses = [cvae.evaluate(batch, image, batch_size=size, verbose=0) for size in (1, 7, 64)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    output = cvae((image, one_hot))
    noise = ((output.latent[0] - output.posterior.mean()) / output.posterior.stddev()).numpy()
    assert len(np.unique(noise[:, 0])) == len(np.unique(image, axis=0)) > 100
    # It is standard normal noise, and does not go with the ink.
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise[:, 0], image.sum(axis=(1, 2, 3)))[0, 1]) < 4 / np.sqrt(len(image))


@pytest.mark.parametrize("batch_size", [1, 20])
def test_predict_is_the_reconstruction_at_the_posterior_mean(batch, batch_size):
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16, num_samples=3)
    image, one_hot = batch[0][:20], batch[1][:20]
    predicted = cvae.predict((image, one_hot), batch_size=batch_size, verbose=0)
    np.testing.assert_allclose(predicted, cvae.reconstruct(image, one_hot.argmax(axis=1)), rtol=1e-5)


def test_the_output_as_a_tensor_is_the_mean_image(batch):
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16, num_samples=3)
    output = cvae(batch)
    np.testing.assert_allclose(tf.convert_to_tensor(output), np.mean(output.likelihood.mean(), axis=0), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(output), tf.convert_to_tensor(output))
    assert np.asarray(output, np.float64).dtype == np.float64
    for convert in (tf.convert_to_tensor, tf.function(tf.convert_to_tensor, autograph=False)):
        converted = (
            convert(output, tf.float64)
            if convert is tf.convert_to_tensor
            else tf.function(lambda: tf.convert_to_tensor(cvae(batch), tf.float64))()
        )
        assert (converted.shape, converted.dtype) == (batch[0].shape, tf.float64)
    with pytest.raises(TypeError, match="output: expected a floating dtype for the mean image, got int32"):
        tf.convert_to_tensor(output, tf.int32)
    assert (output.shape, output.dtype) == (batch[0].shape, tf.float32)


@pytest.mark.parametrize(("network", "num_classes"), [("mlp", 0), ("mlp", 3), ("residual", 3), ("conv", 3)])
def test_save_and_load(tmp_path, network, num_classes, dataset):
    prior = "label" if num_classes else "standard"
    cvae = build_cvae((8, 8, 1), num_classes, 4, network, width=8, depth=1, prior=prior, num_samples=2, seed=3)
    cvae.compile("adam", loss=NegativeELBO(kl_weight=0.5), metrics=[ELBO()])
    batches = dataset.test.batches(8, conditional=num_classes > 0)
    cvae.fit(batches, verbose=0)
    cvae.save(tmp_path / "cvae.keras")
    loaded = keras.models.load_model(tmp_path / "cvae.keras")
    assert (loaded.num_samples, loaded.seed, loaded.num_classes) == (2, 3, num_classes)
    assert loaded.evaluate(batches, verbose=0) == cvae.evaluate(batches, verbose=0)
    # It goes on as the original does, bit for bit.
    for model in (cvae, loaded):
        model.fit(batches, verbose=0)
    for one, other in zip(cvae.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_saving_in_another_format_is_refused_and_does_no_harm(tmp_path, cvae, batch):
    cvae.compile("adam", loss=NegativeELBO())
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "folder"))
    for save in (
        lambda: cvae.save(tmp_path / "folder"),
        lambda: cvae.save(tmp_path / "cvae.h5"),
        lambda: cvae.save(tmp_path / "cvae.keras", save_format="tf"),
        lambda: keras.models.save_model(cvae, tmp_path / "folder"),
        lambda: keras.models.save_model(cvae, str(tmp_path / "folder"), save_format="tf"),
        lambda: tf.saved_model.save(cvae, str(tmp_path / "folder")),
        lambda: cvae.export(str(tmp_path / "folder")),
        lambda: cvae.fit(batch, batch[0], callbacks=[checkpoint], verbose=0),
    ):
        with pytest.raises(
            ValueError, match=r"(filepath|callbacks: ModelCheckpoint): expected a name that ends in \.keras"
        ):
            save()
        cvae.fit(batch, batch[0], verbose=0)
    assert not list(tmp_path.rglob("*.pb"))
    assert not list(tmp_path.rglob("*.h5"))


def test_a_failed_save_leaves_the_earlier_file(tmp_path, cvae, batch, monkeypatch):
    path = tmp_path / "cvae.keras"
    cvae.save(path)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="which exists; pass overwrite=True"):
        cvae.save(path, overwrite=False)

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tf_keras.src.saving.saving_lib.zipfile.ZipFile.writestr", fail)
    with pytest.raises(OSError, match="No space left"):
        cvae.save(path)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["cvae.keras"]


def test_stock_callbacks(tmp_path, cvae, dataset):
    cvae.compile(keras.optimizers.Adam(1e-3), loss=NegativeIWAE(), metrics=[ELBO()])
    callbacks = [
        keras.callbacks.EarlyStopping("val_elbo", mode="max", patience=20),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"), monitor="val_elbo", mode="max"),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "best.weights.h5"), save_weights_only=True),
        keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.ReduceLROnPlateau(patience=1),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.TensorBoard(str(tmp_path / "tensorboard")),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_elbo"])),
    ]
    seen = []
    cvae.fit(
        dataset.train.batches(32),
        validation_data=dataset.validation.batches(8),
        epochs=3,
        callbacks=callbacks,
        verbose=0,
    )
    assert len(seen) == 3
    assert seen[-1] > seen[0]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert list((tmp_path / "tensorboard").rglob("events*"))
    loaded = keras.models.load_model(tmp_path / "3.keras")
    again = loaded.evaluate(dataset.validation.batches(8), verbose=0, return_dict=True)
    assert again["elbo"] == pytest.approx(seen[-1], rel=1e-6)
    cvae.load_weights(tmp_path / "best.weights.h5")


def test_ways_to_run(dataset):
    def train(**extra):
        keras.utils.set_random_seed(0)
        cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16)
        cvae.compile(keras.optimizers.Adam(1e-3), loss=NegativeELBO(), **extra)
        return cvae.fit(dataset.train.batches(32), epochs=2, verbose=0).history["loss"]

    expected = train()
    for options in ({"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}):
        np.testing.assert_allclose(train(**options), expected, rtol=1e-4, err_msg=str(options))


def test_a_mixture_of_classes_is_a_label(cvae, batch):
    image, one_hot = batch
    cvae.compile("adam", loss=NegativeELBO())
    history = cvae.fit((image, np.full_like(one_hot, 1 / 3)), image, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_values_out_of_range_in_a_dataset_are_refused(cvae, method):
    cvae.compile("adam", loss=NegativeELBO(), jit_compile=True)
    of_image = r"image: expected values in .0, 1.; divide grey values by 255\. Got"
    of_label = "one_hot: expected rows in .0, 1. that sum to 1; give one-hot rows"
    for case, x, message in (
        ("images of 2", (IMAGE + 2, ONE_HOT), of_image),
        ("grey images", (np.uint8(IMAGE + 255), ONE_HOT), of_image),
        ("images of NaN", (IMAGE - np.nan, ONE_HOT), r"image: expected values in .0, 1.\. Got"),
        ("images of -1", (IMAGE - 1, ONE_HOT), r"image: expected values in .0, 1.\. Got"),
        ("labels of NaN", (IMAGE, ONE_HOT - np.nan), of_label),
        ("integer labels of 2", (IMAGE, np.int32(2 * ONE_HOT)), of_label),
    ):
        found = "it is taken"
        try:
            getattr(cvae, method)(tf.data.Dataset.from_tensors((x, x[0])), verbose=0)
        except tf.errors.InvalidArgumentError as error:
            found = str(error)
        assert re.search(message, found), f"{case}: {found}"


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_target_that_was_not_divided_is_refused(cvae, method):
    cvae.compile("adam", loss=NegativeELBO())
    spoilt = tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), IMAGE + 255))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"y \(the image again\): expected values in .0, 1.; divide"
    ):
        getattr(cvae, method)(spoilt, verbose=0)
    # Which has no part in it.
    assert cvae.predict(spoilt, verbose=0).shape == IMAGE.shape


class Parts(keras.utils.Sequence):
    """Batches of 20, as Keras had them before `tf.data`."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch[0]) // 20

    def __getitem__(self, index):
        image, one_hot = (array[20 * index : 20 * (index + 1)] for array in self.batch)
        return (image, one_hot), image


def test_other_sources_of_batches_are_as_arrays(cvae, batch):
    """Of generators, and of some data sets, the shapes are not known before they come."""
    batch = tuple(array[:180] for array in batch)
    cvae.compile(keras.optimizers.Adam(0.0), loss=NegativeELBO(), metrics=[ELBO()])
    of_arrays = cvae.evaluate(batch, batch[0], batch_size=20, verbose=0)
    parts = Parts(batch)
    without_shapes = tf.data.Dataset.from_generator(
        lambda: (parts[index] for index in range(len(parts))), output_types=((tf.float32, tf.float32), tf.float32)
    )
    for source in (parts, without_shapes, (parts[index] for index in range(len(parts)))):
        np.testing.assert_allclose(cvae.evaluate(source, verbose=0), of_arrays, rtol=1e-5)
    for source in (parts, without_shapes, (parts[index] for index in range(len(parts)))):
        assert cvae.fit(source, verbose=0).history["elbo"][0] == pytest.approx(of_arrays[1], rel=0.05)


def test_numbers_of_other_kinds_are_as_float32(cvae, batch):
    cvae.compile("adam", loss=NegativeELBO(), metrics=[ELBO(), Distortion()])
    image, one_hot = batch[0][:20], batch[1][:20]
    expected = cvae.evaluate((image, one_hot), image, verbose=0)
    means = cvae.predict((image, one_hot), verbose=0)
    sources = []
    for kind in (bool, np.int64, np.float64):
        arrays = ((image.astype(kind), one_hot.astype(kind)), image.astype(kind))
        sources.append((f"arrays of {kind.__name__}", arrays))
        sources.append((f"a dataset of {kind.__name__}", [tf.data.Dataset.from_tensors(arrays)]))
    for case, given in sources:
        np.testing.assert_allclose(cvae.evaluate(*given, verbose=0), expected, rtol=1e-5, err_msg=case)
        np.testing.assert_allclose(cvae.predict(given[0], verbose=0), means, rtol=1e-5, err_msg=case)
    # When all is compared, as it changes the weights.
    for case, given in sources:
        assert np.isfinite(cvae.fit(*given, verbose=0).history["loss"]).all(), case


def test_positional_arguments_are_those_of_keras(cvae, batch):
    image = batch[0]
    cvae.compile("adam", loss=NegativeELBO(), metrics=[ELBO()])
    history = cvae.fit(batch, image, 16, 1, 0, None, 0.25).history
    assert "val_loss" in history
    twice = np.full(len(image), 2.0)
    loss, elbo = cvae.evaluate(batch, image, 16, 0, twice, None, [])
    assert loss == pytest.approx(-2 * elbo, rel=1e-4)
    assert len(cvae.predict(batch, 16, 0, 2)) == 32


def test_class_weight_is_refused(refusing, batch):
    """Keras would take pixels for classes."""
    with pytest.raises(ValueError, match=r"class_weight: expected None, as y is the image .* give sample_weight"):
        refusing.fit(batch, batch[0], class_weight={0: 1.0, 1: 5.0}, verbose=0)


def test_validation_data_is_checked_too(cvae):
    cvae.compile("adam", loss=NegativeELBO())
    spoilt = tf.data.Dataset.from_tensors(((IMAGE + 2, ONE_HOT), IMAGE))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image: expected values in"):
        cvae.fit((IMAGE, ONE_HOT), IMAGE, validation_data=spoilt, verbose=0)


def test_own_batches_that_are_changed_are_checked(cvae, dataset):
    """Those of the training split are left alone as they come, and not what is made of them."""
    cvae.compile("adam", loss=NegativeELBO())
    spoilt = dataset.train.batches(8).map(lambda x, y: ((2 * x[0], x[1]), y))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image: expected values in"):
        cvae.fit(spoilt, verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("kind", [iter, Parts])
def test_batches_of_generators_and_sequences_are_checked(cvae, batch, method, kind):
    """The first of them before anything is done; images in [-1, 1] would have a positive bound."""
    image, one_hot = (part[:40] for part in batch)
    cvae.compile("adam", loss=NegativeELBO())

    def source(inputs):
        return Parts(inputs) if kind is Parts else iter([Parts(inputs)[index] for index in range(2)])

    for inputs, message in (
        ((2 * image - 1, one_hot), r"image: expected values in \[0, 1\], got -1"),
        ((255 * image, one_hot), r"image: expected values in \[0, 1\], got 0.* divide grey values by 255"),
        ((image, 0 * one_hot), "one_hot: expected rows that sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(cvae, method)(source(inputs), verbose=0)


def test_labels_in_the_place_of_the_image_of_a_generator_are_refused():
    vae = build_cvae((8, 8, 1), 0, latent_size=2, width=8)
    vae.compile("adam", loss=NegativeELBO())
    labels = np.float32([0, 1, 1, 0, 1, 1])[:, None, None, None]
    with pytest.raises(ValueError, match=r"y \(the image again\): expected shape \[n, 8, 8, 1\], got \[6, 1, 1, 1\]"):
        vae.fit(((IMAGE, labels) for _ in range(2)), verbose=0)


@pytest.mark.parametrize("as_dataset", [False, True])
def test_labels_in_the_place_of_the_image_are_refused(cvae, as_dataset):
    cvae.compile("adam", loss=NegativeELBO())
    y = np.float32([0, 1, 1, 0, 1, 1])[:, None, None, None]
    dataset = tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), y))
    with pytest.raises(ValueError, match=r"y.*: expected"):
        cvae.fit(dataset, verbose=0) if as_dataset else cvae.fit((IMAGE, ONE_HOT), y, verbose=0)
    with pytest.raises(ValueError, match=r"one_hot: expected values in \[0, 1\]"):
        cvae.fit((IMAGE, ONE_HOT), IMAGE, validation_data=((IMAGE, NAN), IMAGE), verbose=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((IMAGE, NAN), r"one_hot: expected values in \[0, 1\], got nan to nan"),
        ((IMAGE, ONE_HOT[:, :2]), r"one_hot: expected shape \[n, 3\], got \[6, 2\]; cvae.one_hot\(label, n\) makes"),
        ((IMAGE, 2 * ONE_HOT), r"one_hot: expected values in \[0, 1\], got 0.0 to 2.0; give one-hot rows"),
        ((IMAGE, 0 * ONE_HOT), "one_hot: expected rows that sum to 1 .* got 0.0 in row 0"),
        ((IMAGE + 255, ONE_HOT), r"image: expected values in \[0, 1\], got 255.0 to 255.0; divide grey values by 255"),
        ((IMAGE - np.nan, ONE_HOT), r"image: expected values in \[0, 1\], got nan"),
        ((IMAGE[:, :4], ONE_HOT), r"image: expected shape \[n, 8, 8, 1\], got \[6, 4, 8, 1\]"),
        (IMAGE, r"inputs: expected \(image, one_hot\), so fit.* got 1 array in the place"),
        ({"image": IMAGE, "one_hot": ONE_HOT}, r"inputs: expected \(image, one_hot\), so fit.* got a dict"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_mistakes_in_fit(refusing, x, message, method):
    with pytest.raises(ValueError, match=message):
        getattr(refusing, method)(x, IMAGE, verbose=0)


NONE = "None; of images without label a SemiSupervisedCVAE takes rows of 0"
NO_ARRAY = r"expected an array \[batch, {}\], got {}"


@pytest.mark.parametrize(
    ("element", "error", "message"),
    [
        (((IMAGE, ONE_HOT[:, :2]), IMAGE), ValueError, r"one_hot: expected shape \[batch, 3\], got \[6, 2\]"),
        (((IMAGE[:, :4], ONE_HOT), IMAGE), ValueError, r"image: expected shape \[batch, 8, 8, 1\], got \[6, 4, 8, 1\]"),
        (((IMAGE[0], ONE_HOT[0]), IMAGE[0]), ValueError, r"image: expected shape .* got \[8, 8, 1\]; batch it"),
        ((IMAGE, IMAGE), ValueError, "inputs: expected .* got 1 array in the place of the inputs"),
        (((IMAGE, ONE_HOT, ONE_HOT), IMAGE), ValueError, "inputs: expected .* got 3 arrays in the place of the inputs"),
        (({"image": IMAGE, "one_hot": ONE_HOT}, IMAGE), ValueError, "inputs: .* got a dict in the place of the inputs"),
        (
            ((IMAGE, None), IMAGE),
            ValueError,
            "one_hot: " + NO_ARRAY.format(3, NONE),
        ),
        (((IMAGE, (ONE_HOT,)), IMAGE), ValueError, "one_hot: " + NO_ARRAY.format(3, "a tuple of arrays")),
        ((({"a": IMAGE}, ONE_HOT), IMAGE), ValueError, "image: " + NO_ARRAY.format("8, 8, 1", "a dict of arrays")),
        (((IMAGE.astype(str), ONE_HOT), IMAGE), TypeError, "image: expected numbers, got dtype string"),
        (
            ((IMAGE, tf.sparse.from_dense(ONE_HOT)), IMAGE),
            TypeError,
            "one_hot: expected a tensor, .*; use tf.sparse.to_d.*",
        ),
    ],
)
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_dataset_of_other_inputs(refusing, element, error, message, method):
    """Refused for what it says of itself, before a step is traced, in which Keras would tell it on thirty lines."""
    with pytest.raises(error, match=f"^{message}$"):
        getattr(refusing, method)(tf.data.Dataset.from_tensors(element), verbose=0)


def test_other_data_sets_of_other_inputs(refusing, dataset):
    expected = "inputs: expected .* got 1 array in the place of the inputs$"
    without_label = dataset.train.batches(32, conditional=False)
    with pytest.raises(ValueError, match=expected):
        refusing.fit(without_label, verbose=0)
    with pytest.raises(ValueError, match=expected):
        refusing.fit((IMAGE, ONE_HOT), IMAGE, validation_data=without_label, verbose=0)
    plain = build_cvae((8, 8, 1), 0, latent_size=2, width=8)
    plain.compile("adam", loss=NegativeELBO())
    with pytest.raises(ValueError, match=r"inputs: expected image alone, as num_classes is 0, .* got 2 arrays in the"):
        plain.evaluate(dataset.train.batches(32), verbose=0)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ((IMAGE, None), ValueError, "one_hot: " + NO_ARRAY.format(3, NONE)),
        (((IMAGE,), ONE_HOT), ValueError, "image: " + NO_ARRAY.format("8, 8, 1", "a tuple of arrays")),
        (({"a": IMAGE}, ONE_HOT), ValueError, "image: " + NO_ARRAY.format("8, 8, 1", "a dict of arrays")),
        ((IMAGE[0], ONE_HOT), ValueError, r"image: expected shape \[n, 8, 8, 1\], got \[8, 8, 1\]; batch it"),
        ((IMAGE.astype(str), ONE_HOT), TypeError, "image: expected numbers, got dtype <U32"),
        ((IMAGE, ONE_HOT.astype(object)), TypeError, "one_hot: expected numbers, got dtype object"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_other_arrays(refusing, x, error, message, method):
    with pytest.raises(error, match=f"^{message}$"):
        getattr(refusing, method)(x, **({} if method == "predict" else {"y": IMAGE}), verbose=0)


def test_inputs_that_keras_takes_in_other_forms(cvae):
    cvae.compile("adam", loss=NegativeELBO())
    inputs = (IMAGE, ONE_HOT)
    expected = cvae.evaluate(inputs, IMAGE, verbose=0)
    unknown = tf.data.Dataset.from_generator(
        lambda: iter([(inputs, IMAGE)]), output_types=((tf.float32, tf.float32), tf.float32)
    )
    named = collections.namedtuple("Named", "image one_hot")
    for data in (
        unknown,
        tf.data.Dataset.from_tensors((named(*inputs), IMAGE)),
        tf.data.Dataset.from_tensors((inputs, IMAGE, None)),
        tf.data.Dataset.from_tensors(((tf.cast(IMAGE, tf.uint8), tf.cast(ONE_HOT, tf.int64)), IMAGE)),
    ):
        assert cvae.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-5)
    predicted = cvae.predict(inputs, verbose=0)
    np.testing.assert_allclose(
        cvae.predict(tf.data.Dataset.from_tensors((inputs, None)), verbose=0), predicted, atol=1e-6
    )
    for nothing in ((), []):
        cvae.fit(inputs, IMAGE, validation_data=nothing, verbose=0)
    plain = build_cvae((8, 8, 1), 0, latent_size=2, width=8)
    plain.compile("adam", loss=NegativeELBO())
    of_one = tf.data.Dataset.from_tensors(((IMAGE,), IMAGE))
    assert plain.evaluate(of_one, verbose=0) == pytest.approx(plain.evaluate(IMAGE, IMAGE, verbose=0), rel=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (np.argmax(ONE_HOT, axis=-1), ValueError, r"expected shape \[batch, 8, 8, 1\], got \[6\]"),
        (ONE_HOT, ValueError, r"expected shape \[batch, 8, 8, 1\], got \[6, 3\]"),
        (IMAGE.astype(str), TypeError, "expected numbers, got dtype string"),
        (tf.sparse.from_dense(IMAGE), TypeError, "expected a tensor, got SparseTensorSpec.*; use tf.sparse.to_dense"),
    ],
)
def test_a_dataset_of_other_targets(refusing, target, error, message, method):
    with pytest.raises(error, match=rf"^y \(the image again\): {message}$"):
        getattr(refusing, method)(tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), target)), verbose=0)


def test_the_label_is_missing_in_a_call(cvae):
    with pytest.raises(ValueError, match=f"one_hot: {NO_ARRAY.format(3, NONE)}"):
        cvae((IMAGE, None))


class OfDict(CVAE):
    def call(self, inputs, training=False):
        return super().call((inputs["picture"], inputs["condition"]), training)


class OfThree(CVAE):
    def call(self, inputs, training=False):
        return super().call(inputs[:2], training)


class OfLabels(CVAE):
    def call(self, inputs, training=False):
        image, label = inputs
        return super().call((image, tf.one_hot(label, 3)), training)


class StepsOfLabels(CVAE):
    def train_step(self, data):
        return super().train_step(self._with_one_hot(*data))

    def test_step(self, data):
        return super().test_step(self._with_one_hot(*data))

    def predict_step(self, data):
        return super().predict_step(self._with_one_hot(*data))

    @staticmethod
    def _with_one_hot(image, label):
        return (image, tf.one_hot(label, 3)), image


LABEL = np.argmax(ONE_HOT, axis=-1)


@pytest.mark.parametrize(
    ("kind", "x", "y"),
    [
        (OfDict, {"picture": IMAGE, "condition": ONE_HOT}, IMAGE),
        (OfThree, (IMAGE, ONE_HOT, ONE_HOT), IMAGE),
        (OfLabels, (IMAGE, LABEL), IMAGE),
        (StepsOfLabels, IMAGE, LABEL),
    ],
)
def test_a_subclass_with_inputs_of_its_own(cvae, kind, x, y):
    cvae.compile(keras.optimizers.SGD(0.0), loss=NegativeELBO())
    expected = cvae.evaluate((IMAGE, ONE_HOT), IMAGE, verbose=0)
    model = kind(cvae.encoder, cvae.decoder, cvae.prior_network)
    model.compile(keras.optimizers.SGD(0.0), loss=NegativeELBO())
    dataset = tf.data.Dataset.from_tensors((x, y))
    for data in ((x, y), (dataset,)):
        assert model.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-5)
        history = model.fit(*data, validation_data=dataset, verbose=0).history
        assert history["val_loss"] == pytest.approx([expected], rel=1e-5)
    if kind is StepsOfLabels:
        of_one_hot = cvae.predict((IMAGE, ONE_HOT), verbose=0)
        np.testing.assert_allclose(model.predict(dataset, verbose=0), of_one_hot, atol=1e-6)


class PassedOn(CVAE):
    def train_step(self, data):
        return super().train_step(data)

    def predict_step(self, data):
        return super().predict_step(data)


def test_a_subclass_with_the_inputs_of_the_package(cvae):
    """Its images are checked all the same, and where the step is Keras's, everything."""
    model = PassedOn(cvae.encoder, cvae.decoder, cvae.prior_network)
    model.compile("adam", loss=NegativeELBO())
    good, grey = (tf.data.Dataset.from_tensors(((IMAGE + grey, ONE_HOT), IMAGE + grey)) for grey in (0, 255))
    for method in ("fit", "evaluate", "predict"):
        getattr(model, method)(good, verbose=0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="image: expected values in"):
            getattr(model, method)(grey, verbose=0)
        with pytest.raises(ValueError, match=r"^image: expected values in \[0, 1\], got 255.0 to 255.0"):
            getattr(model, method)((IMAGE + 255, ONE_HOT), **({} if method == "predict" else {"y": IMAGE}), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"again.*: expected values in"):
        model.fit(tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), IMAGE + 255)), verbose=0)
    for wrong, message in ((((IMAGE, ONE_HOT),), "got no target"), ((IMAGE, IMAGE), "got 1 array in the place")):
        with pytest.raises(ValueError, match=message):
            model.evaluate(tf.data.Dataset.from_tensors(wrong), verbose=0)


@pytest.mark.parametrize("as_sequence", [False, True])
def test_lists_of_numbers_in_the_batches_of_a_generator(cvae, as_sequence):
    cvae.compile("adam", loss=NegativeELBO())
    expected = cvae.evaluate((IMAGE, ONE_HOT), IMAGE, verbose=0)
    batch = ((IMAGE, ONE_HOT.tolist()), IMAGE)

    class One(keras.utils.Sequence):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return batch

    assert cvae.evaluate(One() if as_sequence else iter([batch]), verbose=0) == pytest.approx(expected, rel=1e-5)


def test_arrays_in_variables_are_checked(cvae, tmp_path):
    cvae.compile("adam", loss=NegativeELBO())
    good, grey = ((tf.Variable(image), tf.Variable(ONE_HOT)) for image in (IMAGE, IMAGE + 255))
    message = r"image: expected values in \[0, 1\], got 255.0 to 255.0; divide grey values by 255"
    for call in (cvae.fit, cvae.evaluate):
        with pytest.raises(ValueError, match=message):
            call(grey, tf.Variable(IMAGE), verbose=0)
        with pytest.raises(ValueError, match=r"y: expected the image again, .* got None"):
            call(good, verbose=0)
    with pytest.raises(ValueError, match=message):
        cvae.predict(grey, verbose=0)
    plain = build_cvae((8, 8, 1), 0, latent_size=2, width=8)
    plain.compile("adam", loss=NegativeELBO())
    with pytest.raises(ValueError, match="shuffle: expected False for arrays or a Sequence beside Backup without"):
        plain.fit(good[0], good[0], callbacks=[Backup(tmp_path)], verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_what_is_no_callback_is_refused(refusing, method):
    arguments = ((IMAGE, ONE_HOT),) if method == "predict" else ((IMAGE, ONE_HOT), IMAGE)
    for wrong, message in (
        (
            keras.callbacks.TerminateOnNaN,
            r"an instance, got the class TerminateOnNaN; add parentheses: TerminateOnNaN\(\)",
        ),
        (print, "callbacks of tf_keras, got <built-in function print>"),
    ):
        with pytest.raises(TypeError, match=f"^callbacks: expected {message}$"):
            getattr(refusing, method)(*arguments, callbacks=[wrong], verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_callbacks_of_keras_3_are_refused(refusing, method):
    arguments = ((IMAGE, ONE_HOT),) if method == "predict" else ((IMAGE, ONE_HOT), IMAGE)
    with pytest.raises(
        TypeError, match=r"expected callbacks of tf_keras, got keras.*use tf_keras.callbacks.TerminateOnNaN"
    ):
        getattr(refusing, method)(*arguments, callbacks=[keras_3.callbacks.TerminateOnNaN()], verbose=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"label": 3}, ValueError, "label: expected 0 to 2, got 3"),
        ({"label": [0, -1]}, ValueError, "label: expected 0 to 2, got -1"),
        ({"label": None}, ValueError, "label: expected 0 to 2, got None"),
        ({"label": 1.0}, TypeError, "label: expected an integer or a list of integers, got 1.0"),
        ({"label": []}, TypeError, "label: expected an integer"),
        ({"label": [[1]]}, ValueError, r"label: expected an integer or \[n\] integers, n >= 1, got shape \[1, 1\]"),
        ({"label": [[1], [1, 2]]}, ValueError, "label: expected an array, or lists of the same length in lists"),
        ({"label": 1, "seed": "a"}, TypeError, "seed: expected an integer or a list of integers, got 'a'"),
        ({"label": [1, 1], "seed": [1, 2, 3]}, ValueError, r"expected one of each for each image, got \[2, 3\]"),
    ],
)
def test_mistakes_in_generate(refusing, arguments, error, message):
    with pytest.raises(error, match=message):
        refusing.generate(**arguments)


@pytest.mark.parametrize(
    ("name", "call", "given"),
    [
        ("label", lambda cvae, label: cvae.generate(label, 0), [0, 1]),
        ("seed", lambda cvae, seed: cvae.generate(0, seed), [0, 1]),
        ("image", lambda cvae, image: cvae.reconstruct(image, 0), IMAGE),
        ("latent", lambda cvae, latent: cvae.decode(latent, 0), np.zeros((2, 4), np.float32)),
    ],
)
def test_tensors_of_a_graph_are_no_numbers(refusing, name, call, given):
    with pytest.raises(TypeError, match=f"{name}: expected numbers, got a symbolic tensor; call this outside of"):
        tf.function(lambda tensor: call(refusing, tensor), autograph=False)(tf.constant(given))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latent_size": 0}, ValueError, "latent_size: expected an integer >= 1, got 0"),
        ({"network": "gan"}, ValueError, "network: expected one of mlp, residual, conv, got 'gan'"),
        ({"prior": "label", "num_classes": 0}, ValueError, "prior: expected standard for a model without classes"),
        ({"prior": "vamp"}, ValueError, "prior: expected one of standard, label, flow, got 'vamp'"),
        ({"num_classes": -1}, ValueError, "num_classes: expected an integer >= 0, got -1"),
        ({"image_shape": (28, 28)}, ValueError, r"image_shape: expected \(height, width, channels\), got \(28, 28\)"),
        ({"seed": 2**31}, ValueError, "seed: expected an integer >= 0 and < 2147483648, got 2147483648"),
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer >= 1, got 0"),
        ({"width": 2.0}, TypeError, "width: expected an integer >= 1, got 2.0"),
    ],
)
def test_mistakes_in_build_cvae(arguments, error, message):
    with pytest.raises(error, match=message):
        build_cvae(**{"image_shape": (8, 8, 1), "num_classes": 3, **arguments})


def test_networks_that_do_not_fit():
    encoder, decoder = custom_networks()
    with pytest.raises(TypeError, match="encoder: expected a functional Keras model"):
        CVAE(keras.layers.Dense(3), decoder)
    with pytest.raises(TypeError, match="decoder: expected a functional Keras model"):
        CVAE(encoder, keras_3.Sequential())
    with pytest.raises(ValueError, match="encoder: number of classes: expected 4, as of the other networks, got 3"):
        CVAE(encoder, custom_networks(4)[1])
    for one, other, message in (
        (
            custom_networks(latent_size=5)[0],
            decoder,
            "encoder: latent size: expected 2, as of the other networks, got 5",
        ),
        (encoder, custom_networks(decoded=(4, 16, 1))[1], r"decoder: image shape: expected \(8, 8, 1\)"),
        (encoder, custom_networks(decoded=(8, 8, 3))[1], r"decoder: image shape: expected \(8, 8, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            CVAE(one, other)
    with pytest.raises(ValueError, match="prior: number of classes: expected 3, as of the other networks, got 4"):
        CVAE(encoder, decoder, label_prior(4, 2))
    with pytest.raises(ValueError, match="prior: latent size: expected 2, as of the other networks, got 1"):
        CVAE(encoder, decoder, label_prior(3, 1))
    for layer, size, expected in (
        (MultivariateNormalDiag(3), 10, 6),
        (IndependentBernoulli((8, 8, 1)), 128, 64),
        (IndependentBernoulli((8, 8, 1)), 32, 64),
        (OneHotCategorical(3), 5, 3),
    ):
        with pytest.raises(ValueError, match=f"params: expected {expected} for each distribution of .*, got {size}"):
            layer(np.zeros((4, size), np.float32))
    with pytest.raises(TypeError, match="encoder: expected an output of the layer MultivariateNormalDiag"):
        CVAE(keras.Model(encoder.inputs, keras.layers.Dense(2)(encoder.layers[-2].output)), decoder)
    with pytest.raises(TypeError, match="decoder: expected an output of the layer IndependentBernoulli"):
        CVAE(encoder, keras.Model(decoder.inputs, decoder.layers[-2].output))
    two = [encoder.layers[-2].output, encoder.output]
    with pytest.raises(ValueError, match="encoder: expected one output, of the layer MultivariateNormalDiag, got 2"):
        CVAE(keras.Model(encoder.inputs, two), decoder)
    vector = keras.Input((64,))
    flat = keras.Model(vector, MultivariateNormalDiag(2)(keras.layers.Dense(4)(vector)))
    with pytest.raises(ValueError, match=r"encoder: expected images \[height, width, channels\], got \[64\]"):
        CVAE(flat, decoder)
    square = keras.Input((2, 1))
    bright = IndependentBernoulli((8, 8, 1))(keras.layers.Dense(64)(keras.layers.Flatten()(square)))
    with pytest.raises(ValueError, match=r"decoder: expected latent \[size\], got \[2, 1\]; reshape them"):
        CVAE(encoder, keras.Model(square, bright))
    one_hot, more = keras.Input((3,)), keras.Input((3,))
    both = MultivariateNormalDiag(2)(keras.layers.Dense(4)(keras.layers.Add()([one_hot, more])))
    with pytest.raises(ValueError, match=r"prior: expected the inputs one_hot of known shape, got \[\(3,\), \(3,\)\]"):
        CVAE(encoder, decoder, keras.Model([one_hot, more], both))


def test_the_output_counts_and_not_the_last_layer(batch):
    """It may be that of a network inside, or have a loss that was added to it."""
    encoder, decoder = custom_networks()
    image, one_hot = keras.Input((8, 8, 1)), keras.Input((3,))
    outer = keras.Model([image, one_hot], encoder([image, one_hot]))
    outer.add_loss(1000 + tf.reduce_mean(image))
    model = CVAE(outer, decoder)
    model.compile("adam", NegativeELBO(), metrics=[ELBO()])
    found = model.evaluate(batch, batch[0], batch_size=len(batch[0]), verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"] + found["elbo"], 1000 + batch[0].mean(), rtol=1e-5)
    np.testing.assert_array_equal(model.posterior(*batch).mean(), encoder(list(batch)).mean())


@keras.saving.register_keras_serializable("test_model")
class WithCompileOfItsOwn(CVAE):
    def compile(self, weight, **kwargs):
        super().compile("adam", NegativeELBO(kl_weight=weight), **kwargs)


def test_a_subclass_may_compile_in_its_own_way(tmp_path, batch):
    model = WithCompileOfItsOwn(*custom_networks())
    model.compile(0.5)
    model.fit(batch, batch[0], verbose=0)
    model.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras")
    assert loaded.loss.get_config()["kl_weight"] == 0.5
    for each in (model, loaded):
        each.fit(batch, batch[0], shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_metrics_of_another_kind_are_refused(refusing, argument):
    with pytest.raises(TypeError, match=r"metrics: expected one of tf_keras, got keras.*MeanSquaredError; tf.keras"):
        refusing.compile("adam", NegativeELBO(), **{argument: [keras_3.metrics.MeanSquaredError()]})
    with pytest.raises(
        TypeError, match=r"metrics: expected an instance, got the class ELBO; add parentheses: ELBO\(\)"
    ):
        refusing.compile("adam", NegativeELBO(), **{argument: [ELBO]})
    with pytest.raises(
        ValueError, match=r"metrics: expected .*, got 'accuracy', which would be that of pixels; tfp_cvae"
    ):
        refusing.compile("adam", NegativeELBO(), **{argument: ["accuracy"]})


class Loader(keras.utils.Sequence):
    """With attributes of names that data sets of this package have, too."""

    def __init__(self, batch):
        self.train, self.batches, self.batch = True, 1, batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch, self.batch[0]


def test_a_sequence_goes_to_another_process_without_the_model(batch):
    """Which Keras spawns for `use_multiprocessing` on some systems, and would wait for without end."""
    sent = pickle.loads(pickle.dumps(CheckedSequence(Loader(batch), lambda given: given)))
    assert isinstance(sent, Loader)
    np.testing.assert_array_equal(sent[0][1], batch[0])


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([1, 1, 1, np.nan, 1, 1], ValueError, "sample_weight: expected finite numbers >= 0, got nan"),
        ([1, 1, np.inf, 1, 1, 1], ValueError, "sample_weight: expected finite numbers >= 0, got inf"),
        ([1, 1, 1, 1, 1, -2], ValueError, "sample_weight: expected finite numbers >= 0, got -2"),
        (["1"] * 6, TypeError, "sample_weight: expected numbers, got dtype <U1"),
    ],
)
def test_weights_that_cannot_be(refusing, weight, error, message):
    x, weight = (IMAGE, ONE_HOT), np.array(weight)
    for call in (
        lambda: refusing.fit(x, IMAGE, sample_weight=weight, verbose=0),
        lambda: refusing.evaluate(x, IMAGE, sample_weight=weight, verbose=0),
        lambda: refusing.fit(x, IMAGE, validation_data=(x, IMAGE, weight), verbose=0),
        lambda: refusing.fit(iter([(x, IMAGE, weight)]), verbose=0),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0])
def test_weights_in_a_dataset_that_cannot_be(cvae, weight):
    cvae.compile("adam", NegativeELBO())
    weights = cvae.get_weights()
    for good in (1.0, 0.0):
        cvae.fit(tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), IMAGE, np.full(6, good, np.float32))), verbose=0)
    assert np.any(cvae.get_weights()[0] != weights[0])
    bad = np.float32([1, 1, 1, 1, 1, weight])
    with pytest.raises(tf.errors.InvalidArgumentError, match="sample_weight: expected finite values >= 0"):
        cvae.fit(tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), IMAGE, bad)), verbose=0)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (tf.ones(6, tf.bfloat16), None, None),
        (np.ones(6), None, None),
        (np.ones((6, 1), int), None, None),
        ((np.ones(6),), TypeError, "sample_weight: expected a tensor, got"),
        ({"a": np.ones(6)}, TypeError, "sample_weight: expected a tensor, got"),
        (tf.ragged.constant([[1.0]] * 6), TypeError, "sample_weight: expected a tensor, got"),
        (["1"] * 6, TypeError, "sample_weight: expected numbers, got dtype string"),
        (np.ones(6, np.complex64), TypeError, "sample_weight: expected numbers, got dtype complex64"),
        (np.ones((6, 8, 8, 1)), ValueError, r"sample_weight: expected shape \[batch\], got \[6, 8, 8, 1\]"),
    ],
)
def test_forms_of_weights_in_a_dataset(cvae, weight, error, message):
    cvae.compile("adam", NegativeELBO())
    data = tf.data.Dataset.from_tensors(((IMAGE, ONE_HOT), IMAGE, weight))
    for call in (cvae.fit, cvae.evaluate, lambda data, verbose: cvae.fit(data, validation_data=data, verbose=verbose)):
        with pytest.raises(error, match=message) if error else contextlib.nullcontext():
            call(data, verbose=0)


def test_weights_of_any_kind_of_number(cvae):
    cvae.compile("adam", NegativeELBO())
    expected = cvae.evaluate((IMAGE, ONE_HOT), IMAGE, verbose=0) / 2
    weight = np.array([1, 0, 0, 1, 1, 0])
    found = [
        cvae.evaluate((IMAGE, ONE_HOT), IMAGE, sample_weight=given, verbose=0)
        for given in (tf.cast(weight, tf.bfloat16), weight.astype(bool), weight, weight.astype(np.float64))
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)
    assert 0.5 * expected < found[0] < 1.5 * expected


def test_a_sequence_may_have_attributes_of_any_name(cvae, batch):
    cvae.compile("adam", NegativeELBO())
    assert np.isfinite(cvae.fit(Loader(batch), verbose=0).history["loss"][0])


def test_parameters_of_unknown_number():
    """Of a layer of one's own that does not tell; TensorFlow looks at it when they come."""
    layer = IndependentBernoulli((8, 8, 1))
    sized = tf.function(lambda params: layer(params).mean(), input_signature=[tf.TensorSpec([None, None])])
    assert sized(np.zeros((4, 64), np.float32)).shape == (4, 8, 8, 1)


def test_weights_are_told_apart_whatever_their_kind():
    def digest(*weights):
        return weights_sha256(types.SimpleNamespace(get_weights=lambda: [weight.numpy() for weight in weights]))

    assert digest(tf.ones(3)) == hashlib.sha256(np.ones(3, np.float32).tobytes()).hexdigest()
    assert digest(tf.ones(3, tf.bfloat16)) not in (digest(tf.ones(3)), digest(tf.zeros(3, tf.bfloat16)))


def test_networks_that_share_a_layer_are_refused():
    """Keras saves such a model without a word, and cannot load it."""
    embedding = keras.layers.Dense(5, name="embedding")
    (image, one_hot), (latent, other) = custom_networks()[0].inputs, custom_networks()[1].inputs
    join, flat = keras.layers.Concatenate(), keras.layers.Flatten()(image)
    params = keras.layers.Dense(4)(join([flat, embedding(one_hot)]))
    encoder = keras.Model([image, one_hot], MultivariateNormalDiag(2)(params))
    logits = keras.layers.Dense(64)(join([latent, embedding(other)]))
    decoder = keras.Model([latent, other], IndependentBernoulli((8, 8, 1))(logits))
    with pytest.raises(
        ValueError, match=r"decoder: expected layers of its own, got one with the weight 'embedding/kernel"
    ):
        CVAE(encoder, decoder)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse", keras.losses.BinaryCrossentropy(), keras.losses.mse])
def test_a_loss_of_keras_is_refused(refusing, loss):
    with pytest.raises(
        ValueError, match=r"loss: expected tfp_cvae.NegativeELBO\(\) or NegativeIWAE\(\), got .* knows nothing"
    ):
        refusing.compile("adam", loss)


def test_a_loss_of_ones_own(cvae, batch):
    image, one_hot = batch
    cvae.compile("adam", lambda image, output: -tf.reduce_mean(output.likelihood.log_prob(image), axis=0))
    assert np.isfinite(cvae.evaluate((image, one_hot), image, verbose=0))


def test_an_optimizer_of_keras_3_is_refused(refusing):
    with pytest.raises(
        TypeError, match=r"optimizer: expected one of tf_keras, got keras.* use tf_keras.optimizers.Adam"
    ):
        refusing.compile(tf.keras.optimizers.Adam(), NegativeELBO())


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping("val_elbo"),
        keras.callbacks.ModelCheckpoint("best.keras", "val_elbo", mode="min"),
        keras.callbacks.ReduceLROnPlateau("elbo"),
    ],
)
def test_a_callback_that_would_minimise_the_bound_is_refused(refusing, dataset, callback):
    with pytest.raises(
        ValueError, match=r'callbacks: expected mode="max" of \w+, as (val_)?elbo is to rise, got "min"'
    ):
        refusing.fit(dataset.train.batches(24), callbacks=[callback])


@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_a_bound_of_another_name_is_not_minimised_either(cvae, dataset, argument):
    batches = dataset.train.batches(24)
    cvae.compile("adam", NegativeELBO(), **{argument: [ELBO(name="bound"), Rate()]})
    for monitor in ("bound", "val_bound"):
        with pytest.raises(ValueError, match=rf'expected mode="max" of EarlyStopping, as {monitor} is to rise, got'):
            cvae.fit(batches, callbacks=[keras.callbacks.EarlyStopping(monitor)], verbose=0)
    fine = [keras.callbacks.EarlyStopping("bound", mode="max"), keras.callbacks.EarlyStopping("rate")]
    cvae.fit(batches, callbacks=fine, verbose=0)
    # The names are those of the last `compile`.
    cvae.compile("adam", NegativeELBO(), metrics=[Rate(name="bound")])
    cvae.fit(batches, callbacks=[keras.callbacks.EarlyStopping("bound")], verbose=0)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_batches_without_the_target_are_refused(batch, num_classes):
    """Keras would leave out the loss, and report 0."""
    model = build_cvae((8, 8, 1), num_classes, latent_size=2, width=8)
    model.compile("adam", loss=NegativeELBO(), metrics=[ELBO()])
    x = batch if num_classes else batch[0]
    data = tf.data.Dataset.from_tensor_slices((x,) if num_classes else x).batch(50)
    of_none = tf.data.Dataset.from_tensors((x, None))
    message = r"y: expected batches \(\(image, one_hot\), image\), or \(image, image\) without classes, got no target"
    for call in (
        lambda: model.fit(data, verbose=0),
        lambda: model.evaluate(data, verbose=0),
        lambda: model.evaluate(of_none, verbose=0),
        lambda: model.fit(x, batch[0], validation_data=data, verbose=0),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert model.predict(data, verbose=0).shape == batch[0].shape


@pytest.mark.parametrize(("name", "value"), [("num_samples", 7), ("seed", 5)])
def test_a_setting_that_is_changed_takes_effect(cvae, batch, name, value):
    """As of a model that was made with it, whose steps were not traced before."""
    cvae.compile(keras.optimizers.SGD(0.0), loss=NegativeIWAE(), metrics=[ELBO()])

    def measured(model):
        trained = model.fit(batch, batch[0], shuffle=False, verbose=0).history
        return [*model.evaluate(batch, batch[0], verbose=0), *trained["loss"]]

    before = measured(cvae)
    setattr(cvae, name, value)
    cvae.step.assign(0)
    fresh = CVAE.from_config({**cvae.get_config(), name: value})
    fresh.set_weights(cvae.get_weights())
    fresh.compile(keras.optimizers.SGD(0.0), loss=NegativeIWAE(), metrics=[ELBO()])
    assert measured(cvae) == measured(fresh) != before
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        setattr(cvae, name, 1.5)


def test_a_setting_of_a_model_that_predicts_without_compile(cvae, batch):
    before = cvae.predict(batch, verbose=0)
    cvae.seed = 1
    np.testing.assert_array_equal(cvae.predict(batch, verbose=0), before)


def test_a_split_is_not_batches(refusing, dataset):
    with pytest.raises(
        TypeError, match=r"x: expected batches, got Split.* use its method batches, as in batches\(128\)"
    ):
        refusing.fit(dataset.train)
    with pytest.raises(TypeError, match=r"x: expected batches, got .* use train.batches\(128\)"):
        refusing.fit(dataset)


def test_a_schedule_that_does_not_tell_its_settings(cvae, dataset):
    """As of many a tutorial: Keras trains with it."""

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1e-3 / (1 + tf.cast(step, tf.float32))

    cvae.compile(keras.optimizers.Adam(Schedule()), NegativeELBO())
    cvae.fit(dataset.train.batches(24), verbose=0)
    with pytest.raises(TypeError, match=r"loss: expected an instance, got the class NegativeELBO; add .*: Neg.*\(\)"):
        cvae.compile("adam", NegativeELBO)
    with pytest.raises(
        TypeError, match=r"metrics: expected an instance, got the class ELBO; add parentheses: ELBO\(\)"
    ):
        cvae.compile("adam", NegativeELBO(), metrics=[ELBO])


@pytest.mark.parametrize("path", ["best.h5", "folder"])
def test_a_checkpoint_that_could_not_be_written_is_refused_before_the_training(refusing, dataset, path):
    begun = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=rf"callbacks: ModelCheckpoint: .* ends in .keras, .* got '{path}'; or pass"):
        refusing.fit(dataset.train.batches(24), callbacks=[begun, keras.callbacks.ModelCheckpoint(path)], verbose=0)


@pytest.mark.parametrize("one_hot", [None, np.array([0, 1])])
def test_integer_labels_are_not_one_hot(refusing, batch, one_hot):
    with pytest.raises(
        ValueError, match=r"one_hot: expected \[batch, 3\], one-hot rows, got .*cvae.one_hot\(label, batch\)"
    ):
        refusing.posterior(batch[0][:2], one_hot)


def test_more_than_one_loss_is_refused(refusing):
    for several in ([NegativeELBO()], [keras.losses.MeanSquaredError()], {"image": NegativeELBO()}):
        with pytest.raises(TypeError, match="loss: expected one loss, as the model has one output, got "):
            refusing.compile("adam", loss=several)


def test_after_an_interrupted_fit_the_next_one_validates_on_its_own_data(cvae, dataset):
    """Keras keeps the data of the validation until `fit` ends without an exception."""

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    train, first, second = (split.batches(8) for split in (dataset.train, dataset.validation, dataset.test))
    cvae.compile("sgd", loss=NegativeELBO())
    with pytest.raises(KeyboardInterrupt):
        cvae.fit(train, validation_data=first, callbacks=[Interrupt()], verbose=0)
    history = cvae.fit(train, validation_data=second, verbose=0).history
    assert history["val_loss"] == pytest.approx([cvae.evaluate(second, verbose=0)], rel=1e-6)
    assert history["val_loss"] != pytest.approx([cvae.evaluate(first, verbose=0)], rel=1e-6)


def test_the_prior_alone_may_know_the_label(dataset):
    keras.utils.set_random_seed(0)
    plain, labelled = (build_cvae((8, 8, 1), classes, latent_size=2, width=16) for classes in (0, 3))
    prior = build_cvae((8, 8, 1), 3, latent_size=2, width=16, prior="label").prior_network
    cvae = CVAE(plain.encoder, plain.decoder, prior)
    assert cvae.num_classes == labelled.num_classes
    cvae.compile(keras.optimizers.Adam(1e-2), loss=NegativeELBO(), metrics=[ELBO()])
    bounds = cvae.fit(dataset.train.batches(16), epochs=10, verbose=0, validation_data=dataset.validation.batches(8))
    assert bounds.history["val_elbo"][-1] > bounds.history["val_elbo"][0]
    # The classes are told apart where they are drawn from.
    means = cvae.prior(np.eye(3, dtype=np.float32)).mean().numpy()
    assert min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1
    assert cvae.generate([0, 1, 2], seed=0).shape == (3, 8, 8, 1)


@pytest.mark.parametrize("dtype", [np.int32, np.float64, bool])
def test_labels_and_latents_of_any_kind(cvae, batch, dtype):
    image, one_hot = batch[0][:3], batch[1][:3]
    expected = cvae.posterior(image, one_hot).mean()
    for given in (one_hot.astype(dtype), tf.constant(one_hot.astype(dtype))):
        np.testing.assert_array_equal(cvae.posterior(image, given).mean(), expected)
        found = cvae.likelihood(tf.cast(expected, tf.float64), given).mean()
        np.testing.assert_array_equal(found, cvae.likelihood(expected, one_hot).mean())
