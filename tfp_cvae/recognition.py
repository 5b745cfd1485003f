"""Are generated images recognised? A classifier that is trained on real images judges them."""

import numpy as np
import tf_keras as keras

from tfp_cvae.data import Dataset
from tfp_cvae.model import CVAE

_BATCH_SIZE = 128


def train_classifier(dataset: Dataset, *, epochs: int = 6, seed: int = 0, verbose: int = 0) -> keras.Model:
    """Trains a small convolutional classifier on the real, grey training images. It never sees a generated one.

    Sets the global seed of Keras.

    Args:
        dataset: The data set.
        epochs: Passes over the training images.
        seed: Seed of weights, order and dropout.
        verbose: As for `fit`.

    Returns:
        Model from image `[n, height, width, channels]` float32 in [0, 1] to logits `[n, num_classes]`.
    """
    keras.utils.set_random_seed(seed)
    classifier = keras.Sequential(
        [
            keras.Input(dataset.image_shape),
            keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(dataset.num_classes),
        ]
    )
    images, labels = dataset.train.binarized("none"), dataset.train.labels
    steps = epochs * -(-len(images) // _BATCH_SIZE)
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    classifier.fit(images, labels, batch_size=_BATCH_SIZE, epochs=epochs, verbose=verbose)
    return classifier


def accuracy(classifier: keras.Model, images: np.ndarray, labels: np.ndarray | int) -> float:
    """Fraction of images `[n, height, width, channels]` in [0, 1] whose class the classifier finds."""
    logits = classifier.predict(images, batch_size=_BATCH_SIZE, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def recognised(classifier: keras.Model, cvae: CVAE, *, count: int = 1000, seed: int = 0) -> np.ndarray:
    """Fraction of generated images of each class that the classifier takes for that class.

    Args:
        classifier: Of `train_classifier`, for the same classes.
        cvae: The model.
        count: Images to generate for each class.
        seed: Seed of the first image; the others follow it, through all classes.

    Returns:
        `[num_classes]` float64 in [0, 1].
    """
    return np.array(
        [
            accuracy(classifier, cvae.generate(np.full(count, label), seed + label * count).numpy(), label)
            for label in range(cvae.num_classes)
        ]
    )
