"""Trainings that are killed: what `integration/test_crash.py` runs in processes of its own."""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import zipfile

import h5py
import numpy as np
import PIL.Image
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import atomic, backup, figures, interruption, training
from tfp_cvae.config import TrainConfig
from tfp_cvae.export import export_run
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.run import Run

# The process that has imported TensorFlow.
IMPORTED_BY = os.getpid()
# What the seconds of an epoch decide.
TIMINGS = ("seconds", "images_per_second")


class Shim:
    """Counts the moments at which a training may be killed, slows them down, and kills the process at one of them."""

    def __init__(self, target, seed, slowest=0.02):
        self.count, self.target, self.slowest = 0, target, slowest
        self.random = random.Random(seed)

    def moment(self):
        self.count += 1
        if self.target is not None:
            time.sleep(self.random.random() * self.slowest)
        if self.count == self.target:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name):
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            self.moment()
            result = function(*args, **kwargs)
            self.moment()
            return result

        setattr(owner, name, watched)

    def install(self):
        self.around(training, "load_training_data")
        self.around(training, "build_model")
        self.around(interruption.Interruption, "on_train_batch_end")
        self.around(interruption.Interruption, "on_epoch_begin")
        self.around(tf.train.Checkpoint, "write")
        self.around(keras.Model, "save")
        self.around(figures.pictures, "save")
        self.around(atomic, "flush")
        self.around(os, "replace")
        self.around(pathlib.Path, "rename")
        self.around(shutil, "rmtree")
        write_text = pathlib.Path.write_text

        def in_two_parts(path, text, *args, **kwargs):
            write_text(path, text[: len(text) // 2])
            self.moment()
            return write_text(path, text, *args, **kwargs)

        pathlib.Path.write_text = in_two_parts


def run(settings, folder, target=None, seed=0):
    """Trains or resumes and exports; writes the number of moments to `folder/moments`."""
    # Or else each process would import TensorFlow anew.
    assert os.getppid() == IMPORTED_BY
    try:
        # From here on Ctrl-C has an exit status of its own.
        (folder / "started").touch()
        shim = Shim(target, seed)
        shim.install()
        # A backup after each epoch, however short; or but one, so that the other files are epochs ahead of it.
        backup.Backup.__init__.__kwdefaults__["every_seconds"] = 0 if seed < 0.7 else 1000
        # Two couplings of width 16, as most of the time would go into what TensorFlow makes of more.
        CouplingFlow.__init__.__defaults__ = (2, 16)
        found = training.train(TrainConfig.from_dict(settings), folder / "run", resume=True, verbose=0)
        if not list(folder.glob("served/[0-9]*")):
            export_run(found, folder / "served", num_importance_samples=2)
        (folder / "moments").write_text(str(shim.count))
    except KeyboardInterrupt:
        sys.exit(130)


def check_whole(folder):
    """Raises unless each file that is there is whole; what is being written is hidden."""
    for path in (folder / "run").rglob("*"):
        if any(part.startswith(".") or part == "backup" for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                with archive.open("model.weights.h5") as file, h5py.File(file) as weights:
                    assert len(weights)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert {name: arrays[name].shape for name in arrays}
        elif path.suffix == ".png":
            with PIL.Image.open(path) as picture:
                picture.load()
        else:
            assert path.name == "history.csv", path
            epochs = [row["epoch"] for row in Run.load(folder / "run").history()]
            assert epochs == list(range(1, len(epochs) + 1))
    for version in folder.glob("served/[0-9]*"):
        assert (version / "saved_model.pb").is_file()
        assert (version / "assets.extra/model_card.json").is_file()


def result(path):
    """All that a finished run has come to, without the time that it took."""
    found = Run.load(path)
    assert found.faults() == {}
    with zipfile.ZipFile(path / "model.keras") as archive, archive.open("model.weights.h5") as file:
        weights = {}
        with h5py.File(file) as opened:
            opened.visititems(
                lambda name, item: weights.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
    epochs, images = found.images_by_epoch()
    return {
        "weights, optimizer, moving averages": weights,
        "history": [{key: value for key, value in row.items() if key not in TIMINGS} for row in found.history()],
        "images by epoch": {"epochs": epochs, "images": images},
        "evaluation": found.evaluation(),
        "figures": {path.name: path.read_bytes() for path in (path / "figures").glob("*.png")},
        "left over": sorted(found.name for kind in (".tfp-cvae*", "workertemp*") for found in path.rglob(kind)),
    }


def differences(one, other, name=""):
    """Names of what is not the same, bit for bit."""
    if isinstance(one, dict):
        if set(one) != set(other):
            return [f"{name}: {sorted(set(one) ^ set(other))}"]
        return [line for key in one for line in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return [] if same else [name]
    return [] if one == other else [name]
