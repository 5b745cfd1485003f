"""How the time of a training step grows with what there is more of.

    pip install ".[benchmarks]" && python benchmarks/growth.py --output growth.png

One size at a time is doubled, from the MLP 500-500 with 40 latents, batch 128 and K = 1 on images of 28x28. The
exponent is the slope between the two largest sizes on logarithmic axes: 1 is as much as the size, 0 is not at all. The
images are random. Of batches that are large, fewer make one program, as those of a program are gathered before it.
"""

import argparse
import os
import time

import numpy as np

from tfp_cvae import commands

commands.import_tensorflow()

import tf_keras as keras  # noqa: E402

STEPS = 100
USUAL = {"width": 500, "latent_size": 40, "batch_size": 128, "num_samples": 1, "side": 28, "num_images": None}
SIZES = {
    "width": (125, 250, 500, 1000, 2000),
    "latent_size": (10, 20, 40, 80, 160),
    "batch_size": (32, 64, 128, 256, 512),
    "num_samples": (1, 2, 4, 8, 16),
    "side": (14, 28, 56, 112),
    "num_images": (12800, 25600, 51200, 102400),
}
TITLES = {
    "width": "units of a layer",
    "latent_size": "size of z",
    "batch_size": "images in a batch",
    "num_samples": "latent samples K",
    "side": "pixels of a side",
    "num_images": "training images",
}
# Milliseconds that the figure names.
TICKS = (3, 10, 30, 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="figure to write, .png")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each that are measured; the fastest counts")
    given = parser.parse_args()
    print(f"{os.cpu_count()} processors; milliseconds a step, of the fastest of {given.epochs} epochs")
    print("what,size,milliseconds")
    found = {}
    for name, sizes in SIZES.items():
        found[name] = []
        for size in sizes:
            found[name].append(1e3 * step_seconds({**USUAL, name: size}, given.epochs))
            print(f"{name},{size},{found[name][-1]:.2f}", flush=True)
    print("\nexponents, between the two largest sizes")
    for name, sizes in SIZES.items():
        print(f"{name:12}{exponent(sizes, found[name]):6.2f}")
    draw(found, given.output)


def step_seconds(settings, epochs):
    """Seconds of a training step, the fastest epoch's mean; without a number of images an epoch has 100 steps."""
    from tfp_cvae.build import build_cvae
    from tfp_cvae.data import make_dataset
    from tfp_cvae.losses import ELBO, Distortion, NegativeELBO, Rate
    from tfp_cvae.memory import keep_freed_memory

    keep_freed_memory()
    keras.backend.clear_session()
    batch_size, side = settings["batch_size"], settings["side"]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (settings["num_images"] or STEPS * batch_size, side, side), np.uint8)
    labels = np.arange(len(images)) % 10
    few = (images[:100], labels[:100])
    data = make_dataset("random", list("0123456789"), (images, labels), few, few)
    cvae = build_cvae(
        data.image_shape, 10, settings["latent_size"], width=settings["width"], num_samples=settings["num_samples"]
    )
    cvae.compile(
        keras.optimizers.Adam(1e-3),
        loss=NegativeELBO(),
        metrics=[ELBO(), Rate(), Distortion()],
        jit_compile=True,
        steps_per_execution=50,
    )
    batches = data.train.batches(batch_size, drop_remainder=True)
    clock = Clock()
    cvae.fit(batches, epochs=1 + epochs, callbacks=[clock], verbose=0)
    return min(clock.seconds[1:]) / batches.epochs.steps


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.begin)


def exponent(sizes, values):
    return np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2])


def draw(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4), layout="constrained")
    for place, (name, values) in zip(figure.subplots(2, 3, sharey=True).flat, found.items(), strict=True):
        sizes = SIZES[name]
        place.loglog(sizes, values, "o-")
        place.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30, fontsize=9)
        place.set_yticks(TICKS, TICKS)
        place.minorticks_off()
        place.set_title(f"{TITLES[name]}: exponent {exponent(sizes, values):.2f}", fontsize=10)
        place.grid(alpha=0.3)
    figure.supylabel("milliseconds a step")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
