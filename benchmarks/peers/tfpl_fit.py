"""TFP's documented way: layers of `tfp.layers`, the KL as an activity regularizer, `fit` with the log-likelihood."""

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
import work

tfd, tfpl = tfp.distributions, tfp.layers


def hidden_layer(inputs, one_hot, width):
    label = keras.layers.Dense(width, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(stddev=1.0))
    return tf.nn.silu(keras.layers.Dense(width, use_bias=False)(inputs) + label(one_hot))


def posterior(params):
    mean, raw = tf.split(params, 2, axis=-1)
    return tfd.MultivariateNormalDiag(mean, tf.nn.softplus(raw + work.UNIT_SCALE))


class Turns(work.turns(keras.callbacks.Callback)):
    """Waits for a turn before each epoch."""


def main():
    task = work.load()
    keras.utils.set_random_seed(0)
    pixels = task.images.shape[1]
    prior = tfd.MultivariateNormalDiag(tf.zeros(task.latent_size))
    # As a regularizer the KL is counted twice: tensorflow/probability, issue 1215.
    regularizer = tfpl.KLDivergenceRegularizer(prior, use_exact_kl=True, weight=0.5)
    image, one_hot = keras.Input((pixels,)), keras.Input((task.one_hot.shape[1],))
    hidden = hidden_layer(hidden_layer(image, one_hot, task.width), one_hot, task.width)
    params = keras.layers.Dense(2 * task.latent_size)(hidden)
    latent = tfpl.DistributionLambda(posterior, activity_regularizer=regularizer)(params)
    hidden = hidden_layer(hidden_layer(latent, one_hot, task.width), one_hot, task.width)
    likelihood = tfpl.IndependentBernoulli(pixels)(keras.layers.Dense(pixels)(hidden))
    vae = keras.Model([image, one_hot], likelihood)
    vae.compile(
        keras.optimizers.Adam(1e-3),
        loss=lambda image, likelihood: -likelihood.log_prob(image),
        steps_per_execution=50,
        jit_compile=True,
    )
    batches = work.dataset(task).map(lambda image, one_hot: ((image, one_hot), image))
    held_out, labels = task.held_out

    def negative_elbo():
        return vae.evaluate([held_out, labels], held_out, batch_size=500, verbose=0)

    vae.fit(batches, epochs=1000, callbacks=[Turns(negative_elbo)], verbose=0)


if __name__ == "__main__":
    main()
