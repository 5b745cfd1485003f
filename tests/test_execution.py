"""Several steps at once, also as one program, against Keras, which traces a step more often, and runs each by itself."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import stripes

from tfp_cvae import batches as batches_module
from tfp_cvae import execution, objectives
from tfp_cvae import model as model_module
from tfp_cvae.build import build_cvae
from tfp_cvae.callbacks import KLWarmUp
from tfp_cvae.data import make_dataset
from tfp_cvae.layers import MultivariateNormalDiag
from tfp_cvae.losses import ELBO, NegativeELBO, Rate
from tfp_cvae.model import CVAE

STEPS = 13


@pytest.fixture(scope="module")
def dataset():
    images, labels = stripes(STEPS * 16 + 3)
    return make_dataset("stripes", ["a", "b", "c"], (images, labels), (images, labels), (images, labels))


def model(dataset, steps_per_execution=5, jit_compile=True):
    keras.utils.set_random_seed(0)
    cvae = build_cvae(dataset.image_shape, 3, latent_size=2, width=8)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 4 * STEPS)
    optimizer = keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.9)
    cvae.compile(
        optimizer,
        loss=NegativeELBO(),
        metrics=[ELBO(), Rate()],
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    return cvae


def batches(dataset, **kwargs):
    return dataset.train.batches(16, **{"drop_remainder": True, **kwargs})


def refuse(self, force=False):
    @tf.function
    def train_function(iterator):
        raise AssertionError("run by Keras")

    self.train_function = train_function
    return train_function


@pytest.fixture
def not_by_keras(monkeypatch):
    monkeypatch.setattr(keras.Model, "make_train_function", refuse)


def trained(cvae, data, **kwargs):
    history = cvae.fit(data, verbose=0, **kwargs).history
    variables = [*cvae.weights, *cvae.optimizer.variables]
    return history, [variable.numpy() for variable in variables], int(cvae._train_counter)


def by_keras(monkeypatch, *args, **kwargs):
    with monkeypatch.context() as context:
        context.setattr(execution, "applies", lambda model: False)
        context.setattr(execution, "traced_once", lambda model, make: make(force=True))
        context.setattr(CVAE, "build_optimizer", lambda self: None)
        return trained(*args, **kwargs)


def assert_same(one, other, rtol=1e-5):
    assert one[0].keys() == other[0].keys()
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], other[0][name], rtol=rtol, err_msg=name)
    for value, expected in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(value, expected, rtol=10 * rtol, atol=rtol / 10)
    assert one[2] == other[2]


def test_as_keras_trains(dataset, monkeypatch):
    """Weights, moments, averages, metrics and counters, with 13 steps in executions of 5, 5 and 3."""
    kwargs = {"epochs": 3, "validation_data": dataset.validation.batches(16)}
    expected = by_keras(monkeypatch, model(dataset), batches(dataset), callbacks=[KLWarmUp(3)], **kwargs)
    monkeypatch.setattr(keras.Model, "make_train_function", refuse)
    found = trained(model(dataset), batches(dataset), callbacks=[KLWarmUp(3)], **kwargs)
    assert_same(found, expected)
    assert found[2] == 3 * STEPS
    # Something was trained, so that the comparison says something.
    assert found[0]["elbo"][2] > found[0]["elbo"][0] + 1


def test_as_keras_trains_without_xla(dataset, monkeypatch):
    kwargs = {"epochs": 2, "validation_data": dataset.validation.batches(16)}
    expected = by_keras(monkeypatch, model(dataset, jit_compile=False), batches(dataset), **kwargs)
    found = trained(model(dataset, jit_compile=False), batches(dataset), **kwargs)
    assert_same(found, expected, rtol=1e-6)
    assert found[2] == 2 * STEPS


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps_per_execution", [1, 5])
def test_a_step_is_traced_once(dataset, monkeypatch, steps_per_execution, jit_compile):
    traced = count_traces(monkeypatch)
    cvae = model(dataset, steps_per_execution, jit_compile)
    for _ in range(2):
        cvae.fit(batches(dataset), validation_data=dataset.validation.batches(16).take(STEPS), verbose=0)
    assert traced == ["train_step", "test_step"]


def count_traces(monkeypatch):
    """The steps that are traced from now on."""
    traced = []

    def counted(step):
        def wrapped(self, data):
            traced.append(step.__name__)
            return step(self, data)

        return wrapped

    for step in (CVAE.train_step, CVAE.test_step):
        monkeypatch.setattr(CVAE, step.__name__, counted(step))
    return traced


@pytest.mark.parametrize(("steps_per_execution", "jit_compile"), [(1, False), (4, False), (4, True)])
def test_a_setting_may_change_between_two_calls(dataset, monkeypatch, steps_per_execution, jit_compile):
    """With a trace of the steps for each value, and the result of a model that was made with it."""
    validation = dataset.validation.batches(16)
    options = {"loss": NegativeELBO(), "steps_per_execution": steps_per_execution, "jit_compile": jit_compile}

    def fit(cvae):
        return cvae.fit(batches(dataset), validation_data=validation, verbose=0).history

    cvae = model(dataset)
    begin = cvae.get_weights()
    # Without a state, so that both trainings begin alike.
    cvae.compile(keras.optimizers.SGD(1e-3), **options)
    traced, found = count_traces(monkeypatch), {}
    for number in (1, 3):
        cvae.num_samples = number
        cvae.set_weights(begin)
        found[number] = fit(cvae)
    assert traced == 2 * ["train_step", "test_step"]
    assert found[1] != found[3]
    for number, history in found.items():
        fresh = CVAE(cvae.encoder, cvae.decoder, num_samples=number)
        fresh.set_weights(begin)
        fresh.compile(keras.optimizers.SGD(1e-3), **options)
        assert fit(fresh) == history


@pytest.mark.parametrize("name", ["num_samples", "seed"])
@pytest.mark.parametrize("event", ["on_epoch_begin", "on_train_batch_end", "on_test_batch_begin", "on_epoch_end"])
def test_a_setting_does_not_change_during_fit(dataset, name, event):
    """It would have no effect, as the steps are traced; afterwards it may."""
    # With XLA once for each name, as it has no part in this but takes seconds.
    cvae = model(dataset, jit_compile=event == "on_train_batch_end")

    def change(number, logs=None):
        setattr(cvae, name, 3)

    callback = keras.callbacks.LambdaCallback()
    setattr(callback, event, change)
    validation = dataset.validation.batches(16)
    message = (
        rf"{name}: expected {getattr(cvae, name)} until fit, evaluate or predict has ended, .*, got 3; change it be"
    )
    with pytest.raises(ValueError, match=message):
        cvae.fit(batches(dataset), validation_data=validation, callbacks=[callback], verbose=0)
    change(0)
    cvae.fit(batches(dataset), validation_data=validation, callbacks=[callback], verbose=0)
    assert getattr(cvae, name) == 3


def test_a_setting_that_stays_the_same_costs_nothing(dataset, monkeypatch):
    cvae = model(dataset)

    def again(epoch, logs):
        cvae.num_samples, cvae.seed = 1, 0

    traced = count_traces(monkeypatch)
    cvae.fit(batches(dataset), epochs=2, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=again)], verbose=0)
    cvae.seed = 0
    cvae.fit(batches(dataset), verbose=0)
    assert traced == ["train_step"]


class Rates(keras.metrics.Metric):
    """The rates of the last batch that are above 0, of which nobody knows the number."""

    def __init__(self):
        super().__init__(name="rates")
        self.rates = self.add_weight(name="rates", shape=(16,))

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.rates.assign(objectives.rate(y_pred))

    def result(self):
        return tf.boolean_mask(self.rates, self.rates > 0)


def test_a_metric_whose_shape_is_not_known(dataset):
    cvae = model(dataset)
    cvae.compile("adam", loss=NegativeELBO(), metrics=[Rates()], steps_per_execution=5)
    history = cvae.fit(batches(dataset), verbose=0).history
    assert history["rates"][0].shape == (16,)
    assert int(cvae._train_counter) == STEPS


def test_as_without_xla(dataset):
    """The noise is the same, and sums differ by rounding."""
    kwargs = {"epochs": 2, "validation_data": dataset.validation.batches(16)}
    kernels = trained(model(dataset, jit_compile=False), batches(dataset), **kwargs)
    assert_same(trained(model(dataset), batches(dataset), **kwargs), kernels, rtol=1e-4)


def test_several_programs_in_an_execution(dataset, monkeypatch, not_by_keras):
    whole = trained(model(dataset, STEPS), batches(dataset), epochs=2)
    size = execution._num_bytes(batches(dataset).element_spec)
    image, one_hot = np.prod(dataset.image_shape), 3
    assert size == 4 * 16 * (2 * image + one_hot)
    monkeypatch.setattr(execution, "_MAX_BYTES", 4 * size)
    parts = trained(model(dataset, STEPS), batches(dataset), epochs=2)
    assert_same(parts, whole)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_data_that_run_out(dataset, monkeypatch, caplog, jit_compile):
    """Of three times 8 steps there are 12, so that an execution of 5 finds 4."""

    def unknown():
        return batches(dataset).take(12).filter(lambda *batch: True)

    kwargs = {"epochs": 3, "steps_per_epoch": 8}
    expected = by_keras(monkeypatch, model(dataset, jit_compile=jit_compile), unknown(), **kwargs)
    caplog.clear()
    if jit_compile:
        monkeypatch.setattr(keras.Model, "make_train_function", refuse)
    with caplog.at_level("WARNING"):
        found = trained(model(dataset, jit_compile=jit_compile), unknown(), **kwargs)
    assert "Your input ran out of data" in caplog.text
    assert found[2] == expected[2] == 12
    assert len(found[0]["loss"]) == len(expected[0]["loss"]) == 2
    for value, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_batch_that_does_not_come_is_no_step(dataset, jit_compile):
    """The noise of the next epoch depends on the number of steps before it."""
    unknown = batches(dataset).filter(lambda *batch: True)
    cvae = model(dataset, 1, jit_compile)
    cvae.fit(unknown, epochs=3, verbose=0)
    assert int(cvae.step) == int(cvae._train_counter) == 3 * STEPS


def test_the_number_of_steps_at_once_outlives_an_exception(dataset):
    """In the last execution of an epoch, for which Keras lowers it."""
    cvae = model(dataset)

    def stop(batch, logs):
        if batch == STEPS - 1:
            raise KeyboardInterrupt

    for run, hook in ((cvae.fit, "on_train_batch_end"), (cvae.evaluate, "on_test_batch_end")):
        with pytest.raises(KeyboardInterrupt):
            run(batches(dataset), callbacks=[keras.callbacks.LambdaCallback(**{hook: stop})], verbose=0)
        assert int(cvae.steps_per_execution) == 5


def test_tensorboard_draws_the_program(dataset, tmp_path):
    cvae = model(dataset)
    cvae.fit(batches(dataset), callbacks=[keras.callbacks.TensorBoard(str(tmp_path)), keras.callbacks.TerminateOnNaN()])
    (path,) = (tmp_path / "train").glob("events*")
    events = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    (graph,) = [event.graph_def for event in events if event.graph_def]
    assert b"XlaMustCompile" in graph
    assert b"NegativeELBO" in graph or b"negative_elbo" in graph


@pytest.mark.parametrize(
    ("settings", "kwargs"),
    [
        ({"jit_compile": False, "steps_per_execution": 5}, {}),
        ({"jit_compile": True}, {}),
        ({"jit_compile": True, "steps_per_execution": 5}, {"drop_remainder": False}),
    ],
)
def test_otherwise_keras_runs_it(dataset, not_by_keras, settings, kwargs):
    cvae = model(dataset)
    cvae.compile("adam", loss=NegativeELBO(), **settings)
    with pytest.raises(AssertionError, match="run by Keras"):
        cvae.fit(batches(dataset, **kwargs), verbose=0)


def test_batches_too_large_to_gather(dataset, monkeypatch, not_by_keras):
    monkeypatch.setattr(execution, "_MAX_BYTES", 100)
    with pytest.raises(AssertionError, match="run by Keras"):
        model(dataset).fit(batches(dataset), verbose=0)


def test_other_batches_and_a_second_compile(dataset, not_by_keras):
    cvae = model(dataset)
    cvae.fit(batches(dataset), verbose=0)
    compiled = cvae.train_function
    cvae.fit(dataset.train.batches(32, drop_remainder=True), verbose=0)
    cvae.fit(batches(dataset), verbose=0)
    assert cvae.train_function is compiled
    assert int(cvae.optimizer.iterations) == 2 * STEPS + STEPS // 2
    seen = []
    cvae.compile("adam", loss=NegativeELBO(), jit_compile=True, steps_per_execution=3)
    listener = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    cvae.fit(batches(dataset), callbacks=[listener], verbose=0)
    assert seen == [2, 5, 8, 11, 12]


class OnlyIfBright(keras.layers.Layer):
    """Depends on the value of a tensor, which AutoGraph makes a part of the graph."""

    def call(self, inputs):
        if tf.reduce_mean(inputs) > 0.3:
            return inputs
        return tf.zeros_like(inputs)


def test_layers_of_users_may_rely_on_autograph(dataset):
    plain = build_cvae(dataset.image_shape, 3, latent_size=2, width=8)
    image, one_hot = keras.Input(dataset.image_shape, name="image"), keras.Input((3,), name="one_hot")
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(OnlyIfBright()(image)), one_hot])
    encoder = keras.Model([image, one_hot], MultivariateNormalDiag(2)(keras.layers.Dense(4)(hidden)))
    cvae = CVAE(encoder, plain.decoder)
    cvae.compile("adam", loss=NegativeELBO(), metrics=[ELBO()])
    history = cvae.fit(batches(dataset), validation_data=batches(dataset), verbose=0).history
    assert np.isfinite(history["val_elbo"]).all()


def test_autograph_leaves_alone_what_calls_no_network(dataset, monkeypatch):
    """Each function that it rewrites makes the start longer."""
    status = {}

    def note(module, name):
        function = getattr(module, name)

        def noted(*args, **kwargs):
            status.setdefault(name, set()).add(tf.__internal__.autograph.control_status_ctx().status.name)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    for module, name in (
        (objectives, "rate"),
        (objectives, "distortion"),
        (model_module, "standard_normal_rows"),
        (batches_module, "_order"),
    ):
        note(module, name)
    model(dataset).fit(batches(dataset), validation_data=batches(dataset), verbose=0)
    assert status == {name: {"DISABLED"} for name in ("rate", "distortion", "standard_normal_rows", "_order")}
