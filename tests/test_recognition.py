import numpy as np
import tf_keras as keras

from tfp_cvae.build import build_cvae
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.recognition import accuracy, recognised, train_classifier


def test_a_trained_model_is_recognised_and_an_untrained_one_is_not(dataset):
    classifier = train_classifier(dataset, epochs=30)
    assert accuracy(classifier, dataset.test.binarized("none"), dataset.test.labels) > 0.95
    keras.utils.set_random_seed(0)
    cvae = build_cvae(dataset.image_shape, dataset.num_classes, latent_size=4, width=16)
    untrained = recognised(classifier, cvae, count=100)
    cvae.compile(keras.optimizers.Adam(3e-3), loss=NegativeELBO())
    cvae.fit(dataset.train.batches(16), epochs=20, verbose=0)
    trained = recognised(classifier, cvae, count=100)
    assert trained.shape == (3,)
    assert trained.min() > 0.95
    assert untrained.min() < 0.6
    # A class is judged by its own images.
    images = np.concatenate([cvae.generate([label] * 10, seed=label).numpy() for label in (0, 1)])
    assert accuracy(classifier, images, np.repeat([0, 1], 10)) > 0.9
    assert accuracy(classifier, images, np.repeat([1, 0], 10)) < 0.1
