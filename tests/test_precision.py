import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import small_cvae

from tfp_cvae import model_checks
from tfp_cvae.backup import Backup
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.config import EvaluationConfig, TrainConfig
from tfp_cvae.evaluation import evaluate_run
from tfp_cvae.export import export_saved_model
from tfp_cvae.layers import dtype_policy
from tfp_cvae.losses import ELBO, NegativeELBO, SemiSupervisedNegativeELBO
from tfp_cvae.recognition import train_classifier
from tfp_cvae.sources import load_dataset
from tfp_cvae.training import train

PRODUCTS = (keras.layers.Dense, keras.layers.Conv2D)
CASES = [("mlp", "label"), ("residual", "standard"), ("conv", "flow"), ("m2", "standard"), ("m1+m2", "standard")]


def product_dtypes(network):
    return {part.compute_dtype for part in network.submodules if isinstance(part, PRODUCTS)}


def built(policy, network, prior):
    keras.utils.set_random_seed(0)
    with dtype_policy(policy):
        if network in ("m2", "m1+m2"):
            return build_semi_supervised_cvae((8, 8, 1), 3, 4, width=16, stacked=network == "m1+m2", deformation=0.5)
        if prior == "flow":
            return small_cvae(network, prior)
        return build_cvae((8, 8, 1), 3, 4, network, width=16, prior=prior)


def compiled(policy, network, prior):
    cvae = built(policy, network, prior)
    loss = SemiSupervisedNegativeELBO() if network in ("m2", "m1+m2") else NegativeELBO()
    cvae.compile(keras.optimizers.Adam(1e-3), loss=loss, metrics=[ELBO()])
    return cvae


@pytest.mark.parametrize(("network", "prior"), CASES)
def test_bound_and_training_are_those_in_float32_up_to_rounding(network, prior, dataset):
    batches = dataset.train.batches(32, drop_remainder=True)
    found = {}
    for policy in ("float32", "mixed_bfloat16"):
        cvae = compiled(policy, network, prior)
        bounds = [cvae.evaluate(dataset.test.batches(16), verbose=0, return_dict=True)["elbo"]]
        losses = cvae.fit(batches, epochs=3, verbose=0).history["loss"]
        bounds.append(cvae.evaluate(dataset.test.batches(16), verbose=0, return_dict=True)["elbo"])
        found[policy] = np.array([*bounds, *losses])
        assert {weight.dtype for weight in cvae.trainable_variables} == {tf.float32}
        assert losses[-1] < losses[0]
    exact, rounded = found.values()
    np.testing.assert_allclose(rounded[0], exact[0], rtol=2e-3)
    np.testing.assert_allclose(rounded, exact, rtol=2e-2)
    # bfloat16 has 8 bits: if all numbers agreed to 6 digits, nothing would have been computed in it.
    assert np.abs(rounded / exact - 1).max() > 1e-6


@pytest.mark.parametrize(("network", "prior"), CASES)
def test_what_is_a_density_is_in_float32(network, prior, dataset):
    cvae = built("mixed_bfloat16", network, prior)
    image, one_hot = dataset.test.binarized()[:4], np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    posterior = cvae.posterior(image, one_hot)
    numbers = [posterior.mean(), cvae.prior(one_hot).log_prob(posterior.mean()), cvae.generate([0, 1], seed=0)]
    numbers.append(cvae.likelihood(posterior.mean(), one_hot).log_prob(image))
    assert [number.dtype for number in numbers] == [tf.float32] * 4
    # The policy holds for what is made in its scope alone.
    assert keras.mixed_precision.global_policy().name == "float32"
    assert product_dtypes(cvae.decoder) == {"bfloat16"}
    # The last layer but one makes the parameters of the distribution.
    assert product_dtypes(cvae.encoder) == {"bfloat16", "float32"}
    assert cvae.encoder.layers[-2].compute_dtype == "float32"
    if cvae.prior_network is not None:
        assert product_dtypes(cvae.prior_network) == {"float32"}


@pytest.mark.parametrize(("network", "prior"), [("conv", "flow"), ("m2", "standard")])
def test_save_load_and_serve(network, prior, dataset, tmp_path):
    cvae = compiled("mixed_bfloat16", network, prior)
    batches = dataset.test.batches(8)
    cvae.fit(batches, verbose=0)
    cvae.save(tmp_path / "cvae.keras")
    loaded = keras.models.load_model(tmp_path / "cvae.keras")
    served = tf.saved_model.load(str(export_saved_model(loaded, tmp_path / "served")))
    label, seed = np.array([0, 1, 2]), np.array([3, 4, 5])
    answer = served.signatures["generate"](label=tf.constant(label), seed=tf.constant(seed))["image"]
    np.testing.assert_array_equal(loaded.generate(label, seed), cvae.generate(label, seed))
    np.testing.assert_allclose(answer, cvae.generate(label, seed), atol=1e-2)
    # It goes on as the original does, bit for bit.
    for model in (cvae, loaded):
        model.fit(batches, verbose=0)
    for one, other in zip(cvae.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("quick_judge", "no_figures")
def test_train_and_evaluate(tmp_path, npz):
    settings = {"width": 16, "latent_size": 4, "prior": "label", "epochs": 2, "batch_size": 32, "ema_momentum": 0.9}
    config = TrainConfig(dataset=str(npz), precision="mixed_bfloat16", **settings)
    run = train(config, tmp_path / "run", verbose=0)
    history = run.history()
    assert history[-1]["val_elbo"] > history[0]["val_elbo"]
    assert model_checks.compute_dtypes(run.model()) == ["bfloat16", "float32"]
    small = EvaluationConfig(num_importance_samples=100, generated_per_class=2, num_classifier_images=20)
    # A policy of the user changes neither the model, which has its own, nor the judge.
    with dtype_policy("mixed_bfloat16"):
        evaluation = evaluate_run(run, load_dataset(npz), small)
    again = evaluate_run(run, load_dataset(npz), small)
    assert evaluation.log_p_x_given_y.mean >= evaluation.elbo.mean
    assert evaluation.protocol["products_per_second"] > 0
    measured = ("latents_per_second", "products_per_second", "likelihood_seconds", "seconds")
    for found in (evaluation, again):
        for name in measured:
            del found.protocol[name]
    assert evaluation.to_dict() == again.to_dict()


def test_the_judge_of_images_is_in_float32(dataset):
    images, labels = dataset.train.images / np.float32(255), dataset.train.labels
    with dtype_policy("mixed_bfloat16"):
        classifier = train_classifier(images, labels, 3, epochs=1, seed=0)
    assert model_checks.compute_dtypes(classifier) == ["float32"]


def test_networks_in_float16_need_scaling(dataset):
    """Without it, Keras would train them in silence, and small gradients would be zero."""
    cvae = built("mixed_float16", "mlp", "standard")
    with pytest.raises(ValueError, match=r"optimizer: expected tf_keras\.mixed_precision\.LossScaleOptimizer for"):
        cvae.compile("adam", loss=NegativeELBO())
    cvae.compile(keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(1e-2)), loss=NegativeELBO())
    losses = cvae.fit(dataset.train.batches(32, drop_remainder=True), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_backup_in_another_precision_is_not_gone_on_with(dataset, tmp_path):
    batches = dataset.train.batches(32, drop_remainder=True)
    compiled("mixed_bfloat16", "mlp", "label").fit(batches, callbacks=[Backup(tmp_path, batches)], verbose=0)
    with pytest.raises(ValueError, match=r"precision: expected \['bfloat16', 'float32'\] as of the training"):
        compiled("float32", "mlp", "label").fit(batches, epochs=2, callbacks=[Backup(tmp_path, batches)], verbose=0)


@pytest.mark.parametrize("before", [None, "mixed_bfloat16", "float64"])
def test_the_policy_is_as_it_was(before):
    try:
        keras.mixed_precision.set_global_policy(before)
        with dtype_policy("float16"):
            assert keras.mixed_precision.global_policy().name == "float16"
        assert keras.mixed_precision.global_policy().name == (before or "float32")
        # One that was not set follows `set_floatx`, still.
        keras.backend.set_floatx("float64")
        assert keras.mixed_precision.global_policy().name == (before or "float64")
    finally:
        keras.backend.set_floatx("float32")
        keras.mixed_precision.set_global_policy(None)
