import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import stripes

from tfp_cvae import figures, plotting
from tfp_cvae.build import build_cvae
from tfp_cvae.callbacks import HISTORY_COLUMNS, KLWarmUp, LabelWarmUp, StopAtNonFiniteLoss, SwapEMAWeights
from tfp_cvae.config import TrainConfig
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.losses import NegativeELBO, NegativeIWAE
from tfp_cvae.model import CVAE
from tfp_cvae.run import Run
from tfp_cvae.sources import load_dataset, load_training_data
from tfp_cvae.training import build_model, compile_model, train

FILES = [
    "config.json",
    "evaluation.json",
    "figures",
    "history.csv",
    "images_by_epoch.npz",
    "manifest.json",
    "model.keras",
]


def small(npz, **values):
    return TrainConfig(**{"dataset": str(npz), "epochs": 3, "batch_size": 32, "latent_size": 4, "width": 16, **values})


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run that several tests look at."""
    folder = tmp_path_factory.mktemp("once")
    images, labels = stripes()
    np.savez(folder / "stripes.npz", images=images, labels=labels)
    # Of these epochs, not all leave their images.
    return train(small(folder / "stripes.npz", epochs=6, seed=3), folder / "run", verbose=0)


def held_out(split):
    """Inputs and target of `evaluate`: the one draw that all runs share, whatever their seed."""
    image = split.binarized(seed=0)
    return (image, split.one_hot()), image


def numbers(run):
    """The history without the times."""
    return [{key: value for key, value in row.items() if "second" not in key} for row in run.history()]


def test_run_folder(once):
    run = once
    assert sorted(os.listdir(run.path)) == FILES
    loaded = Run.load(run.path)
    assert loaded == run
    assert loaded.config == small(run.path.parent / "stripes.npz", epochs=6, seed=3)
    assert tuple(loaded.history()[0]) == HISTORY_COLUMNS
    assert [row["epoch"] for row in loaded.history()] == list(range(1, 7))
    for name in ("lower_bound", "generated_by_epoch", "classes", "styles"):
        picture = np.asarray(PIL.Image.open(run.path / "figures" / f"{name}.png").convert("L"))
        assert min(picture.shape) > 200
        assert picture.std() > 10
    assert loaded.images_by_epoch()[0].tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("rising", [0, 2, 6])
def test_the_learning_rate_rises_and_falls(npz, dataset, schedule, rising):
    config = small(
        npz, epochs=6, learning_rate=0.4, learning_rate_schedule=schedule, learning_rate_warmup_epochs=rising
    )
    cvae = build_model(config, dataset)
    compile_model(cvae, config, steps_per_epoch=5)
    variable, found = tf.Variable([0.0]), []
    cvae.optimizer.build([variable])
    # One step more than there are.
    for _ in range(31):
        cvae.optimizer.apply_gradients([(tf.ones([1]), variable)])
        found.append(float(cvae.optimizer.learning_rate))
    step, first = np.arange(31), 5 * rising
    falling = 0.5 * (1 + np.cos(np.pi * (step - first) / max(1, 30 - first))) if schedule == "cosine" else np.ones(31)
    np.testing.assert_allclose(found, 0.4 * np.where(step < first, step / max(1, first), falling), rtol=1e-5, atol=1e-7)


def test_figures_of_many_classes_show_the_first_and_say_so(tmp_path, monkeypatch):
    """With some 700 rows a figure has more pixels than Matplotlib draws."""
    images = np.random.default_rng(0).integers(0, 256, (420, 6, 6), np.uint8)
    np.savez(tmp_path / "many.npz", images=images, labels=np.arange(420) % 70)
    table = mock.Mock(wraps=plotting.image_table)
    monkeypatch.setattr(plotting, "image_table", table)
    run = train(small(tmp_path / "many.npz", epochs=1), tmp_path / "run", verbose=0)
    figures._neighbours(run, run.training_data())
    over_epochs, classes, styles, neighbours = table.call_args_list
    for (shown, names, *_), options in (over_epochs, classes, neighbours):
        assert len(shown) == 64
        assert names == run.class_names[:64]
        assert options["title"].endswith("(the first 64 of 70 classes)")
    np.testing.assert_array_equal(over_epochs[0][0][:, 0], run.images_by_epoch()[1][0, :64])
    np.testing.assert_array_equal(classes[0][0][:, 0], run.model().generate(np.arange(64), 1000 + 12 * np.arange(64)))
    np.testing.assert_array_equal(neighbours[0][0][:, 0], run.model().generate(np.arange(64), 1000 + np.arange(64)))
    (shown, _, names), options = styles
    assert shown.shape[1] == len(names) == 2 + 64
    assert tuple(names[2:]) == run.class_names[:64]
    assert options["title"].endswith("under every label (the first 64 of 70 classes)")


def test_evaluation_is_that_of_the_saved_model_on_the_test_split(once):
    run, cvae, data = once, once.model(), load_dataset(once.config.dataset)
    (image, one_hot), _ = held_out(data.test)
    elbo = []
    for begin in range(0, len(image), 7):
        rows = slice(begin, begin + 7)
        output = cvae((image[rows], one_hot[rows]))
        probability = np.float64(output.likelihood.mean())[0]
        log_likelihood = np.log(np.where(image[rows] == 1, probability, 1 - probability)).sum(axis=(1, 2, 3))
        mean, variance = np.float64(output.posterior.mean()), np.float64(output.posterior.variance())
        elbo.append(log_likelihood - (variance + mean**2 - 1 - np.log(variance)).sum(axis=1) / 2)
    elbo = np.concatenate(elbo)
    measured = run.evaluation()
    assert measured["elbo"]["mean"] == pytest.approx(elbo.mean(), rel=1e-5)
    assert measured["elbo"]["standard_error"] == pytest.approx(elbo.std(ddof=1) / np.sqrt(len(elbo)), rel=1e-4)
    assert measured["elbo"]["mean"] == pytest.approx(-measured["rate"]["mean"] - measured["distortion"]["mean"])
    assert measured["protocol"]["num_images"] == len(data.test)
    assert f"{len(data.test)} test images, binarized once, seed 0" in run.summary()


@pytest.mark.parametrize("split", ["labels", "validation_labels"])
def test_images_without_label_are_refused_before_training(tmp_path, npz, split):
    with np.load(npz) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    given = {"labels": labels, "validation_labels": labels, "test_labels": labels}
    given[split] = np.where(np.arange(len(labels)) < 9, labels, -1)
    pixels = {"images": images, "validation_images": images, "test_images": images}
    np.savez(tmp_path / "some.npz", **given, **pixels)
    with pytest.raises(
        ValueError, match=r"model: expected m1, m2 or m1\+m2 for .*some.npz, where some images have no label"
    ):
        train(small(tmp_path / "some.npz"), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_same_seed_gives_the_same_training(once, tmp_path, npz, network):
    if network == "mlp":
        first = once
    else:
        first = train(small(npz, network=network, width=8, depth=1, epochs=2), tmp_path / "first", verbose=0)
    np.random.seed(7)
    second = train(first.config, tmp_path / "second", verbose=0)
    assert numbers(first) == numbers(second)
    for one, other in zip(first.model().get_weights(), second.model().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("no_figures")
def test_another_seed_gives_another_training(once, tmp_path):
    other = train(dataclasses.replace(once.config, seed=1), tmp_path / "run", verbose=0)
    assert numbers(once)[0] != numbers(other)[0]


@pytest.mark.usefixtures("no_figures")
def test_the_kept_model_is_the_best_of_the_validation(tmp_path):
    # Noise, of which nothing can be learned but the training images themselves.
    noise = 255 * np.random.default_rng(0).integers(0, 2, (100, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise, labels=np.arange(100) % 2)
    options = {"learning_rate": 0.02, "learning_rate_schedule": "constant", "width": 64, "latent_size": 16}
    config = small(tmp_path / "noise.npz", epochs=40, **options)
    run = train(config, tmp_path / "run", verbose=0)
    validation = [row["val_elbo"] for row in run.history()]
    assert max(validation) > validation[-1] + 0.5
    cvae = keras.models.load_model(run.path / "model.keras")
    again = cvae.evaluate(*held_out(load_dataset(config.dataset).validation), verbose=0, return_dict=True)
    assert again["elbo"] == pytest.approx(max(validation), rel=1e-5)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "options",
    [
        # What is made of the images does not depend on the model.
        {"conditional": False, "binarization": "threshold"},
        {"objective": "iwae", "num_samples": 3},
        {"kl_warmup_epochs": 2, "free_bits": 0.1},
        {"ema_momentum": 0.9, "prior": "label", "binarization": "none"},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(tmp_path, npz, options):
    run = train(small(npz, **options), tmp_path / "run", verbose=0)
    history = run.history()
    assert history[-1]["val_elbo"] > history[0]["val_elbo"]
    comparable = options.get("binarization") != "none"
    assert run.evaluation()["protocol"]["comparable"] == comparable
    assert ("not comparable" in run.summary()) == (not comparable)
    assert run.evaluation()["protocol"]["num_samples"] == options.get("num_samples", 1)
    assert ("iwae" in run.evaluation()) == ("num_samples" in options)
    if "kl_warmup_epochs" in options:
        # Half the weight in the first epoch; the bound is the true one in all.
        assert history[0]["loss"] < -history[0]["elbo"]
        assert history[0]["elbo"] == pytest.approx(-history[0]["rate"] - history[0]["distortion"], rel=1e-5)


def test_the_configuration_reaches_model_and_optimizer(npz):
    data = load_dataset(npz)
    config = small(
        npz, kl_weight=0.5, free_bits=0.1, num_samples=3, seed=4, ema_momentum=0.9, prior="label", latent_size=5
    )
    cvae = build_model(config, data)
    compile_model(cvae, config, steps_per_epoch=7)
    assert (cvae.num_samples, cvae.seed, cvae.latent_size, cvae.num_classes) == (3, 4, 5, 3)
    assert cvae.prior_network is not None
    assert isinstance(cvae.loss, NegativeELBO)
    assert (cvae.loss.kl_weight.numpy(), cvae.loss.free_bits) == (0.5, 0.1)
    rate = cvae.optimizer._learning_rate
    assert [float(rate(step)) for step in (0, 7 * config.epochs)] == pytest.approx([config.learning_rate, 0])
    assert 0 < float(rate(7 * config.epochs - 1)) < 0.1 * config.learning_rate
    assert (cvae.optimizer.use_ema, cvae.optimizer.ema_momentum) == (True, 0.9)
    bias = cvae.decoder.get_layer("pixel_bias").bias.numpy().reshape(8, 8, 1)
    mean = data.train.images.mean(axis=0) / 255
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), np.clip(mean, 1e-3, 1 - 1e-3), rtol=1e-4)
    for network, width, depth in (("mlp", 8, 1), ("residual", 8, 2), ("conv", 4, 1), ("mlp", 8, 3)):
        built = build_model(small(npz, network=network, width=width, depth=depth), data)
        expected = build_cvae(data.image_shape, 3, 4, network, width=width, depth=depth)
        assert [layer.__class__ for layer in built.encoder.layers] == [
            layer.__class__ for layer in expected.encoder.layers
        ]
        assert built.count_params() == expected.count_params()
    few = small(npz, model="m1+m2", num_labels=6, deformation=0.5, classification_weight=7.0)
    stacked = build_model(few, data)
    compile_model(stacked, few, steps_per_epoch=7)
    assert isinstance(stacked.prior_network.layers[-1], CouplingFlow)
    assert (stacked.deformation, stacked.loss.classification_weight) == (0.5, 7)
    iwae = small(npz, objective="iwae", learning_rate_schedule="constant")
    compile_model(cvae, iwae, steps_per_epoch=7)
    assert isinstance(cvae.loss, NegativeIWAE)
    assert float(cvae.optimizer.learning_rate) == pytest.approx(config.learning_rate)
    assert not cvae.optimizer.use_ema
    # XLA only where it pays.
    for compiled, options in (
        (False, {"epochs": 3}),
        (True, {"epochs": 1000}),
        (True, {"epochs": 1000, "model": "m1", "conditional": False}),
        (False, {"epochs": 1000, "model": "m2", "num_labels": 3}),
        (False, {"epochs": 1000, "network": "conv"}),
        (False, {"epochs": 1000, "precision": "mixed_bfloat16"}),
    ):
        compile_model(cvae, small(npz, **options), steps_per_epoch=7)
        assert bool(cvae._jit_compile) == compiled


def test_the_configuration_reaches_data_and_callbacks(tmp_path, npz, monkeypatch):
    class Seen(Exception):  # noqa: N818
        pass

    def see(self, x, **given):
        seen.update(given, x=x, weights=self.get_weights())
        raise Seen

    seen = {}
    monkeypatch.setattr(CVAE, "fit", see)
    config = small(
        npz,
        model="m2",
        num_labels=6,
        labelled_per_batch=4,
        label_warmup_epochs=2,
        kl_warmup_epochs=3,
        ema_momentum=0.9,
        binarization="none",
        seed=4,
        tensorboard=True,
        early_stopping=3,
    )
    with pytest.raises(Seen):
        train(config, tmp_path / "run", verbose=0)
    settings = seen["x"].epochs.settings
    assert (settings.batch_size, settings.binarization, settings.seed) == (32, "none", 4)
    assert settings.labelled_per_batch == 4
    (image, _), _ = next(iter(seen["validation_data"]))
    assert np.any((image > 0) & (image < 1))
    callbacks = {type(callback): callback for callback in seen["callbacks"]}
    assert (callbacks[LabelWarmUp].epochs, callbacks[KLWarmUp].epochs) == (2, 3)
    assert {SwapEMAWeights, keras.callbacks.TensorBoard} <= set(callbacks)
    watching = (keras.callbacks.ModelCheckpoint, keras.callbacks.EarlyStopping)
    for kind in watching:
        assert (callbacks[kind].monitor, callbacks[kind].monitor_op) == ("val_elbo", np.greater)
    assert callbacks[keras.callbacks.EarlyStopping].patience == 3
    keras.utils.set_random_seed(4)
    expected = build_model(config, load_training_data(config)).get_weights()
    for found, weight in zip(seen["weights"], expected, strict=True):
        np.testing.assert_array_equal(found, weight)
    with pytest.raises(Seen):
        train(small(npz, objective="iwae", num_samples=2, early_stopping=3), tmp_path / "iwae", verbose=0)
    callbacks = {type(callback): callback for callback in seen["callbacks"]}
    for kind in watching:
        assert (callbacks[kind].monitor, callbacks[kind].monitor_op) == ("val_loss", np.less)


@pytest.mark.usefixtures("no_figures")
def test_the_warm_up_ends_at_the_weight_of_the_configuration(tmp_path, npz):
    run = train(small(npz, kl_weight=0.5, kl_warmup_epochs=2), tmp_path / "run", verbose=0)
    weights = [(row["loss"] - row["distortion"]) / row["rate"] for row in run.history()]
    assert weights == pytest.approx([0.25, 0.5, 0.5], rel=1e-3)


@pytest.mark.usefixtures("no_figures")
def test_the_average_of_the_weights_is_what_is_kept(once, tmp_path):
    config = dataclasses.replace(once.config, ema_momentum=0.9)
    plain, averaged = once, train(config, tmp_path / "averaged", verbose=0)
    # The same training, other weights, and each validated with its own.
    assert [row["loss"] for row in plain.history()] == [row["loss"] for row in averaged.history()]
    for run in (plain, averaged):
        cvae = keras.models.load_model(run.path / "model.keras")
        again = cvae.evaluate(*held_out(load_dataset(run.config.dataset).validation), verbose=0, return_dict=True)
        assert again["elbo"] == pytest.approx(max(row["val_elbo"] for row in run.history()), rel=1e-5)
    assert plain.history()[-1]["val_elbo"] != averaged.history()[-1]["val_elbo"]


def test_a_loss_that_is_not_finite_stops_the_training_and_says_so(tmp_path, npz):
    config = small(npz, learning_rate=1e18, learning_rate_schedule="constant", epochs=50)
    with pytest.raises(
        ValueError,
        match=r"loss: expected finite values, got (nan|inf) in epoch 1, steps 1 to 6, .* the only model so far is .*keras",
    ):
        train(config, tmp_path / "run", verbose=0)
    run = Run.load(tmp_path / "run")
    assert run.history() == []
    assert all(np.isfinite(variable).all() for variable in run.model().get_weights())


@pytest.mark.usefixtures("no_figures")
def test_the_model_before_a_loss_that_is_not_finite_is_kept(tmp_path, npz, monkeypatch):
    on_batch = StopAtNonFiniteLoss.on_train_batch_end

    def infinite(self, batch, logs=None):
        on_batch(self, batch, {"loss": np.inf} if self.epoch == 2 else logs)

    config = small(npz, epochs=4, learning_rate_schedule="constant")
    with monkeypatch.context() as patch:
        patch.setattr(StopAtNonFiniteLoss, "on_train_batch_end", infinite)
        with pytest.raises(
            ValueError, match=r"got inf in epoch 3, steps 1 to 6, .* After 2 whole epochs, the best model"
        ):
            train(config, tmp_path / "run", verbose=0)
    run = Run.load(tmp_path / "run")
    assert [row["epoch"] for row in run.history()] == [1, 2]
    two = train(small(npz, epochs=2, learning_rate_schedule="constant"), tmp_path / "two", verbose=0)
    for kept, expected in zip(run.model().get_weights(), two.model().get_weights(), strict=True):
        np.testing.assert_array_equal(kept, expected)


def test_a_damaged_model_is_named(once, tmp_path):
    run = Run.load(shutil.copytree(once.path, tmp_path / "run"))
    (run.path / "model.keras").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match=r"model.keras: expected a whole model of this package, got an unreadable one"):
        run.model()


def test_the_rows_of_the_figures_are_the_classes(once):
    run, cvae, data = once, once.model(), load_dataset(once.config.dataset)
    for name, figure in figures._figures(run, cvae, data):
        if name not in ("classes", "styles"):
            continue
        (axes,) = figure.axes
        canvas = np.asarray(axes.images[0].get_array())
        tops = [int(tick - 4) for tick in axes.get_yticks()]
        rows = [label.get_text() for label in axes.get_yticklabels()]
        if name == "classes":
            assert rows == ["0", "1", "2"]
            for label, top in enumerate(tops):
                expected = cvae.generate(label, figures._FIRST_SEED + 12 * label)[0, ..., 0]
                np.testing.assert_allclose(canvas[top : top + 8, :8], expected, rtol=1e-5)
        else:
            lefts = [int(tick - 4) for tick in axes.get_xticks()]
            for row, top in zip(rows, tops, strict=True):
                image = canvas[top : top + 8, lefts[0] : lefts[0] + 8][..., np.newaxis]
                assert any(np.array_equal(image, test) for test in data.test.binarized()[data.test.labels == int(row)])
                latent = cvae.posterior(image[np.newaxis], np.eye(3, dtype=np.float32)[[int(row)]]).mean()
                for label, left in enumerate(lefts[2:]):
                    one_hot = np.eye(3, dtype=np.float32)[[label]]
                    expected = cvae.likelihood(latent, one_hot).mean()[0, ..., 0]
                    np.testing.assert_allclose(canvas[top : top + 8, left : left + 8], expected, rtol=1e-4)


@pytest.mark.usefixtures("no_figures")
def test_early_stopping(tmp_path, npz):
    config = small(npz, epochs=60, learning_rate=0.2, learning_rate_schedule="constant", early_stopping=2)
    history = train(config, tmp_path / "run", verbose=0).history()
    best = int(np.argmax([row["val_elbo"] for row in history]))
    assert len(history) == best + 3 < 60


@pytest.mark.usefixtures("no_figures")
def test_an_existing_folder_is_never_overwritten_unasked(once, tmp_path, npz):
    shutil.copytree(once.path, tmp_path / "run")
    before = (tmp_path / "run" / "model.keras").read_bytes()
    with pytest.raises(
        ValueError, match=r"output: expected a new folder, got .*run', which holds a run; go on with it"
    ):
        train(small(npz, epochs=1), tmp_path / "run", verbose=0)
    assert (tmp_path / "run" / "model.keras").read_bytes() == before
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run = train(small(npz, epochs=2), tmp_path / "run", overwrite=True, verbose=0)
    assert len(run.history()) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="which holds something else than a run"):
        train(small(npz), tmp_path / "other", overwrite=True, verbose=0)
    with pytest.raises(ValueError, match="which is a file"):
        train(small(npz), tmp_path / "other" / "thesis.tex", verbose=0)


def test_a_mistake_leaves_no_folder(tmp_path, npz):
    with pytest.raises(ValueError, match="batch_size: expected at most 194, the number of training images, got 5000"):
        train(small(npz, batch_size=5000), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def start(npz, output, *, epochs=999, batch_size=194, resume=False, **options):
    """A training in a process of its own, of one step in an epoch: too few for XLA, whose compiling would be waited for.

    It outlasts its test, as it waits for somebody to read its many lines.
    """
    command = [sys.executable, "-m", "tfp_cvae", "train", "--dataset", str(npz), "--epochs", str(epochs)]
    command += ["--batch-size", str(batch_size), "--width", "16", "--output", str(output)]
    command += ["--resume"] if resume else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(path):
    # Long enough for a machine that has other work to do.
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.1)
    raise TimeoutError(path)


# Ctrl-C waits for the end of a step, or of the program of XLA in which there are several.
@pytest.mark.parametrize(
    ("kill", "steps"),
    [(signal.SIGINT, {"epochs": 100_000, "batch_size": 32}), (signal.SIGKILL, {})],
    ids=["SIGINT", "SIGKILL"],
)
def test_what_was_trained_survives_an_interruption(tmp_path, npz, kill, steps):
    process = start(npz, tmp_path / "run", **steps)
    wait_for(tmp_path / "run" / "model.keras")
    time.sleep(2)
    process.send_signal(kill)
    stdout, stderr = process.communicate(timeout=300)
    run = Run.load(tmp_path / "run")
    assert len(run.history()) >= 1
    assert run.model().generate([0, 1], seed=0).shape == (2, 8, 8, 1)
    run.images_by_epoch()
    assert process.returncode == (130 if kill == signal.SIGINT else -kill)
    if kill == signal.SIGINT:
        assert re.search(r"whole epochs?; the best model so far is", stdout)
        assert "Traceback" not in stderr
        assert not [name for name in os.listdir(run.path) if name.startswith(".")]


def test_a_full_disk_is_one_line_and_leaves_whole_files(tmp_path, npz):
    def limit_file_size():
        # The model does not fit, the rest does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    process = start(npz, tmp_path / "run", preexec_fn=limit_file_size)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: ")
    assert "File too large" in stderr
    assert "model.keras" not in os.listdir(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 999
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".")]


def test_an_interruption_in_the_first_epoch_is_said(tmp_path, npz, capsys, monkeypatch):
    def interrupt(self, step, logs=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(StopAtNonFiniteLoss, "on_train_batch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(small(npz), tmp_path / "the run")
    out = capsys.readouterr().out
    assert "interrupted after 0 whole epochs; the only model so far is" in out
    assert f"figures: tfp-cvae plot '{tmp_path / 'the run'}'; the same command with --resume" in out
    assert Run.load(tmp_path / "the run").model().generate(0).shape == (1, 8, 8, 1)
