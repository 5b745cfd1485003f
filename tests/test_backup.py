import itertools
import json
import shutil

import crash
import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import small_cvae, stripes

import tfp_cvae
from tfp_cvae.backup import Backup
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.callbacks import HistoryCSV, ImageGrid, KLWarmUp, SwapEMAWeights
from tfp_cvae.data import make_dataset
from tfp_cvae.losses import ELBO, NegativeELBO, SemiSupervisedNegativeELBO


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

    every_seconds = 0

    def __init__(self, dataset, folder, network="mlp", prior="standard", **compiled):
        keras.utils.set_random_seed(1)
        self.cvae = small_cvae(network, prior)
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
            KLWarmUp(3),
            HistoryCSV(folder / "history.csv", 216),
            ImageGrid(folder / "grid.npz"),
            keras.callbacks.ReduceLROnPlateau("val_elbo", mode="max", patience=1, min_delta=2.0),
            keras.callbacks.ModelCheckpoint(str(folder / "best.keras"), "val_elbo", mode="max", save_best_only=True),
            keras.callbacks.EarlyStopping("val_elbo", mode="max", patience=2, min_delta=2.0, restore_best_weights=True),
            Counting(),
        ]

    def fit(self, epochs=9, interrupt=None):
        self.backup = Backup(self.folder / "backup", self.batches, every_seconds=self.every_seconds)
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


@pytest.fixture(scope="module")
def dataset():
    """The same for all tests, as for the trainings that several of them look at."""
    return make_dataset("stripes", ["left", "middle", "right"], stripes())


@pytest.fixture
def folders(tmp_path):
    def folder(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return folder


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """A training that nothing interrupts, until it stops early: its folder, and what it has come to."""
    one = Notebook(dataset, tmp_path_factory.mktemp("undisturbed"))
    return one.folder, one.result(one.fit(40))


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
    # At every moment once; which one it is does not depend on the network.
    moments = [
        (0, "on_train_batch_end"),
        (2, "on_test_batch_end"),
        (2, "on_train_batch_end"),
        (4, "on_train_batch_end"),
    ]
    for interrupt in moments if network == "mlp" else moments[-1:]:
        with pytest.raises(InterruptionError):
            Notebook(dataset, folder, network, prior, **compiled).fit(interrupt=interrupt)
    assert Backup(folder / "backup").initial_epoch == 4
    other = Notebook(dataset, folder, network, prior, **compiled)
    found = other.result(other.fit())
    assert other.backup.finished
    assert crash.differences(expected, found) == []


@pytest.mark.parametrize("every_seconds", [0, 1000])
def test_a_cell_is_run_again_after_an_interruption(dataset, folders, undisturbed, every_seconds):
    """In the same process, with the same model, callbacks and batches."""
    _, expected = undisturbed
    other = Notebook(dataset, folders("other"))
    other.every_seconds = every_seconds
    for interrupt in [(1, "on_test_batch_end"), (3, "on_train_batch_end")]:
        with pytest.raises(InterruptionError):
            other.fit(40, interrupt)
    found = other.result(other.fit(40))
    assert other.backup.finished
    assert crash.differences(expected, found) == []


def test_a_training_that_has_ended_is_not_trained_again(dataset, folders, tmp_path, undisturbed):
    """After early stopping, and after the last epoch, with the weights that were restored or averaged in the end."""
    folder, expected = undisturbed
    three = Notebook(dataset, folders("3"))
    ended = {40: (shutil.copytree(folder, tmp_path / "40"), expected), 3: (three.folder, three.result(three.fit(3)))}
    for epochs, (folder, expected) in ended.items():
        assert (len(expected["epochs"]) < epochs) == (epochs == 40)
        again = Notebook(dataset, folder)
        found = again.result(again.fit(epochs))
        assert again.backup.finished
        assert crash.differences(expected, found) == []
    with pytest.raises(
        ValueError, match=r"epochs: expected 3, after which the training in .* has come to its end, got 4"
    ):
        Notebook(dataset, three.folder).fit(4)


def test_data_that_begin_with_another_epoch(dataset, folders):
    results = []
    for name, interrupts in (("one", []), ("other", [(1, "on_train_batch_end")])):
        folder = folders(name)
        for interrupt in [*interrupts, None]:
            book = Notebook(dataset, folder)
            book.batches = dataset.train.batches(32, seed=5, initial_epoch=7)
            if interrupt:
                with pytest.raises(InterruptionError):
                    book.fit(3, interrupt)
        results.append(book.result(book.fit(3)))
    assert crash.differences(*results) == []


def test_a_backup_every_so_often(dataset, folders, monkeypatch):
    # By default a hundredth of the time at most, which this test cannot wait for.
    assert tfp_cvae.backup._TIMES_AS_LONG == 100
    clock = itertools.count(step=10)
    monkeypatch.setattr("tfp_cvae.backup._TIMES_AS_LONG", 3)
    monkeypatch.setattr("tfp_cvae.backup.time.monotonic", lambda: float(next(clock)))
    written = []
    write = Backup._write

    def watched(self, epoch, finished):
        written.append(epoch)
        write(self, epoch, finished=finished)

    monkeypatch.setattr(Backup, "_write", watched)
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile("adam", loss=NegativeELBO())
    # The clock goes on by 10 at each look, and a backup looks twice: by default the next one is 3 * 10 later here.
    every = {0: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 35: [0, 4, 8, 9], 1000: [0, 9], None: [0, 3, 6, 9]}
    for every_seconds, expected in every.items():
        written.clear()
        backup = Backup(folders(f"{every_seconds}"), every_seconds=every_seconds)
        cvae.fit(dataset.validation.batches(11), epochs=9, callbacks=[backup], verbose=0)
        assert written == expected
        assert [path.name for path in backup.folder.iterdir()] == ["9"]
        assert (backup.epoch, backup.finished) == (9, True)
    backup.delete()
    assert (backup.initial_epoch, list(backup.folder.iterdir())) == (0, [])
    cvae.fit(dataset.validation.batches(11), epochs=1, callbacks=[backup], verbose=0)
    assert backup.epoch == 1


def fit(
    dataset,
    folder,
    *,
    loss=None,
    optimizer="adam",
    seed=0,
    num_samples=1,
    epochs=2,
    others=(),
    initial_epoch=0,
    moment="on_train_batch_end",
    **batches,
):
    """A training that is interrupted in its second epoch, or one that goes on with another such."""
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8, num_samples=num_samples, seed=seed)
    cvae.compile(optimizer, loss=loss or NegativeELBO())
    batches = dataset.train.batches(**{"batch_size": 72, **batches})
    callbacks = [*others, Backup(folder, batches, every_seconds=0), Interrupt(1, moment)]
    with pytest.raises(InterruptionError):
        cvae.fit(batches, epochs=epochs, initial_epoch=initial_epoch, callbacks=callbacks, verbose=0)


@pytest.fixture(scope="module")
def begun(dataset, tmp_path_factory):
    """Backup of a training that has gone on with itself, which the tests copy."""
    folder = tmp_path_factory.mktemp("begun")
    fit(dataset, folder)
    fit(dataset, folder, initial_epoch=1)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_epoch": 0}, "initial_epoch: expected 1, .* got 0; pass initial_epoch=backup.initial_epoch to fit"),
        ({"initial_epoch": 2, "epochs": 3}, "initial_epoch: expected 1, .* got 2"),
        ({"optimizer": keras.optimizers.Adam(1e-4)}, "compile: expected .* as of the training in .*, got "),
        ({"loss": NegativeELBO(free_bits=1.0)}, "compile: expected "),
        ({"seed": 1}, "seed: expected 0 as of the training in .*, got 1; go on as it was begun"),
        ({"num_samples": 2}, "num_samples: expected 1 as of the training in .*, got 2; go on"),
        ({"batch_size": 36}, "batches: expected .*72.* got .*36"),
        ({"binarization": "threshold"}, "batches: expected .*dynamic.* got .*threshold"),
        ({"others": [Counting()]}, "callbacks: expected .* got .*Counting"),
    ],
)
def test_backup_of_another_training(dataset, begun, tmp_path, change, message):
    folder = shutil.copytree(begun, tmp_path / "backup")
    with pytest.raises(ValueError, match=message):
        fit(dataset, folder, **{"initial_epoch": 1, **change})


AS_BEGUN = [KLWarmUp(3), keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate)]


def averaging():
    return keras.optimizers.Adam(use_ema=True)


@pytest.fixture(scope="module")
def begun_with_callbacks(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun_with_callbacks")
    fit(dataset, folder, optimizer=averaging(), others=AS_BEGUN)
    # What only looks on may come and go.
    looks = [keras.callbacks.LambdaCallback(), keras.callbacks.TensorBoard(tmp_path_factory.mktemp("tensorboard"))]
    fit(dataset, folder, optimizer=averaging(), initial_epoch=1, others=[*AS_BEGUN, *looks])
    return folder


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], r"expected \['KLWarmUp\(3\)', 'LearningRateScheduler'\] as of the training in .*, got \[\]; go on as it"),
        ([KLWarmUp(4), AS_BEGUN[1]], r"got \['KLWarmUp\(4\)', 'LearningRateScheduler'\]"),
        (AS_BEGUN[:1], r"got \['KLWarmUp\(3\)'\]"),
        ([SwapEMAWeights(), *AS_BEGUN], r"got \['SwapEMAWeights', 'KLWarmUp"),
    ],
)
def test_backup_of_a_training_with_other_callbacks(dataset, begun_with_callbacks, tmp_path, others, message):
    folder = shutil.copytree(begun_with_callbacks, tmp_path / "backup")
    with pytest.raises(ValueError, match=f"training_callbacks: .*{message}"):
        fit(dataset, folder, optimizer=averaging(), initial_epoch=1, others=others)
    # Of an older backup it is not known. It has gone on with it before the first step, which would have to be traced.
    path = folder / "1" / "state.json"
    state = json.loads(path.read_text())
    del state["settings"]["training_callbacks"]
    path.write_text(json.dumps(state))
    fit(dataset, folder, optimizer=averaging(), initial_epoch=1, others=others, moment="on_train_batch_begin")


def test_backup_of_arrays_knows_how_many_batches_there_are(dataset, tmp_path):
    image, one_hot = dataset.train.binarized(), dataset.train.one_hot()

    def fit_arrays(batch_size, steps=None):
        cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
        cvae.compile("adam", loss=NegativeELBO())
        backup = Backup(tmp_path, every_seconds=0)
        options = {"epochs": 3, "initial_epoch": backup.initial_epoch, "steps_per_epoch": steps}
        options.update(shuffle=False, verbose=0)
        with pytest.raises(InterruptionError):
            cvae.fit(
                (image, one_hot), image, batch_size, callbacks=[backup, Interrupt(1, "on_train_batch_end")], **options
            )

    for steps in (None, np.int64(3)):
        fit_arrays(72, steps)
    with pytest.raises(ValueError, match=r"steps: expected 3 as of the training in .*, got 2"):
        fit_arrays(100)
    # Of an older backup it is not known.
    path = tmp_path / "1" / "state.json"
    state = json.loads(path.read_text())
    del state["settings"]["steps"]
    path.write_text(json.dumps(state))
    fit_arrays(100)


def test_backup_of_another_deformation(dataset, tmp_path):
    def fit(deformation):
        m2 = build_semi_supervised_cvae((8, 8, 1), 3, latent_size=2, width=8, deformation=deformation)
        m2.compile("adam", loss=SemiSupervisedNegativeELBO())
        batches = dataset.train.batches(72)
        backup = Backup(tmp_path, batches, every_seconds=0)
        m2.fit(batches, epochs=1, initial_epoch=backup.initial_epoch, callbacks=[backup], verbose=0)

    fit(0.5)
    with pytest.raises(ValueError, match=r"deformation: expected 0.5 as of the training in .*, got 1.0; go on"):
        fit(1.0)


def test_steps_that_are_not_a_pass(dataset, tmp_path):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile("adam", loss=NegativeELBO())
    batches = dataset.train.batches(72)
    with pytest.raises(ValueError, match="steps_per_epoch: expected 3, one pass over the batches in an epoch, got 2"):
        cvae.fit(batches.repeat(), steps_per_epoch=2, callbacks=[Backup(tmp_path, batches)])


def test_legacy_optimizer(dataset, tmp_path):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(keras.optimizers.legacy.Adam(), loss=NegativeELBO())
    with pytest.raises(ValueError, match=r"optimizer: expected a new one of tf_keras, got .*legacy"):
        cvae.fit(dataset.validation.batches(11), callbacks=[Backup(tmp_path)])


def test_arrays_that_keras_would_shuffle(cvae, batch, tmp_path):
    cvae.compile("adam", loss=NegativeELBO())

    class Whole(keras.utils.Sequence):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return batch, batch[0]

    for data in ((batch, batch[0]), (Whole(),)):
        with pytest.raises(ValueError, match="shuffle: expected False for arrays or a Sequence beside Backup without"):
            cvae.fit(*data, callbacks=[Backup(tmp_path)], verbose=0)
    cvae.fit(batch, batch[0], shuffle=False, callbacks=[Backup(tmp_path)], verbose=0)
    assert Backup(tmp_path).finished


def test_a_sequence_in_its_order_goes_on(batch, tmp_path):
    class Halves(keras.utils.Sequence):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            image, one_hot = (part[index::2] for part in batch)
            return (image, one_hot), image

    def weights(folder, *others):
        keras.utils.set_random_seed(0)
        cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
        cvae.compile("adam", loss=NegativeELBO())
        backup = Backup(folder, every_seconds=0)
        options = {"epochs": 4, "initial_epoch": backup.initial_epoch, "shuffle": False, "verbose": 0}
        cvae.fit(Halves(), callbacks=[backup, *others], **options)
        return cvae.get_weights()

    with pytest.raises(InterruptionError):
        weights(tmp_path / "stopped", Interrupt(2, "on_epoch_end"))
    for found, expected in zip(weights(tmp_path / "stopped"), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("seconds", "error"), [("60", TypeError), (-1, ValueError)])
def test_seconds_that_cannot_be(tmp_path, seconds, error):
    with pytest.raises(error, match="every_seconds: expected a number >= 0, got"):
        Backup(tmp_path, every_seconds=seconds)


def test_another_model_than_a_cvae(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="model: expected a CVAE, whose fit tells Backup of the other callbacks"):
        model.fit(np.zeros((4, 2)), np.zeros((4, 1)), callbacks=[Backup(tmp_path)])


def fitted(dataset, folder, **settings):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, **{"width": 8, **settings})
    cvae.compile("adam", loss=NegativeELBO())
    backup = Backup(folder)
    cvae.fit(
        dataset.validation.batches(11), epochs=2, callbacks=[backup], initial_epoch=backup.initial_epoch, verbose=0
    )


@pytest.fixture(scope="module")
def ended(dataset, tmp_path_factory):
    """Backup of a training that has come to its end, which the tests copy."""
    folder = tmp_path_factory.mktemp("ended")
    fitted(dataset, folder)
    return folder


@pytest.mark.parametrize("settings", [{"width": 9}, {"depth": 1}, {"prior": "label"}])
def test_backup_of_another_model(dataset, ended, tmp_path, settings):
    folder = shutil.copytree(ended, tmp_path / "backup")
    with pytest.raises(ValueError, match="expected a backup of this model and optimizer, got another one"):
        fitted(dataset, folder, **settings)


def test_backup_is_damaged(ended, tmp_path):
    folder = shutil.copytree(ended, tmp_path / "backup")
    (folder / "2/state.json").write_text("{")
    with pytest.raises(
        ValueError, match=f"{folder}/2: expected a whole backup, got an unreadable one .* delete that folder"
    ):
        Backup(folder)


def test_weights_of_a_backup_are_damaged(dataset, ended, tmp_path):
    folder = shutil.copytree(ended, tmp_path / "backup")
    (data,) = (folder / "2").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:100])
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile("adam", loss=NegativeELBO())
    with pytest.raises(ValueError, match="expected a backup of this model and optimizer"):
        cvae.fit(dataset.validation.batches(11), epochs=2, initial_epoch=2, callbacks=[Backup(folder)], verbose=0)


def test_batches_that_do_not_count_epochs(dataset, tmp_path):
    for batches in (tf.data.Dataset.range(3), dataset.test.batches(12), dataset.train.batches(24).take(2)):
        with pytest.raises(TypeError, match=r"batches: expected a result of Split.batches of the training split"):
            Backup(tmp_path, batches)


def test_other_batches_than_those_of_fit(dataset, tmp_path):
    notebook = Notebook(dataset, tmp_path)
    backup = Backup(tmp_path / "other", dataset.train.batches(32, seed=5))
    with pytest.raises(ValueError, match="batches: expected one pass over them in each epoch, 1 by now, got 0; give"):
        notebook.cvae.fit(notebook.batches, epochs=2, callbacks=[backup], verbose=0)
    # Nor may anything else read them: how often is not known when the training goes on.
    backup = Backup(tmp_path / "both", notebook.batches)
    with pytest.raises(ValueError, match="batches: expected one pass over them in each epoch, 1 by now, got 2; give"):
        notebook.cvae.fit(notebook.batches, validation_data=notebook.batches, callbacks=[backup], verbose=0)


def test_a_setting_that_was_written_as_an_integer_is_the_same(dataset, tmp_path):
    def fit():
        notebook = Notebook(dataset, tmp_path)
        backup = Backup(tmp_path / "backup", notebook.batches)
        options = {"initial_epoch": backup.initial_epoch, "callbacks": [backup], "verbose": 0}
        return notebook.cvae.fit(notebook.batches, epochs=1, **options)

    history = fit().history
    state = tmp_path / "backup" / "1" / "state.json"
    as_integer = state.read_text().replace('free_bits\\": 0.0', 'free_bits\\": 0')
    assert as_integer != state.read_text()
    state.write_text(as_integer)
    assert fit().history == history
    state.write_text(as_integer.replace('free_bits\\": 0', 'free_bits\\": 1'))
    with pytest.raises(ValueError, match="compile: expected"):
        fit()


def test_rows_of_a_csv_logger_are_not_lost(dataset, tmp_path):
    path = tmp_path / "log.csv"

    def fit(append, *others):
        notebook = Notebook(dataset, tmp_path)
        backup = Backup(tmp_path / "backup", notebook.batches, every_seconds=0)
        callbacks = [keras.callbacks.CSVLogger(str(path), append=append), backup, *others]
        notebook.cvae.fit(
            notebook.batches, epochs=3, initial_epoch=backup.initial_epoch, callbacks=callbacks, verbose=0
        )

    with pytest.raises(InterruptionError):
        fit(False, Interrupt(1, "on_epoch_end"))
    before = path.read_text()
    with pytest.raises(ValueError, match="callbacks: expected CSVLogger with append=True where a training goes on"):
        fit(False)
    assert path.read_text() == before
    fit(True)
    # The epoch in which it was interrupted comes twice.
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["epoch", "0", "1", "1", "2"]


def test_order_of_the_callbacks(dataset, tmp_path):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(keras.optimizers.Adam(use_ema=True), loss=NegativeELBO())
    swap = SwapEMAWeights()
    backup = Backup(tmp_path, every_seconds=0)
    with pytest.raises(ValueError, match="callbacks: expected Backup after SwapEMAWeights in the list, got it before"):
        cvae.fit(dataset.validation.batches(11), epochs=3, callbacks=[backup, swap], verbose=0)


def test_loss_that_is_not_finite_is_not_kept(dataset, tmp_path):
    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile(keras.optimizers.SGD(1e30), loss=NegativeELBO())
    backup = Backup(tmp_path)
    cvae.fit(dataset.train.batches(24), epochs=3, callbacks=[keras.callbacks.TerminateOnNaN(), backup], verbose=0)
    assert (backup.epoch, backup.finished) == (0, False)


def test_memory_that_would_come_back_changed(dataset, tmp_path):
    class Counts(keras.callbacks.Callback):
        def get_state(self):
            return {"losses": {0: 1.0}}

        def set_state(self, state):
            pass

    cvae = build_cvae((8, 8, 1), 3, latent_size=2, width=8)
    cvae.compile("adam", loss=NegativeELBO())
    with pytest.raises(
        TypeError, match=r"Counts.get_state: expected names as keys, as JSON has them, got \[0\]; use str\(key\)"
    ):
        cvae.fit(dataset.validation.batches(11), callbacks=[Counts(), Backup(tmp_path)], verbose=0)


def test_name_is_public():
    assert tfp_cvae.Backup is Backup
