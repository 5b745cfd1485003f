"""Images a second of `fit` from memory and from disk.

    pip install . && python benchmarks/streaming.py --rounds 5

The default model is trained on the same images three ways, which take turns, as the machine may have other work to do:
from memory; from a file that the system has in its page cache; and from one that it has not, as if it were larger than
the memory, so that each image is read from the disk (Linux). The images are those of mnist5k, again and again. Prints a
row of CSV for each, and the median over the rounds, with the smallest and the largest, of images a second and of their
ratio to those from memory in the same round.
"""

import argparse
import mmap
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import tf_keras as keras

from tfp_cvae import TrainConfig, load_dataset
from tfp_cvae.data import make_dataset
from tfp_cvae.memory import keep_freed_memory
from tfp_cvae.training import build_model, compile_model

WAYS = ("memory", "disk, cached", "disk")


class Seconds(keras.callbacks.Callback):
    """Measures the steps of an epoch, without what Keras does before them."""

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self.begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1_000_000, help="images in the file")
    parser.add_argument("--steps", type=int, default=500, help="steps of a round")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--folder", help="where the file is written; by default where temporary files are")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(given, pathlib.Path(folder, "images.npy"))


def measure(given, path):
    source = load_dataset("mnist5k").train
    labels = np.tile(source.labels, write(path, source.images, given.images))
    mapped = np.load(path, mmap_mode="r")
    names = [str(number) for number in range(source.num_classes)]
    keep_freed_memory()
    seconds, fits = Seconds(), {}
    for way in given.ways:
        data = make_dataset(way, names, (np.array(mapped) if way == "memory" else mapped, labels))
        config = TrainConfig(batch_size=given.batch_size)
        cvae = build_model(config, data)
        compile_model(cvae, config, steps_per_epoch=given.steps)
        fits[way] = cvae, data.train.batches(given.batch_size, drop_remainder=True)
    found = {way: [] for way in fits}
    print("round,way,images_per_second")
    for number in range(given.rounds + 1):
        for way, (cvae, batches) in fits.items():
            if way == "disk":
                forget(mapped, path)
            elif way == "disk, cached":
                remember(path)
            cvae.fit(batches, steps_per_epoch=given.steps, callbacks=[seconds], verbose=0)
            speed = given.steps * given.batch_size / seconds.seconds
            print(f'{number},"{way}",{speed:.0f}', flush=True)
            # The first one compiles.
            if number > 0:
                found[way].append(speed)
    size = path.stat().st_size / 2**20
    print(f"\n{len(labels):,} images, {size:,.0f} MiB; {given.rounds} rounds; {os.cpu_count()} processors")
    print(f"{'':14}{'images a second':>28}{'ratio':>24}")
    for way, speeds in found.items():
        ratios = [speed / other for speed, other in zip(speeds, found[given.ways[0]], strict=True)]
        print(f"{way:14}{spread(speeds, '.0f'):>28}{spread(ratios, '.2f'):>24}")


def write(path, images, number):
    """Writes images again and again, at least as many as asked for; returns how often."""
    copies = -(-number // len(images))
    written = np.lib.format.open_memmap(path, "w+", np.uint8, (copies * len(images), *images.shape[1:]))
    for copy in np.split(written, copies):
        copy[...] = images
    written.flush()
    # No map of it outlives this function, as what is mapped cannot be forgotten.
    return copies


def remember(path):
    """Has the system hold a whole file in its page cache."""
    with open(path, "rb") as file:
        while file.read(2**24):
            pass


def forget(mapped, path):
    """Has the system read a file from the disk again; what is mapped or not yet written would be kept."""
    mapped.base.madvise(mmap.MADV_DONTNEED)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
