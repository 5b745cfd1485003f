import csv

import numpy as np
import pytest
import tf_keras as keras

from tfp_cvae.build import build_cvae
from tfp_cvae.callbacks import HISTORY_COLUMNS, HistoryCSV, ImageGrid, KLWarmUp, StopAtNonFiniteLoss, SwapEMAWeights
from tfp_cvae.losses import ELBO, NegativeELBO, NegativeIWAE, Rate


def compiled(optimizer="adam", loss=None):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), 3, latent_size=4, width=16)
    cvae.compile(optimizer, loss=loss or NegativeELBO(), metrics=[ELBO(), Rate()])
    return cvae


def test_kl_warm_up(batch):
    cvae = compiled(loss=NegativeELBO(kl_weight=2.0))
    history = cvae.fit(batch, batch[0], epochs=4, callbacks=[KLWarmUp(4)], verbose=0).history
    # The loss is D + weight * R, the ELBO -(D + R).
    weights = 1 + (np.array(history["loss"]) + history["elbo"]) / np.array(history["rate"])
    np.testing.assert_allclose(weights, [0.5, 1.0, 1.5, 2.0], rtol=1e-3)


def test_kl_warm_up_ends_at_the_weight_of_the_loss(batch, tmp_path):
    loss = NegativeELBO(kl_weight=4.0)
    cvae = compiled(loss=loss)
    cvae.fit(batch, batch[0], epochs=3, callbacks=[KLWarmUp(2)], verbose=0)
    assert loss.kl_weight.numpy() == 4
    # Training may end before; and what is saved meanwhile is the loss as it was given.
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((float(loss.kl_weight), loss.get_config()["kl_weight"]))
    )
    cvae.fit(batch, batch[0], epochs=1, callbacks=[KLWarmUp(8), look], verbose=0)
    assert seen == [(0.5, 4.0)]
    assert loss.kl_weight.numpy() == 4
    cvae.save(tmp_path / "cvae.keras")
    assert keras.models.load_model(tmp_path / "cvae.keras").loss.kl_weight.numpy() == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "epochs: expected an integer >= 1, got 0"),
        ((-2,), "epochs: expected an integer >= 1, got -2"),
    ],
)
def test_kl_warm_ups_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        KLWarmUp(*arguments)


@pytest.mark.parametrize("scaled", [False, True])
def test_averages_of_a_loaded_model_begin_at_its_weights(tmp_path, batch, scaled):
    """Of one that was compiled again and saved before its first step; scaled, where Keras cannot load that, after it."""
    cvae = compiled()
    cvae.fit(batch, batch[0], epochs=2, verbose=0)
    optimizer = keras.optimizers.Adam(1e-4, use_ema=True, ema_momentum=0.99)
    optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer) if scaled else optimizer
    cvae.compile(optimizer, loss=NegativeELBO())
    if scaled:
        cvae.fit(batch, batch[0], shuffle=False, verbose=0)
    cvae.save(tmp_path / "cvae.keras")
    loaded = keras.models.load_model(tmp_path / "cvae.keras")
    for model in (cvae, loaded):
        model.fit(batch, batch[0], shuffle=False, verbose=0)
    for own, other in zip(cvae.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)


def test_averages_of_an_optimizer_that_was_built_before_a_network_was_frozen(batch):
    """As Keras advises for training in stages: it has an average of each weight, and not of those alone that train."""
    cvae = compiled()
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    optimizer.build(cvae.trainable_variables)
    # Other weights than those with which the averages were made.
    cvae.set_weights([weight + 0.1 for weight in cvae.get_weights()])
    cvae.encoder.trainable = False
    cvae.compile(optimizer, loss=NegativeELBO(), metrics=[ELBO()])
    frozen, begin = cvae.encoder.get_weights(), cvae.decoder.get_weights()
    trained = []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: trained.extend(cvae.decoder.get_weights()))
    cvae.fit(batch, batch[0], batch_size=len(batch[0]), callbacks=[look, SwapEMAWeights()], verbose=0)
    assert_equal(cvae.encoder.get_weights(), frozen)
    for average, one, other in zip(cvae.decoder.get_weights(), begin, trained, strict=True):
        np.testing.assert_allclose(average, 0.9 * one + 0.1 * other, rtol=1e-5, atol=1e-6)
    # Those of the frozen network begin at its weights, too, for the stage in which it trains.
    averages = [variable.numpy() for variable in optimizer._model_variables_moving_average]
    for weight in frozen:
        assert any(np.array_equal(weight, average) for average in averages)


def test_kl_warm_up_needs_a_kl_weight(batch):
    with pytest.raises(TypeError, match="loss: expected NegativeELBO for KLWarmUp"):
        compiled(loss=NegativeIWAE()).fit(batch, batch[0], callbacks=[KLWarmUp(4)], verbose=0)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping(),
        keras.callbacks.EarlyStopping("loss", start_from_epoch=2),
        keras.callbacks.ModelCheckpoint("best.keras", save_best_only=True),
        keras.callbacks.ReduceLROnPlateau(),
    ],
)
def test_losses_of_a_warm_up_are_not_compared(batch, callback):
    with pytest.raises(ValueError, match=r'expected monitor="val_elbo" and mode="max" of .* beside KLWarmUp'):
        compiled().fit(batch, batch[0], callbacks=[callback, KLWarmUp(4)], verbose=0)


def test_a_warm_up_beside_a_callback_that_compares_losses_where_nothing_is_trained(batch):
    cvae = compiled()
    callbacks = [keras.callbacks.EarlyStopping(), KLWarmUp(4)]
    assert np.isfinite(cvae.evaluate(batch, batch[0], callbacks=callbacks, verbose=0)).all()


def test_what_a_warm_up_does_not_change_may_be_compared(batch, tmp_path):
    callbacks = [
        KLWarmUp(4),
        keras.callbacks.EarlyStopping("val_elbo", mode="max"),
        keras.callbacks.EarlyStopping("val_loss", start_from_epoch=3),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "newest.keras")),
    ]
    history = compiled().fit(batch, batch[0], validation_split=0.2, callbacks=callbacks, verbose=0).history
    assert len(history["loss"]) == 1


def test_swap_ema_weights_validates_and_keeps_the_average(dataset):
    momentum = 0.8
    train, validation = dataset.train.batches(32), dataset.validation.batches(8)
    average, trained, shown, validated = [], [], [], []

    class Average(keras.callbacks.Callback):
        """The same average, made in NumPy from what the optimizer leaves after each step."""

        def on_train_begin(self, logs=None):
            average[:] = [v.numpy() for v in self.model.trainable_variables]

        def on_train_batch_end(self, step, logs=None):
            trained[:] = [v.numpy() for v in self.model.trainable_variables]
            for index, value in enumerate(trained):
                average[index] = momentum * average[index] + (1 - momentum) * value

    class Look(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            validated[:] = [v.numpy() for v in self.model.trainable_variables]

        def on_epoch_end(self, epoch, logs=None):
            shown[:] = [v.numpy() for v in self.model.trainable_variables]
            for one, two, expected in zip(shown, validated, average, strict=True):
                np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(two, expected, rtol=1e-4, atol=1e-6)

    cvae = compiled(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum))
    callbacks = [Average(), SwapEMAWeights(), Look()]
    history = cvae.fit(train, validation_data=validation, epochs=3, callbacks=callbacks, verbose=0).history
    for variable, expected in zip(cvae.trainable_variables, average, strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-6)
    assert any(not np.allclose(one, other, atol=1e-3) for one, other in zip(average, trained, strict=True))
    measured = cvae.evaluate(validation, verbose=0, return_dict=True)
    assert measured["elbo"] == pytest.approx(history["val_elbo"][-1], rel=1e-5)
    # The swaps leave the training itself as it was.
    plain = compiled(keras.optimizers.Adam(0.01))
    assert plain.fit(dataset.train.batches(32), epochs=3, verbose=0).history["loss"] == history["loss"]


@pytest.mark.parametrize("scaled", [False, True])
def test_swap_ema_weights_needs_an_average(batch, scaled):
    optimizer = keras.optimizers.Adam()
    cvae = compiled(keras.mixed_precision.LossScaleOptimizer(optimizer) if scaled else optimizer)
    with pytest.raises(ValueError, match="optimizer: expected use_ema=True for SwapEMAWeights, got "):
        cvae.fit(batch, batch[0], callbacks=[SwapEMAWeights()], verbose=0)


def test_weights_that_became_nan_do_not_come_back(dataset):
    class BreakTheLastStep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for variable in self.model.trainable_variables:
                variable.assign(variable * np.nan)
            logs["loss"] = np.nan

    cvae = compiled(keras.optimizers.Adam(0.01, use_ema=True))
    batches, those = dataset.train.batches(32), [SwapEMAWeights(), StopAtNonFiniteLoss()]
    before = cvae.get_weights()
    with pytest.raises(ValueError, match=r"loss: expected finite values, got nan in epoch 1, after its last step"):
        cvae.fit(batches, callbacks=[BreakTheLastStep(), *those], verbose=0)
    for one, other in zip(cvae.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    cvae.compile(keras.optimizers.Adam(0.001, use_ema=True), loss=NegativeELBO())
    assert np.isfinite(cvae.fit(batches, callbacks=those, verbose=0).history["loss"]).all()


BEST = {"monitor": "val_elbo", "mode": "max"}


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda path: keras.callbacks.ModelCheckpoint(str(path / "x.keras"), save_best_only=True, **BEST), "after"),
        (lambda path: keras.callbacks.EarlyStopping(restore_best_weights=True, **BEST), "after"),
        (lambda path: StopAtNonFiniteLoss(), "after"),
        (lambda path: keras.callbacks.BackupAndRestore(str(path / "backup")), "before"),
    ],
)
def test_order_of_what_keeps_weights_and_the_average(batch, tmp_path, make, place):
    cvae = compiled(keras.optimizers.Adam(use_ema=True))
    other = make(tmp_path)
    order = [SwapEMAWeights(), other] if place == "after" else [other, SwapEMAWeights()]
    fit = {"validation_split": 0.2, "verbose": 0}
    with pytest.raises(
        ValueError, match=f"callbacks: expected {type(other).__name__} {place} SwapEMAWeights in the list, got it"
    ):
        cvae.fit(batch, batch[0], callbacks=order[::-1], **fit)
    assert int(cvae.optimizer.iterations) == 0
    cvae.fit(batch, batch[0], callbacks=order, **fit)


def test_what_keeps_no_weights_or_those_of_each_epoch_may_be_before_the_average(batch, tmp_path):
    cvae = compiled(keras.optimizers.Adam(use_ema=True))
    free = [keras.callbacks.EarlyStopping(**BEST), keras.callbacks.ModelCheckpoint(str(tmp_path / "each.keras"))]
    cvae.fit(batch, batch[0], validation_split=0.2, callbacks=[*free, SwapEMAWeights()], verbose=0)
    assert (tmp_path / "each.keras").exists()


class InterruptionError(Exception):
    pass


class InterruptWhileSwapped(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise InterruptionError


def interrupted(batch, optimizer=None):
    """A model that holds its average since an exception, the callback that put it there, and what was trained."""
    cvae = compiled(optimizer or keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))
    swap, trained = SwapEMAWeights(), []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: trained.extend(cvae.get_weights()))
    with pytest.raises(InterruptionError):
        cvae.fit(batch, batch[0], callbacks=[look, swap, InterruptWhileSwapped()], verbose=0)
    return cvae, swap, trained


def begun_with(cvae, batch, callback):
    """The weights with which a training with the callback begins."""
    found = []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: found.extend(cvae.get_weights()))
    cvae.fit(batch, batch[0], callbacks=[callback, look], verbose=0)
    return found


def assert_equal(weights, expected):
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_after_an_exception_the_training_goes_on_with_what_was_trained(batch):
    cvae, swap, trained = interrupted(batch)
    assert not all(np.array_equal(one, other) for one, other in zip(cvae.get_weights(), trained, strict=True))
    assert_equal(begun_with(cvae, batch, swap), trained)


def test_what_was_trained_does_not_come_into_another_model(batch):
    cvae, swap, _ = interrupted(batch)
    other = compiled(keras.optimizers.Adam(0.01, use_ema=True))
    # The same numbers, as of a model that was loaded from a checkpoint.
    other.set_weights(cvae.get_weights())
    averages = cvae.get_weights()
    assert_equal(begun_with(other, batch, swap), averages)
    assert_equal(cvae.get_weights(), averages)


def test_what_was_trained_does_not_come_over_weights_that_were_given_since(batch, tmp_path):
    before = compiled().get_weights()
    for give in ("set_weights", "load_weights"):
        cvae, swap, _ = interrupted(batch)
        if give == "set_weights":
            cvae.set_weights(before)
        else:
            compiled().save_weights(tmp_path / "before.h5")
            cvae.load_weights(tmp_path / "before.h5")
        assert_equal(begun_with(cvae, batch, swap), before)


def test_bad_weights_do_not_come_over_those_that_were_put_back(batch):
    """Finite ones, whose bound overflows in the validation alone."""
    cvae, before = compiled(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)), []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: before.extend(cvae.get_weights()))

    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for variable in self.model.trainable_variables:
                variable.assign(variable + 1e6)
            logs["val_loss"] = np.inf

    swap = SwapEMAWeights()
    with pytest.raises(ValueError, match="val_loss: expected finite values, got inf in epoch 1, after its last step"):
        cvae.fit(batch, batch[0], callbacks=[look, Spoil(), swap, StopAtNonFiniteLoss()], verbose=0)
    assert_equal(begun_with(cvae, batch, swap), before)


def test_history_csv(tmp_path, dataset):
    cvae = compiled()
    path = tmp_path / "history.csv"
    history = cvae.fit(
        dataset.train.batches(32),
        validation_data=dataset.validation.batches(8),
        epochs=2,
        callbacks=[HistoryCSV(path, images_per_epoch=len(dataset.train))],
        verbose=0,
    ).history
    rows = list(csv.DictReader(path.open()))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["val_elbo"]) for row in rows] == history["val_elbo"]
    for row in rows:
        assert float(row["images_per_second"]) == pytest.approx(len(dataset.train) / float(row["seconds"]), rel=0.05)


def test_the_seconds_of_the_history_are_of_the_training_alone(tmp_path, dataset, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tfp_cvae.callbacks.time.perf_counter", lambda: clock[0])

    def later(seconds):
        def hook(*_):
            clock[0] += seconds

        return hook

    log = HistoryCSV(tmp_path / "history.csv", images_per_epoch=60)
    passes = keras.callbacks.LambdaCallback(on_train_batch_end=later(1))
    passes.on_test_batch_end = later(100)
    data = dataset.train.batches(32, drop_remainder=True)
    validation = dataset.validation.batches(8)
    compiled().fit(data, validation_data=validation, callbacks=[passes, log], verbose=0)
    (row,) = csv.DictReader((tmp_path / "history.csv").open())
    assert clock[0] > 100
    assert (float(row["seconds"]), float(row["images_per_second"])) == (len(data), 60 / len(data))


def test_image_grid(tmp_path, dataset):
    cvae = compiled()
    path = tmp_path / "images.npz"
    cvae.fit(dataset.train.batches(64), epochs=12, callbacks=[ImageGrid(path, seed=5)], verbose=0)
    with np.load(path) as file:
        epochs, images = file["epochs"], file["images"]
    assert epochs.tolist() == [1, 2, 5, 10, 12]
    assert images.shape == (5, 3, 8, 8, 1)
    # The last column is what the model generates now, from one latent for all classes.
    expected = np.round(cvae.generate([0, 1, 2], seed=[5, 5, 5]).numpy() * 255)
    np.testing.assert_array_equal(images[-1], expected)
    assert not np.array_equal(images[0], images[-1])


def test_weights_before_a_loss_that_is_not_finite_are_put_back(cvae, dataset):
    cvae.compile(keras.optimizers.SGD(1e-3), NegativeELBO())
    stop = StopAtNonFiniteLoss()
    before = []

    class Explode(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            before[:] = self.model.get_weights()
            if epoch == 1:
                self.model.optimizer.learning_rate.assign(1e30)

    with pytest.raises(
        ValueError, match=r"loss: expected finite values, got (nan|inf) in epoch 2, step [23], and stopped"
    ):
        cvae.fit(dataset.train.batches(64), epochs=3, callbacks=[Explode(), stop], verbose=0)
    assert any(np.any(weight) for weight in before)
    for kept, expected in zip(cvae.get_weights(), before, strict=True):
        np.testing.assert_array_equal(kept, expected)


def test_a_validation_that_is_not_finite_stops(cvae, dataset, tmp_path):
    """Of the last step of an epoch, which the mean of the losses before it does not show."""
    cvae.compile(keras.optimizers.SGD(1e30), NegativeELBO())
    with pytest.raises(ValueError, match=r"val_loss: expected finite values, got nan in epoch 1, after its last step"):
        cvae.fit(
            dataset.train.batches(len(dataset.train)),
            validation_data=dataset.validation.batches(11),
            callbacks=[StopAtNonFiniteLoss(), keras.callbacks.ModelCheckpoint(str(tmp_path / "x.keras"))],
            verbose=0,
        )
    assert not (tmp_path / "x.keras").exists()


def test_weights_that_are_not_finite_are_not_kept(batch, tmp_path):
    """Of the last step of an epoch without validation, whose loss is measured before it."""
    cvae = compiled()
    before = cvae.get_weights()

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            kernel = self.model.encoder.trainable_variables[0]
            kernel.assign(kernel * np.nan)

    stop, checkpoint = StopAtNonFiniteLoss(), keras.callbacks.ModelCheckpoint(str(tmp_path / "x.keras"))
    with pytest.raises(
        ValueError, match=r"weight .*kernel.*: expected finite values, got nan in epoch 1, after its last"
    ):
        cvae.fit(batch, batch[0], batch_size=len(batch[0]), callbacks=[Break(), stop, checkpoint], verbose=0)
    assert not (tmp_path / "x.keras").exists()
    for kept, expected in zip(cvae.get_weights(), before, strict=True):
        np.testing.assert_array_equal(kept, expected)


def test_a_metric_that_is_not_finite_does_not_stop(batch):
    class Odd(keras.metrics.Metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            pass

        def result(self):
            return np.nan

    cvae = compiled()
    cvae.compile("adam", loss=NegativeELBO(), metrics=[Odd(name="odd")])
    history = cvae.fit(batch, batch[0], epochs=2, callbacks=[StopAtNonFiniteLoss()], verbose=0).history
    assert np.isnan(history["odd"]).all()
    assert history["loss"][1] < history["loss"][0]


def test_a_second_fit_begins_its_files_again(batch, tmp_path):
    callbacks = [HistoryCSV(tmp_path / "history.csv", images_per_epoch=10), ImageGrid(tmp_path / "grid.npz")]
    for epochs in (6, 3):
        compiled().fit(batch, batch[0], epochs=epochs, callbacks=callbacks, verbose=0)
    with (tmp_path / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with np.load(tmp_path / "grid.npz") as grid:
        assert grid["epochs"].tolist() == [1, 2, 3]


def test_seconds_are_without_other_callbacks(batch, tmp_path, monkeypatch):
    slept = 0.0

    class Sleep(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            nonlocal slept
            slept += 1000

        on_test_begin = on_epoch_end = on_epoch_begin

    monkeypatch.setattr("tfp_cvae.callbacks.time.perf_counter", lambda: slept)
    history = HistoryCSV(tmp_path / "history.csv", images_per_epoch=10)
    tick = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: Sleep.on_epoch_begin(None, 0))
    cvae = compiled()
    cvae.fit(batch, batch[0], batch_size=96, validation_split=0.2, callbacks=[history, Sleep(), tick], verbose=0)
    steps = -(-int(0.8 * len(batch[0])) // 96)
    assert [row["seconds"] for row in history.rows] == [1000 * steps]


def test_image_grid_is_an_npz(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .npz, got .*grid.png"):
        ImageGrid(tmp_path / "grid.png")
