import itertools

import crash
import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfp_cvae
from tfp_cvae.backup import Backup
from tfp_cvae.build import build_cvae
from tfp_cvae.callbacks import HistoryCSV, ImageGrid, KLWarmUp, SwapEMAWeights
from tfp_cvae.losses import ELBO, NegativeELBO


class InterruptionError(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    """Interrupts in the middle of an epoch, or in its validation."""

    def __init__(self, epoch, event):
        super().__init__()
        self.asked, self.epoch = epoch, None
        setattr(self, event, self.interrupt)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def interrupt(self, *args, **kwargs):
        if self.epoch == self.asked:
            raise InterruptionError


class Counting(keras.callbacks.Callback):
    """A callback of a user, which remembers something."""

    def __init__(self):
        super().__init__()
        self.seen, self.total = [], np.zeros(2)

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(epoch)
        self.total = self.total + np.array([1, logs["loss"]])

    def get_state(self):
        return {"seen": self.seen, "total": self.total}

    def set_state(self, state):
        self.seen, self.total = state["seen"], state["total"]


class Notebook:
    """What a user has in a notebook, in a process of its own."""

    def __init__(self, dataset, folder, network="mlp", prior="standard", **compiled):
        keras.utils.set_random_seed(1)
        self.cvae = build_cvae((8, 8, 1), 3, latent_size=4, network=network, width=8, prior=prior)
        self.cvae.compile(
            keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8),
            loss=NegativeELBO(kl_weight=0.5),
            metrics=[ELBO()],
            **compiled,
        )
        self.batches = dataset.train.batches(32, seed=5)
        self.validation = dataset.validation.batches(11)
        self.folder = folder
        self.callbacks = [
            SwapEMAWeights(),
            KLWarmUp(3, 0.5),
            HistoryCSV(folder / "history.csv", 216),
            ImageGrid(folder / "grid.npz"),
            keras.callbacks.ReduceLROnPlateau("val_elbo", mode="max", patience=1, min_delta=2.0),
            keras.callbacks.ModelCheckpoint(str(folder / "best.keras"), "val_elbo", mode="max", save_best_only=True),
            keras.callbacks.EarlyStopping("val_elbo", mode="max", patience=2, min_delta=2.0, restore_best_weights=True),
            Counting(),
        ]

    def fit(self, epochs=9, interrupt=None):
        self.backup = Backup(self.folder / "backup", self.batches, self.callbacks, every_seconds=0)
        return self.cvae.fit(
            self.batches,
            validation_data=self.validation,
            epochs=epochs,
            initial_epoch=self.backup.initial_epoch,
            callbacks=[*self.callbacks, self.backup, *([Interrupt(*interrupt)] if interrupt else [])],
            verbose=0,
        )

    def result(self, history):
        """All that the training has come to."""
        with h5py.File(self.folder / "weights.h5", "w") as file:
            for index, variable in enumerate([*self.cvae.variables, *self.cvae.optimizer.variables]):
                file[str(index)] = variable.numpy()
            weights = {key: value[()] for key, value in file.items()}
        remembered = [
            {name: getattr(c, name, None) for name in ("best", "wait", "total", "seen")} for c in self.callbacks
        ]
        with np.load(self.folder / "grid.npz") as grid:
            images = dict(grid)
        best = keras.models.load_model(self.folder / "best.keras")
        return {
            "weights": weights,
            "best": {str(i): v.numpy() for i, v in enumerate(best.variables)},
            "history": history.history,
            "epochs": history.epoch,
            "remembered": {str(index): state for index, state in enumerate(remembered)},
            "images": images,
        }


@pytest.fixture
def folders(tmp_path):
    def folder(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return folder


@pytest.mark.parametrize(
    ("network", "prior", "compiled"),
    [
        ("mlp", "standard", {"jit_compile": True, "steps_per_execution": 3}),
        ("residual", "label", {}),
        ("conv", "flow", {}),
    ],
)
def test_interrupted_fits_end_as_one_that_was_not(dataset, folders, network, prior, compiled):
    one = Notebook(dataset, folders("one"), network, prior, **compiled)
    expected = one.result(one.fit())
    # Stopped early, and with a learning rate that has fallen: there was something to remember.
    assert len(expected["epochs"]) > 4
    assert expected["history"]["lr"][0] > expected["history"]["lr"][-1]
    folder = folders("other")
    for interrupt in [
        (0, "on_train_batch_end"),
        (2, "on_test_batch_end"),
        (2, "on_train_batch_end"),
        (4, "on_train_batch_end"),
    ]:
        with pytest.raises(InterruptionError):
            Notebook(dataset, folder, network, prior, **compiled).fit(interrupt=interrupt)
    other = Notebook(dataset, folder, network, prior, **compiled)
    found = other.result(other.fit())
    assert other.backup.initial_epoch == 4
    assert crash.differences(expected, found) == []


def test_a_cell_is_run_again_after_an_interruption(dataset, folders):
    """In the same process, with the same model, callbacks and batches."""
    one = Notebook(dataset, folders("one"))
    expected = one.result(one.fit())
    other = Notebook(dataset, folders("other"))
    for interrupt in [(3, "on_test_batch_end"), (3, "on_train_batch_end")]:
        with pytest.raises(InterruptionError):
            other.fit(interrupt=interrupt)
    assert crash.differences(expected, other.result(other.fit())) == []


def test_more_epochs(dataset, folders):
    one = Notebook(dataset, folders("one"))
    expected = one.result(one.fit(epochs=4))
    other = Notebook(dataset, folders("other"))
    other.fit(epochs=2)
    again = Notebook(dataset, other.folder)
    # But for the average, into which Keras turns the weights at the end of `fit`.
    found = again.fit(epochs=4)
    assert found.epoch == expected["epochs"]
    assert again.backup.initial_epoch == 2


def test_nothing_left_to_do(dataset, folders):
    one = Notebook(dataset, folders("one"))
    expected = one.result(one.fit(epochs=3))
    again = Notebook(dataset, one.folder)
    found = again.result(again.fit(epochs=3))
    assert again.backup.finished
    assert crash.differences(expected, found) == []


def test_a_backup_every_so_often(dataset, folders, monkeypatch):
    clock = itertools.count(step=10)
    monkeypatch.setattr("tfp_cvae.backup.time.monotonic", lambda: float(next(clock)))
    written = []
    write = Backup._write
    monkeypatch.setattr(
        Backup, "_write", lambda self, epoch, finished: written.append(epoch) or write(self, epoch, finished=finished)
    )
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile("adam", loss=NegativeELBO())
    backup = Backup(folders("b"), every_seconds=35)
    cvae.fit(dataset.validation.batches(11), epochs=9, callbacks=[backup], verbose=0)
    # The clock goes on by 10 at each look and each backup.
    assert written == [4, 8, 9]
    assert [path.name for path in backup.folder.iterdir()] == ["9"]


def fitted(dataset, folder, **settings):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, **{"width": 8, **settings})
    cvae.compile("adam", loss=NegativeELBO())
    cvae.fit(dataset.validation.batches(11), epochs=2, callbacks=[Backup(folder)], verbose=0)


def test_initial_epoch_is_forgotten(dataset, tmp_path):
    fitted(dataset, tmp_path)
    with pytest.raises(
        ValueError, match=r"initial_epoch: expected 2, .* got 0; pass initial_epoch=backup.initial_epoch"
    ):
        fitted(dataset, tmp_path)


@pytest.mark.parametrize("settings", [{"width": 9}, {"depth": 1}, {"prior": "label"}])
def test_backup_of_another_model(dataset, tmp_path, settings):
    fitted(dataset, tmp_path)
    with pytest.raises(ValueError, match="expected a backup of this model and optimizer, got another one"):
        fitted(dataset, tmp_path, **settings)


def test_backup_is_damaged(dataset, tmp_path):
    fitted(dataset, tmp_path)
    (tmp_path / "2/state.json").write_text("{")
    with pytest.raises(
        ValueError, match=f"{tmp_path}/2: expected a whole backup, got an unreadable one .* delete {tmp_path}"
    ):
        Backup(tmp_path)


def test_weights_of_a_backup_are_damaged(dataset, tmp_path):
    fitted(dataset, tmp_path)
    (data,) = (tmp_path / "2").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:100])
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile("adam", loss=NegativeELBO())
    with pytest.raises(ValueError, match="expected a backup of this model and optimizer"):
        cvae.fit(dataset.validation.batches(11), epochs=3, initial_epoch=2, callbacks=[Backup(tmp_path)], verbose=0)


def test_batches_that_do_not_count_epochs(dataset, tmp_path):
    for batches in (tf.data.Dataset.range(3), dataset.test.batches(12), dataset.train.batches(24).take(2)):
        with pytest.raises(TypeError, match=r"batches: expected a result of Split.batches of the training split"):
            Backup(tmp_path, batches)


def test_order_of_the_callbacks(dataset, tmp_path):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(keras.optimizers.Adam(use_ema=True), loss=NegativeELBO())
    swap = SwapEMAWeights()
    backup = Backup(tmp_path, callbacks=[swap], every_seconds=0)
    with pytest.raises(ValueError, match="callbacks: expected Backup after SwapEMAWeights in the list, got it before"):
        cvae.fit(dataset.validation.batches(11), epochs=3, callbacks=[backup, swap], verbose=0)


def test_loss_that_is_not_finite_is_not_kept(dataset, tmp_path):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(keras.optimizers.SGD(1e30), loss=NegativeELBO())
    backup = Backup(tmp_path)
    cvae.fit(dataset.train.batches(24), epochs=3, callbacks=[keras.callbacks.TerminateOnNaN(), backup], verbose=0)
    assert list(tmp_path.iterdir()) == []


def test_name_is_public():
    assert tfp_cvae.Backup is Backup
