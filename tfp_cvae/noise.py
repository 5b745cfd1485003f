"""Standard normal noise that depends on seeds alone, and not on what is drawn with it."""

from collections.abc import Sequence

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


@tf.function(autograph=False, reduce_retracing=True)
def standard_normal(seed: tf.Tensor, shape: Sequence[int], stream: int = 0) -> tf.Tensor:
    """Standard normal samples, each a function of its own seed.

    They are those of TensorFlow's generator, in the place of which XLA has another one.

    Args:
        seed: `[n]` integer.
        shape: Shape of a sample.
        stream: Second half of each seed, for samples that have nothing to do with those of another stream.

    Returns:
        `[n, *shape]` float32.
    """

    def one(row_seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_normal(shape, seed=tf.stack([row_seed, stream]), alg="philox")

    return tf.map_fn(one, tf.cast(seed, tf.int64), fn_output_signature=tf.TensorSpec(shape, tf.float32))


def standard_normal_rows(key: tuple[tf.Tensor, tf.Tensor], rows: tf.Tensor, size: int) -> tf.Tensor:
    """Rows of one large standard normal sample, without the others.

        z = Phi^-1((2 k + 1) / 2**24),  k the upper 23 bits of a random word

    so that |z| < 5.3. They are the same with XLA and without, up to rounding, unlike those of TensorFlow's generator,
    Philox, on which a compiled training step spent a tenth of its time for a few thousand numbers.

    Args:
        key: Two words, uint32: one for all rows, `[]`, or one for each, `[n]`.
        rows: Numbers of the rows, `[n]` int32 >= 0.
        size: Numbers in a row.

    Returns:
        `[n, size]` float32.
    """
    key = (key[0][..., tf.newaxis], key[1][..., tf.newaxis])
    row, column = rows[:, tf.newaxis], tf.range((size + 1) // 2)[tf.newaxis]
    words = tf.concat(threefry(key, (tf.cast(row, tf.uint32), tf.cast(column, tf.uint32))), axis=1)[:, :size]
    # An odd number below 2**24, which float32 holds exactly.
    odd = 2 * tf.bitcast(tf.bitwise.right_shift(words, 9), tf.int32) + 1
    uniform = tf.cast(odd - 2**23, tf.float32) / 2**23
    return tf.sqrt(2.0) * tf.math.erfinv(uniform)


def threefry(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Two random words for each value of a counter: Threefry-2x32 with 20 rounds.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.2.

    Args:
        key: Two words, uint32.
        counter: Two words, uint32, of shapes that broadcast to one with those of the key.

    Returns:
        Two words of that shape, uint32.
    """
    keys = (*key, key[0] ^ key[1] ^ _PARITY)
    left, right = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(1, 6):
        for distance in _ROTATIONS[(group - 1) % 2]:
            left = left + right
            right = left ^ _rotated(right, distance)
        left = left + keys[group % 3]
        right = right + keys[(group + 1) % 3] + group
    return left, right


def _rotated(word: tf.Tensor, distance: int) -> tf.Tensor:
    return tf.bitwise.left_shift(word, distance) | tf.bitwise.right_shift(word, 32 - distance)
