import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.losses import NegativeELBO, SemiSupervisedNegativeELBO

NETWORKS = ["mlp", "residual", "conv"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("image_shape", "num_classes"), [((28, 28, 1), 10), ((9, 14, 3), 2), ((5, 3, 1), 0)])
def test_any_image_shape_and_number_of_classes(network, image_shape, num_classes):
    cvae = build_cvae(image_shape, num_classes, 3, network, width=8)
    one_hot = np.eye(num_classes, dtype=np.float32)[[0, 1, 1, 0]] if num_classes else None
    image = np.random.default_rng(0).integers(0, 2, (4, *image_shape)).astype(np.float32)
    posterior = cvae.posterior(image, one_hot)
    assert (posterior.batch_shape, posterior.event_shape) == ((4,), (3,))
    likelihood = cvae.likelihood(posterior.mean(), one_hot)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((4,), image_shape)
    assert np.all(np.isfinite(likelihood.log_prob(image)))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_weight_is_trained_and_the_loss_falls(network, num_classes, dataset):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), num_classes, 4, network, width=16, prior="label" if num_classes else "standard")
    cvae.compile(keras.optimizers.Adam(5e-3), loss=NegativeELBO())
    # The residual branches start at zero, so that their inner weights move from the second step on.
    before = [variable.numpy() for variable in cvae.trainable_variables]
    history = cvae.fit(dataset.train.batches(32, conditional=num_classes > 0), epochs=10, verbose=0)
    assert history.history["loss"][-1] < 0.9 * history.history["loss"][0]
    for variable, old in zip(cvae.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), variable.name


@pytest.mark.parametrize("network", NETWORKS)
def test_the_label_matters_from_the_start(network):
    cvae = build_cvae((8, 8, 1), 3, 4, network, width=16)
    latent = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    logits = [
        cvae.likelihood(latent, tf.one_hot([label] * 200, 3)).tensor_distribution.distribution.logits.numpy()
        for label in range(3)
    ]
    of_label = np.var(np.stack(logits).mean(axis=1), axis=0).mean()
    of_latent = np.var(logits[0], axis=0).mean()
    assert of_label > 0.1 * of_latent


@pytest.mark.parametrize("network", NETWORKS)
def test_stacked_on_any_network(network, dataset):
    keras.utils.set_random_seed(0)
    model = build_semi_supervised_cvae((8, 8, 1), 3, 4, network, width=16, stacked=True)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.compile(keras.optimizers.Adam(5e-3), loss=SemiSupervisedNegativeELBO())
    losses = model.fit(dataset.train.batches(32), epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), variable.name


def test_width_and_depth():
    small, wide, deep = (build_cvae((8, 8, 1), 3, 4, "mlp", width=w, depth=d) for w, d in ((16, 1), (32, 1), (16, 3)))
    assert small.count_params() < wide.count_params()
    assert small.count_params() < deep.count_params()
