"""What all train, and how they take turns.

Images: a training split, of MNIST 55,000, as uint8 in memory; shuffled, and binarized afresh, in each epoch. Network,
in float32, with y the one-hot label, unless it is that of `conv_work.py`:

    encoder  h1 = silu(x W1 + y V1),  h2 = silu(h1 W2 + y V2),  mean, raw = h2 W3 + b3
             stddev = softplus(raw + log(e - 1))
    decoder  h4 = silu(z W4 + y V4),  h5 = silu(h4 W5 + y V5),  logits = h5 W6 + b6

W Glorot uniform, V standard normal, b zero. Loss: the mean over the batch of the negative ELBO, its KL in closed form.
Optimizer: Adam with 1e-3, 0.9, 0.999, 1e-7. This package also keeps its metrics, ELBO, rate and distortion, and draws a
byte for a pixel, where the others draw a float.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

UNIT_SCALE = math.log(math.e - 1)
WIDTHS = {"mlp": 500, "conv": 32}


@dataclasses.dataclass(frozen=True)
class Work:
    """Images `[n, 784]` uint8, one-hot labels `[n, 10]` float32, sizes, and the test split, binarized once."""

    images: np.ndarray
    one_hot: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray]
    batch_size: int
    width: int
    latent_size: int
    variant: str

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.images) // self.batch_size

    def initial(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Weights by name."""
        generator = np.random.default_rng(seed)
        pixels, classes = self.images.shape[1], self.one_hot.shape[1]
        h, d = self.width, self.latent_size
        weights = {}
        for number, (rows, columns) in enumerate([(pixels, h), (h, h), (h, 2 * d), (d, h), (h, h), (h, pixels)], 1):
            limit = math.sqrt(6 / (rows + columns))
            weights[f"W{number}"] = generator.uniform(-limit, limit, (rows, columns))
            if number in (3, 6):
                weights[f"b{number}"] = np.zeros(columns)
            else:
                weights[f"V{number}"] = generator.standard_normal((classes, h))
        return {name: value.astype(np.float32) for name, value in weights.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="mnist", help="what this package loads")
    parser.add_argument("--arrays", help="what `save` has written of it, for the others")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--network", choices=WIDTHS, default="mlp")
    parser.add_argument("--width", type=int)
    parser.add_argument("--latent-size", type=int, default=40)
    parser.add_argument("--variant", default="")
    given = parser.parse_args()
    given.width = given.width or WIDTHS[given.network]
    return given


def save(data: Any, path: str) -> None:
    """Writes the arrays of a data set of this package, for processes that need not import TensorFlow."""
    train, test = data.train, data.test
    np.savez(
        path,
        images=train.images[:].reshape(len(train), -1),
        one_hot=train.one_hot(),
        test_images=test.binarized("dynamic").reshape(len(test), -1),
        test_one_hot=test.one_hot(),
    )


def load() -> Work:
    from tfp_cvae.memory import keep_freed_memory

    # As `train` does, for all.
    keep_freed_memory()
    given = arguments()
    arrays = np.load(given.arrays)
    return Work(
        arrays["images"],
        arrays["one_hot"],
        (arrays["test_images"], arrays["test_one_hot"]),
        given.batch_size,
        given.width,
        given.latent_size,
        given.variant,
    )


def wait(held_out: Callable[[], float]) -> bool:
    """Waits for the turn, and answers whoever asks for the ELBO of the test images; False if there is no turn any more.

    Args:
        held_out: Measures the negative ELBO of the test images.
    """
    while (word := sys.stdin.readline().strip()) == "test":
        print(json.dumps({"elbo": -float(held_out())}), flush=True)
    return bool(word)


def tell(seconds: float, loss: float) -> None:
    """Says how long an epoch has taken, and its mean loss."""
    print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)


def take_turns(epoch: Callable[[int], float], held_out: Callable[[], float] = lambda: math.nan) -> None:
    """Runs an epoch, from its number to its mean loss, whenever it is asked for."""
    number = 0
    while wait(held_out):
        begin = time.perf_counter()
        loss = epoch(number)
        tell(time.perf_counter() - begin, loss)
        number += 1


def turns(kind: type) -> type:
    """A callback, of the Keras whose base class this is, that waits for a turn before each epoch."""

    class Turns(kind):
        def __init__(self, held_out: Callable[[], float] = lambda: math.nan) -> None:
            super().__init__()
            self.held_out = held_out

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = not wait(self.measured)
            self.begin = time.perf_counter()

        def measured(self) -> float:
            value = self.held_out()
            # What the images of the test have left there.
            self.model.reset_metrics()
            return value

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if not self.model.stop_training:
                tell(time.perf_counter() - self.begin, float(logs["loss"]))

    return Turns


def dataset(task: Work) -> Any:
    """Batches (image, one_hot) as users of `tf.data` write them."""
    import tensorflow as tf

    def binarized(image: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(image, tf.float32)
        return tf.cast(tf.random.uniform(tf.shape(image)) * 255 < image, tf.float32), one_hot

    rows = tf.data.Dataset.from_tensor_slices((task.images, task.one_hot)).shuffle(len(task.images))
    batches = rows.batch(task.batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.map(binarized, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    # As this package has it: the end of an epoch may wait for the thread that tunes, for half a minute with Keras 3.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
