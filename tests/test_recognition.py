import numpy as np
import tf_keras as keras

from tfp_cvae.build import build_cvae
from tfp_cvae.losses import NegativeELBO
from tfp_cvae.recognition import correct, generated, nearest, recognised, train_classifier


def test_a_trained_model_is_recognised_and_an_untrained_one_is_not(dataset, capsys):
    classifier = train_classifier(dataset.train.binarized("none"), dataset.train.labels, 3, epochs=30, verbose=1)
    # Few images have many epochs, in one progress bar.
    assert capsys.readouterr().out.count("\n") == 1
    assert correct(classifier, dataset.test.binarized("none"), dataset.test.labels).mean() > 0.95
    keras.utils.set_random_seed(0)
    cvae = build_cvae(dataset.image_shape, dataset.num_classes, latent_size=4, width=16)
    untrained = recognised(classifier, cvae, count=100)
    cvae.compile(keras.optimizers.Adam(3e-3), loss=NegativeELBO())
    cvae.fit(dataset.train.batches(16), epochs=20, verbose=0)
    trained = recognised(classifier, cvae, count=100)
    assert trained.shape == (3, 100)
    assert trained.mean(axis=1).min() > 0.95
    assert untrained.mean(axis=1).min() < 0.6
    # A class is judged by its own images.
    images = np.concatenate([cvae.generate([label] * 10, seed=label).numpy() for label in (0, 1)])
    assert correct(classifier, images, np.repeat([0, 1], 10)).mean() > 0.9
    assert correct(classifier, images, np.repeat([1, 0], 10)).mean() < 0.1


def test_images_generated_in_batches_are_those_generated_at_once(cvae):
    labels = np.arange(1203) % 3
    images = generated(cvae, labels, seed=4)
    assert images.shape == (1203, 8, 8, 1)
    for index in (0, 499, 500, 1202):
        np.testing.assert_allclose(images[index], cvae.generate([labels[index]], 4 + index)[0], atol=1e-6)


def test_nearest_training_images(dataset):
    images = dataset.train.images[[5, 17]] / 255.0
    distance, index = nearest(images, dataset.train, count=3)
    np.testing.assert_array_equal(index[:, 0], [5, 17])
    np.testing.assert_allclose(distance[:, 0], 0, atol=1e-5)
    other = dataset.test.images / 255.0
    distance, index = nearest(other, dataset.train, count=3)
    every = np.sqrt(((other[:, np.newaxis] - dataset.train.images / 255.0) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :3], rtol=1e-4)
