"""The optimizer Adam of Keras, with one operation of TensorFlow for each weight tensor instead of a dozen."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("tfp_cvae")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` that reads and writes its moments once a step.

        m <- m + (1 - beta_1) (g - m)
        v <- v + (1 - beta_2) (g^2 - v)
        w <- w - learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    with the gradient g in step t = 1, 2, ... and the weights w. Arguments, variables and, up to rounding, results are
    those of Keras, whose operations each go through memory; with XLA, which fuses them, nothing is gained. With
    `amsgrad`, `adaptive_epsilon` or a sparse gradient it is Keras's own step.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization", section 2, with the order of computation
    at its end.
    """

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Moves one variable by its gradient, `[...]` as the variable, float; called by `apply_gradients`."""
        if self.amsgrad or self.adaptive_epsilon or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        index = self._index_dict[self._var_key(variable)]
        step = tf.cast(self.iterations + 1, variable.dtype)
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
