"""This package: `compile` and `fit` as `tfp-cvae train` does; with the variant "keras", a program for each step."""

import time

import tf_keras as keras
import work

from tfp_cvae import execution
from tfp_cvae.config import TrainConfig
from tfp_cvae.sources import load_dataset
from tfp_cvae.training import build_model, compile_model


class Turns(keras.callbacks.Callback):
    """Waits for a turn before each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.stop_training = not work.wait()
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if not self.model.stop_training:
            work.tell(time.perf_counter() - self.begin, logs["loss"])


def main():
    given = work.arguments()
    if given.variant == "keras":
        execution.applies = lambda model: False
    data = load_dataset(given.dataset)
    config = TrainConfig(
        dataset=given.dataset,
        batch_size=given.batch_size,
        width=given.width,
        latent_size=given.latent_size,
        learning_rate_schedule="constant",
        epochs=1000,
    )
    keras.utils.set_random_seed(0)
    cvae = build_model(config, data)
    # The others begin without what the mean image tells.
    bias = cvae.decoder.get_layer("pixel_bias").bias
    bias.assign(0 * bias)
    compile_model(cvae, config, steps_per_epoch=len(data.train) // given.batch_size)
    batches = data.train.batches(given.batch_size, drop_remainder=True)
    cvae.fit(batches, epochs=config.epochs, callbacks=[Turns()], verbose=0)


if __name__ == "__main__":
    main()
