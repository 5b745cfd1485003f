"""JAX by hand, as in `jax_scan.py`, with the network of `conv_work.py`, and a jitted step instead of a `scan`.

In a loop within a program JAX's convolutions take many times as long on a CPU (jax-ml/jax, issue 12868).
"""

import conv_work
import jax
import jax.numpy as jnp
import jax_scan
import work
from jax import lax
from jax_scan import silu

LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel, stride=1):
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)


@jax.custom_vjp
def deconv(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT, transpose_kernel=True)


def deconv_forward(x, kernel):
    return deconv(x, kernel), (x, kernel)


def deconv_backward(saved, gradient):
    """That by the kernel as that of a convolution: the one that JAX derives takes more than ten times as long."""
    x, kernel = saved
    by_x, pull = jax.vjp(lambda kernel: conv(gradient, kernel, stride=2), kernel)
    return by_x, *pull(x)


deconv.defvjp(deconv_forward, deconv_backward)


def loss(weights, image, one_hot, noise):
    w = weights

    def block(h, i, j):
        branch = conv(silu(h), w[f"W{i}"]) + w[f"b{i}"]
        return h + conv(silu(branch), w[f"W{j}"]) + w[f"b{j}"]

    def label(number):
        return (one_hot @ w[f"V{number}"])[:, None, None, :]

    def join(*parts):
        return jnp.concatenate(parts, axis=-1)

    hidden = conv(image.reshape(-1, 28, 28, 1), w["W1"], stride=2) + w["b1"] + label(1)
    hidden = conv(block(hidden, 2, 3), w["W4"], stride=2) + w["b4"]
    hidden = silu(block(hidden, 5, 6)).reshape(len(image), -1)
    hidden = silu(join(hidden, one_hot) @ w["W7"] + w["b7"])
    mean, raw = jnp.split(hidden @ w["W8"] + w["b8"], 2, axis=-1)
    stddev = jax.nn.softplus(raw + work.UNIT_SCALE)
    hidden = silu(join(mean + stddev * noise, one_hot) @ w["W9"] + w["b9"])
    hidden = (join(hidden, one_hot) @ w["W10"] + w["b10"]).reshape(len(image), 7, 7, -1)
    hidden = deconv(block(hidden, 11, 12), w["W13"]) + w["b13"] + label(13)
    hidden = deconv(silu(block(hidden, 14, 15)), w["W16"]) + w["b16"]
    logits = hidden.reshape(len(image), -1) + w["p"]
    return jax_scan.negative_elbo(mean, stddev, logits, image)


def one_by_one(step):
    """As `jax_scan.scan`, but each step as a program of its own."""
    step = jax.jit(step, donate_argnums=0)

    def steps(state, inputs):
        losses = []
        for batch in zip(*inputs, strict=True):
            state, loss = step(state, batch)
            losses.append(loss)
        return state, jnp.stack(losses)

    return steps


if __name__ == "__main__":
    task = work.load()
    jax_scan.run(task, conv_work.initial(task), loss, one_by_one)
