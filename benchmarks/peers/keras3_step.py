"""Keras 3's documented way: a model with its own `train_step`, as in its example of a VAE; XLA where Keras sees fit."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
import work
from keras import ops


def dense(units, activation=None):
    return keras.layers.Dense(units, activation, kernel_initializer="glorot_uniform")


def hidden_layer(inputs, one_hot, width):
    label = keras.layers.Dense(width, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(stddev=1.0))
    kernel = keras.layers.Dense(width, use_bias=False, kernel_initializer="glorot_uniform")
    return keras.layers.Activation("silu")(keras.layers.Add()([kernel(inputs), label(one_hot)]))


class Sampling(keras.layers.Layer):
    """Mean and raw scale to a sample."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        mean, stddev = inputs
        return mean + stddev * keras.random.normal(ops.shape(mean), seed=self.seed_generator)


class VAE(keras.Model):
    """Encoder and decoder, and the loss in `train_step`."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder, self.sampling = encoder, decoder, Sampling()
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        image, one_hot = data
        with tf.GradientTape() as tape:
            mean, raw = ops.split(self.encoder([image, one_hot]), 2, axis=-1)
            stddev = ops.softplus(raw + work.UNIT_SCALE)
            logits = self.decoder([self.sampling([mean, stddev]), one_hot])
            pixels = ops.softplus(logits) - image * logits
            rate = 0.5 * ops.sum(ops.square(mean) + ops.square(stddev) - 1 - 2 * ops.log(stddev), axis=-1)
            loss = ops.mean(ops.sum(pixels, axis=-1) + rate)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


class Turns(work.turns(keras.callbacks.Callback)):
    """Waits for a turn before each epoch."""


def main():
    task = work.load()
    keras.utils.set_random_seed(0)
    pixels, classes = task.images.shape[1], task.one_hot.shape[1]
    image, one_hot = keras.Input((pixels,)), keras.Input((classes,))
    hidden = hidden_layer(hidden_layer(image, one_hot, task.width), one_hot, task.width)
    encoder = keras.Model([image, one_hot], dense(2 * task.latent_size)(hidden))
    latent, one_hot = keras.Input((task.latent_size,)), keras.Input((classes,))
    hidden = hidden_layer(hidden_layer(latent, one_hot, task.width), one_hot, task.width)
    vae = VAE(encoder, keras.Model([latent, one_hot], dense(pixels)(hidden)))
    vae.compile(optimizer=keras.optimizers.Adam(1e-3), steps_per_execution=50)
    vae.fit(work.dataset(task), epochs=1000, callbacks=[Turns()], verbose=0)


if __name__ == "__main__":
    main()
