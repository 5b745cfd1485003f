"""The convolutional network of the recipe `best`, which all train with `--network conv`: with the prior N(0, I).

For images of 28 x 28 with one channel, y the one-hot label, [a, y] joined, and the rest of the work as in `work.py`:

    block(h; i, j) = h + conv(silu(conv(silu(h); i)); j)

    encoder  h = conv(x; 1) + y V1                          5 x 5, stride 2, to 14 x 14 x width
             h = conv(block(h; 2, 3); 4)                    stride 2, to 7 x 7 x 2 width
             h = silu([silu(block(h; 5, 6)), y] W7 + b7)
             mean, raw = h W8 + b8
    decoder  h = [silu([z, y] W9 + b9), y] W10 + b10        as 7 x 7 x 2 width
             h = deconv(block(h; 11, 12); 13) + y V13       stride 2, to 14 x 14 x width
             logits = deconv(silu(block(h; 14, 15)); 16) + p  5 x 5, stride 2, to 28 x 28

conv(h; i) has the kernel Wi, 3 x 3 if not said otherwise, the bias bi, and TensorFlow's padding "same"; deconv is its
transpose. W Glorot uniform, but for the last one of each block, which is zero; V standard normal, b and p zero.
"""

import math
from typing import NamedTuple

import numpy as np
import work

HIDDEN = 256


class Layer(NamedTuple):
    """Shape of a kernel, as Keras has it; of a convolution, height and width of the input, and stride."""

    kernel: tuple[int, ...]
    side: int = 0
    stride: int = 1
    is_transposed: bool = False


def layers(task: work.Work) -> dict[int, Layer]:
    """What has a kernel, by its number."""
    c, d, classes = task.width, task.latent_size, task.one_hot.shape[1]
    half, quarter = Layer((3, 3, c, c), 14), Layer((3, 3, 2 * c, 2 * c), 7)
    flat = 7 * 7 * 2 * c
    encoder = [
        Layer((5, 5, 1, c), 28, 2),
        *(half, half),
        Layer((3, 3, c, 2 * c), 14, 2),
        *(quarter, quarter),
        Layer((flat + classes, HIDDEN)),
        Layer((HIDDEN, 2 * d)),
    ]
    decoder = [
        Layer((d + classes, HIDDEN)),
        Layer((HIDDEN + classes, flat)),
        *(quarter, quarter),
        Layer((3, 3, c, 2 * c), 7, 2, is_transposed=True),
        *(half, half),
        Layer((5, 5, 1, c), 14, 2, is_transposed=True),
    ]
    return dict(enumerate(encoder + decoder, 1))


def initial(task: work.Work, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name."""
    generator = np.random.default_rng(seed)
    weights = {"p": np.zeros(task.images.shape[1])}
    for number, layer in layers(task).items():
        *window, rows, columns = layer.kernel
        limit = 0 if number in (3, 6, 12, 15) else math.sqrt(6 / (math.prod(window) * (rows + columns)))
        weights[f"W{number}"] = generator.uniform(-limit, limit, layer.kernel)
        weights[f"b{number}"] = np.zeros(rows if layer.is_transposed else columns)
        if number in (1, 13):
            weights[f"V{number}"] = generator.standard_normal((task.one_hot.shape[1], task.width))
    return {name: value.astype(np.float32) for name, value in weights.items()}
