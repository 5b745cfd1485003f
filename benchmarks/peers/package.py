"""This package: `compile` and `fit` as `tfp-cvae train` does.

Variants: "keras" has a program for each step, "kernels" no XLA, "own kernels" neither XLA nor oneDNN, "bfloat16" that
precision and no XLA, "Keras's Adam" after a comma that in the place of `FusedAdam`, "average" a mean of the last
weights, which is what is tested, "callbacks" the callbacks of this package, "train" those of `tfp-cvae train`, which
are these and the `ModelCheckpoint` of Keras, and "2 workers" and the like share each batch among as many processes,
each with its share of the processors, and without XLA.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

import tf_keras as keras
import work

from tfp_cvae import distribution, execution
from tfp_cvae.backup import Backup
from tfp_cvae.callbacks import HistoryCSV, ImageGrid, StopAtNonFiniteLoss, SwapEMAWeights
from tfp_cvae.config import TrainConfig
from tfp_cvae.memory import keep_freed_memory
from tfp_cvae.sources import load_dataset
from tfp_cvae.training import build_model, compile_model

# Of the variant "average": the last 500 steps, a little more than an epoch.
EMA_MOMENTUM = 0.998


class Turns(work.turns(keras.callbacks.Callback)):
    """Waits for a turn before each epoch."""

    backup = None

    def on_epoch_begin(self, epoch, logs=None):
        begin = time.monotonic()
        super().on_epoch_begin(epoch, logs)
        if self.backup is not None:
            # The time of the others does not bring the next backup nearer.
            self.backup._written += time.monotonic() - begin


def start_workers(number):
    """Makes this process the chief of as many, and starts the others."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    cluster = {"worker": [f"localhost:{free.getsockname()[1]}" for free in sockets]}
    for free in sockets:
        free.close()
    processors = sorted(os.sched_getaffinity(0))
    for index in reversed(range(number)):
        # A share of the processors for each, as of `taskset`, or all threads compete for them.
        os.sched_setaffinity(0, processors[index % len(processors) :: number])
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        if index:
            yield subprocess.Popen([sys.executable, *sys.argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main():
    given = work.arguments()
    is_assistant = "TF_CONFIG" in os.environ
    others = []
    if given.variant.endswith("workers") and not is_assistant:
        others = list(start_workers(int(given.variant.split()[0])))
    try:
        train(given, is_assistant)
    finally:
        for other in others:
            other.kill()


def callbacks_of(variant, folder, batches, images):
    """Those of a variant, without what needs a validation split, which the others have not."""
    best = {"save_best_only": True, "monitor": "elbo", "mode": "max"}
    return [
        HistoryCSV(f"{folder}/history.csv", images_per_epoch=images),
        StopAtNonFiniteLoss(),
        *([keras.callbacks.ModelCheckpoint(f"{folder}/model.keras", **best)] if variant == "train" else []),
        ImageGrid(f"{folder}/images_by_epoch.npz"),
        Backup(f"{folder}/backup", batches),
    ]


def train(given, is_assistant):
    # As `train` does.
    keep_freed_memory()
    strategy = distribution.from_environment()
    if given.variant == "keras":
        execution.applies = lambda model: False
    data = load_dataset(given.dataset)
    config = TrainConfig(
        dataset=given.dataset,
        batch_size=given.batch_size,
        network=given.network,
        width=given.width,
        latent_size=given.latent_size,
        precision="mixed_bfloat16" if given.variant.startswith("bfloat16") else "float32",
        learning_rate_schedule="constant",
        ema_momentum=EMA_MOMENTUM if given.variant == "average" else 0,
        epochs=1000,
    )
    keras.utils.set_random_seed(0)
    steps = len(data.train) // given.batch_size
    with strategy.scope():
        cvae = build_model(config, data)
        # The others begin without what the mean image tells.
        bias = cvae.decoder.get_layer("pixel_bias").bias
        bias.assign(0 * bias)
        compile_model(cvae, config, steps_per_epoch=steps)
        if given.variant in ("kernels", "own kernels"):
            cvae.jit_compile = False
        if given.variant.endswith("Keras's Adam"):
            cvae.optimizer = keras.optimizers.Adam(config.learning_rate)
    batches = distribution.distribute(
        lambda share: data.train.batches(given.batch_size, drop_remainder=True, share=share), strategy
    )

    def negative_elbo():
        swap = [SwapEMAWeights()] if config.ema_momentum else []
        return cvae.evaluate(data.test.batches(500), verbose=0, return_dict=True, callbacks=swap)["loss"]

    turns = Turns(negative_elbo)
    callbacks = [] if is_assistant else [turns]
    with tempfile.TemporaryDirectory() as folder:
        if given.variant in ("callbacks", "train"):
            # An epoch has all that they do, at its beginning and at its end.
            turns.set_model(cvae)
            those = callbacks_of(given.variant, folder, batches, steps * given.batch_size)
            turns.backup = those[-1]
            callbacks = [
                keras.callbacks.LambdaCallback(on_epoch_begin=turns.on_epoch_begin),
                *those,
                keras.callbacks.LambdaCallback(on_epoch_end=turns.on_epoch_end),
            ]
        cvae.fit(batches, epochs=config.epochs, steps_per_epoch=steps, callbacks=callbacks, verbose=0)


if __name__ == "__main__":
    main()
