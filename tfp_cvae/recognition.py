"""What generated images are worth: does a classifier recognise them, learn from them, and are they new?"""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from sklearn.neighbors import NearestNeighbors

from tfp_cvae import distribution, on_disk
from tfp_cvae.data import Split
from tfp_cvae.layers import dtype_policy
from tfp_cvae.model import CVAE

_BATCH_SIZE = 128
_GENERATED_AT_ONCE = 500
_SHIFT = 0.08
_MIN_STEPS = 200
_SHOWN_EPOCHS = 20


def train_classifier(
    images: np.ndarray, labels: np.ndarray, num_classes: int, *, epochs: int = 6, seed: int = 0, verbose: int = 0
) -> keras.Model:
    """Trains a small convolutional classifier, on images that it moves about a little.

    Sets the global seed of Keras.

    Args:
        images: `[n, height, width, channels]` float32, grey, in [0, 1].
        labels: `[n]` integer, in [0, num_classes).
        num_classes: Number of classes.
        epochs: Passes over the images; more of them over few images, for at least 200 steps.
        seed: Seed of weights, order and dropout.
        verbose: As for `fit`, up to 20 epochs; of more, 1 shows one progress bar.

    Returns:
        Model from image `[n, height, width, channels]` float32 in [0, 1] to logits `[n, num_classes]`.
    """
    keras.utils.set_random_seed(seed)
    # The same judge whatever policy was set for the model.
    with dtype_policy("float32"):
        classifier = keras.Sequential(
            [
                keras.Input(images.shape[1:]),
                # Active in training only.
                keras.layers.RandomTranslation(_SHIFT, _SHIFT, fill_mode="nearest"),
                *_convolution(32, kernel_size=5),
                *_convolution(64, kernel_size=3),
                *_convolution(128, kernel_size=3),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(128, activation="relu"),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(num_classes),
            ]
        )
    steps_per_epoch = -(-len(images) // _BATCH_SIZE)
    epochs = max(epochs, -(-_MIN_STEPS // steps_per_epoch))
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps_per_epoch)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = []
    if epochs > _SHOWN_EPOCHS:
        # Of few images there may be hundreds of epochs, of which nobody wants a line each.
        if verbose == 1:
            bar = keras.utils.Progbar(epochs, unit_name="epoch")
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: bar.update(epoch + 1)))
        verbose = 0
    classifier.fit(images, labels, batch_size=_BATCH_SIZE, epochs=epochs, verbose=verbose, callbacks=callbacks)
    return classifier


def _convolution(filters: int, kernel_size: int) -> list[keras.layers.Layer]:
    return [
        keras.layers.Conv2D(filters, kernel_size, padding="same", use_bias=False),
        # With a short memory, so that few steps are enough.
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(padding="same"),
    ]


def correct(classifier: keras.Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the classifier finds the class of each image: `[n]` bool for `[n, height, width, channels]` in [0, 1]."""
    logits = classifier.predict(images, batch_size=_BATCH_SIZE, verbose=0)
    return np.argmax(logits, axis=-1) == labels


def recognised(
    classifier: keras.Model,
    cvae: CVAE,
    *,
    count: int = 1000,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> np.ndarray:
    """Whether the classifier takes generated images of each class for that class.

    Args:
        classifier: Of `train_classifier` on real images of the same classes.
        cvae: The model.
        count: Images to generate for each class.
        seed: Seed of the first image; the others follow it, through all classes.
        strategy: As of `generated`.

    Returns:
        `[num_classes, count]` bool.
    """
    labels = np.repeat(np.arange(cvae.num_classes), count)
    return correct(classifier, generated(cvae, labels, seed, strategy), labels).reshape(cvae.num_classes, count)


def generated(
    cvae: CVAE, labels: np.ndarray, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> np.ndarray:
    """Generates many images in batches: pixel probabilities, `[n, height, width, channels]` float32.

    Args:
        cvae: A model with classes.
        labels: Class of each image, `[n]` integer.
        seed: Seed of the first image; the others follow it.
        strategy: Strategy whose workers each generate a part, and call this with the same arguments; None for one
            process.
    """
    own = distribution.rows_of_worker(len(labels), strategy)
    parts = [
        cvae.generate(labels[rows], seed + rows).numpy()
        for rows in np.split(own, range(_GENERATED_AT_ONCE, len(own), _GENERATED_AT_ONCE))
        if len(rows)
    ]
    return distribution.gathered(np.concatenate([np.zeros([0, *cvae.image_shape], np.float32), *parts]), strategy)


def nearest(images: np.ndarray, train: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest training images, by the Euclidean distance of grey pixels.

    Args:
        images: `[n, height, width, channels]` float, in [0, 1].
        train: The training split.
        count: Neighbours of each image, or all training images if there are fewer.

    Returns:
        Distances `[n, count]`, ascending, and indices `[n, count]` into `train`.
    """
    flat = images.reshape(len(images), -1)
    # Of those on disk there may be more than the memory can hold.
    by_parts = isinstance(train.images, on_disk.RowsOnDisk)
    found = []
    for part in on_disk.parts(train.images) if by_parts else [slice(0, len(train))]:
        among = train.images[part].reshape(part.stop - part.start, -1) / np.float32(255)
        search = NearestNeighbors(n_neighbors=min(count, len(among)), algorithm="brute").fit(among)
        distance, index = search.kneighbors(flat)
        found.append((distance, index + part.start))
    distance, index = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distance, order, axis=1), np.take_along_axis(index, order, axis=1)
