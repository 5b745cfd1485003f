"""An optimizer of Keras that goes through the memory once."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("tfp_cvae")
class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` whose update of a weight tensor is one pass over it and its moments.

        m <- m + (1 - beta_1) * (g - m)
        v <- v + (1 - beta_2) * (g^2 - v)
        w <- w - alpha * m / (sqrt(v) + epsilon),  alpha = learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)

    with the gradient g of step t = 1, 2, ..., and the weights w. That of Keras goes through the memory with each
    operation, which is slower on a CPU unless XLA fuses them. Arguments and variables are those of Keras. So is the
    result, up to rounding: 1 - beta_2 is here that of a beta_2 in the dtype of the weights, a hundred-thousandth of it
    more or less in float32. With `amsgrad`, `adaptive_epsilon` or a sparse gradient the step is Keras's own.

    `keras.optimizers.legacy.Adam` makes the same pass, but has neither `use_ema` nor a state in `.keras` files.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization", end of section 2, whose epsilon hat is
    this epsilon.
    """

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Moves one variable, for `apply_gradients`.

        Args:
            gradient: Of the loss by the variable, of its shape and dtype, or `tf.IndexedSlices`.
            variable: Weights of the model, float.
        """
        if self.amsgrad or self.adaptive_epsilon or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        index = self._index_dict[self._var_key(variable)]
        step = tf.cast(self.iterations + 1, variable.dtype)
        # `tf.cast` would round a number of Python to float32 first.
        beta_1, beta_2 = (tf.convert_to_tensor(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(self.learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )
