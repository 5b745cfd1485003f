"""JAX by hand: images on the device, an epoch as one jitted `scan`."""

import jax
import jax.numpy as jnp
import work


def silu(x):
    return x * jax.nn.sigmoid(x)


def loss(weights, image, one_hot, noise):
    w = weights
    hidden = silu(image @ w["W1"] + one_hot @ w["V1"])
    hidden = silu(hidden @ w["W2"] + one_hot @ w["V2"])
    mean, raw = jnp.split(hidden @ w["W3"] + w["b3"], 2, axis=-1)
    stddev = jax.nn.softplus(raw + work.UNIT_SCALE)
    hidden = silu((mean + stddev * noise) @ w["W4"] + one_hot @ w["V4"])
    hidden = silu(hidden @ w["W5"] + one_hot @ w["V5"])
    logits = hidden @ w["W6"] + w["b6"]
    return negative_elbo(mean, stddev, logits, image)


def negative_elbo(mean, stddev, logits, image):
    distortion = jnp.sum(jax.nn.softplus(logits) - image * logits, axis=-1)
    rate = 0.5 * jnp.sum(mean**2 + stddev**2 - 1 - 2 * jnp.log(stddev), axis=-1)
    return jnp.mean(distortion + rate)


def adam(weights, first, second, gradients, count):
    rate = 1e-3 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    first = jax.tree.map(lambda m, g: m + 0.1 * (g - m), first, gradients)
    second = jax.tree.map(lambda v, g: v + 0.001 * (g * g - v), second, gradients)
    return jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, first, second), first, second


def scan(step):
    """A step again and again, as one program, from (state, all inputs) to (state, losses)."""
    return jax.jit(lambda state, inputs: jax.lax.scan(step, state, inputs))


def run(task, weights, loss, repeated=scan):
    """Takes turns with what a loss of (weights, image, one_hot, noise) trains."""
    images, one_hot = jnp.asarray(task.images), jnp.asarray(task.one_hot)

    def step(state, inputs):
        weights, first, second, count = state
        index, key = inputs
        ink_key, latent_key = jax.random.split(key)
        grey = images[index].astype(jnp.float32)
        image = (jax.random.uniform(ink_key, grey.shape, maxval=255.0) < grey).astype(jnp.float32)
        noise = jax.random.normal(latent_key, (task.batch_size, task.latent_size))
        value, gradients = jax.value_and_grad(loss)(weights, image, one_hot[index], noise)
        weights, first, second = adam(weights, first, second, gradients, count + 1)
        return (weights, first, second, count + 1), value

    @jax.jit
    def draw(key):
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(images))[: task.steps * task.batch_size]
        return order.reshape(task.steps, -1), jax.random.split(noise_key, task.steps)

    steps = repeated(step)
    weights = jax.tree.map(jnp.asarray, weights)
    state = (weights, *(jax.tree.map(jnp.zeros_like, weights) for _ in range(2)), jnp.float32(0))

    def train(number):
        nonlocal state
        state, losses = steps(state, draw(jax.random.key(number)))
        return float(losses.mean())

    held_out, labels = map(jnp.asarray, task.held_out)
    noise = jax.random.normal(jax.random.key(0), (len(held_out), task.latent_size))
    work.take_turns(train, lambda: jax.jit(loss)(state[0], held_out, labels, noise))


if __name__ == "__main__":
    task = work.load()
    run(task, task.initial(), loss)
