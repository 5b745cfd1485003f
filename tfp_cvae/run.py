"""The run folder: what a training leaves behind. A file in it is either whole or absent."""

import csv
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras as keras

from tfp_cvae import results
from tfp_cvae.atomic import write_atomically
from tfp_cvae.config import Binarization, TrainConfig
from tfp_cvae.data import HELD_OUT_SEED, Dataset
from tfp_cvae.model import CVAE

_BOUND = ("elbo", "rate", "distortion", "iwae")
_CONFIG = "config.json"
_CONTENTS = (_CONFIG, "history.csv", "model.keras", "evaluation.json", "images_by_epoch.npz", "figures", "tensorboard")


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        path: The folder.
        config: Settings of the training.
        class_names: Name of each class; empty without classes.
        class_probabilities: Share of each class in the training images; empty without classes.
        versions: Versions of the packages that trained it.
    """

    path: pathlib.Path
    config: TrainConfig
    class_names: tuple[str, ...]
    class_probabilities: tuple[float, ...]
    versions: Mapping[str, str]

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: TrainConfig, dataset: Dataset, *, overwrite: bool = False
    ) -> "Run":
        """Makes a new run folder.

        Args:
            path: Folder to make. It may exist if it is empty.
            config: Settings of the training.
            dataset: Data set of the training.
            overwrite: Whether to delete the run that the folder may hold. Other files are left alone.

        Raises:
            ValueError: If the folder exists and is not empty, or `overwrite` is to delete what is not a run.
        """
        path = pathlib.Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"output: expected a new folder, got {str(path)!r}, which is a file")
        if path.is_dir() and any(path.iterdir()):
            if not (path / _CONFIG).is_file():
                raise ValueError(
                    f"output: expected a new folder, got {str(path)!r}, which holds something else than a run"
                )
            if not overwrite:
                raise ValueError(
                    f"output: expected a new folder, got {str(path)!r}, which holds a run; choose another one, "
                    "or overwrite it (--overwrite)"
                )
            for name in _CONTENTS:
                _delete(path / name)
        class_names = dataset.class_names if config.conditional else ()
        class_probabilities = tuple(dataset.class_probabilities().tolist()) if config.conditional else ()
        run = cls(path, config, class_names, class_probabilities, versions())
        (path / "figures").mkdir(parents=True, exist_ok=True)
        content = {
            **config.to_dict(),
            "class_names": class_names,
            "class_probabilities": class_probabilities,
            "versions": run.versions,
        }
        write_atomically(path / _CONFIG, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))
        return run

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Opens a run folder.

        Raises:
            ValueError: If the folder is not a run.
        """
        path = pathlib.Path(path)
        try:
            content = json.loads((path / _CONFIG).read_text())
            class_names, found_versions = content.pop("class_names"), content.pop("versions")
            # Which runs of the first version do not have.
            class_probabilities = content.pop("class_probabilities", ())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"run: expected a folder that `tfp-cvae train` made, got {str(path)!r}, "
                f"whose {_CONFIG} cannot be read ({type(error).__name__})"
            ) from error
        config = TrainConfig.from_dict(content)
        return cls(path, config, tuple(class_names), tuple(class_probabilities), found_versions)

    def history(self) -> list[dict[str, float]]:
        """Rows of `history.csv`, one for each epoch, by `callbacks.HISTORY_COLUMNS`; none before the first epoch."""
        file = self.path / "history.csv"
        if not file.is_file():
            return []
        with file.open(newline="") as lines:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]

    def model(self) -> CVAE:
        """Loads the trained model.

        Raises:
            ValueError: If the run has not saved one yet.
        """
        file = self.path / "model.keras"
        if not self.has_model():
            raise ValueError(
                f"run: expected a finished training in {str(self.path)!r}, got no model.keras; train it first"
            )
        try:
            return keras.models.load_model(file, compile=False)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"run: expected a whole {file}, got an unreadable one: {error}; train again") from error

    def has_model(self) -> bool:
        """Whether a trained model has been saved."""
        return (self.path / "model.keras").is_file()

    def has_images_by_epoch(self) -> bool:
        """Whether `callbacks.ImageGrid` has kept anything."""
        return (self.path / "images_by_epoch.npz").is_file()

    def images_by_epoch(self) -> tuple[np.ndarray, np.ndarray]:
        """What `callbacks.ImageGrid` kept: epochs `[e]` int64 and images `[e, rows, height, width, channels]` uint8."""
        with np.load(self.path / "images_by_epoch.npz") as file:
            return file["epochs"], file["images"]

    def binarization_note(self) -> str:
        """What the held-out images were on which bounds were measured."""
        return results.binarization_note(self.config.binarization, HELD_OUT_SEED)

    def summary(self) -> str:
        """Bound on held-out images, with what it was measured on, and where everything is."""
        evaluation = self.evaluation()
        protocol = evaluation["protocol"]
        bound = [
            f"{key} {evaluation[key]['mean']:.2f} +- {_rounded(evaluation[key]['standard_error'])}"
            for key in _BOUND
            if key in evaluation
        ]
        return (
            f"held-out bound, nats per image: {', '.join(bound)}\n"
            f"  {protocol['num_images']:,} test images, {self.binarization_note()}; K = {protocol['num_samples']}; "
            f"mean +- standard error; training seed {self.config.seed}\n"
            f"figures: {self.path / 'figures'}\n"
            f"model:   {self.path / 'model.keras'}"
        )

    def has_evaluation(self) -> bool:
        """Whether the model has been evaluated."""
        return (self.path / "evaluation.json").is_file()

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Writes `evaluation.json`.

        Args:
            result: What was measured, by name, and `protocol`, to which is added what was trained on what.
        """
        origin = {"trained_on": self.config.dataset, "training_seed": self.config.seed, "versions": versions()}
        content = {**result, "protocol": {**result["protocol"], **origin}}
        text = json.dumps(content, indent=2, allow_nan=False)
        write_atomically(self.path / "evaluation.json", lambda file: file.write_text(text + "\n"))

    def evaluation(self) -> dict[str, Any]:
        """Content of `evaluation.json`.

        Raises:
            ValueError: If the run has not been evaluated.
        """
        file = self.path / "evaluation.json"
        if not self.has_evaluation():
            raise ValueError(f"run: expected a finished training in {str(self.path)!r}, got no evaluation.json")
        return json.loads(file.read_text())


def _rounded(error: float | None) -> str:
    return "?" if error is None else f"{error:.2f}"


def held_out_protocol(
    dataset: Dataset, binarization: Binarization, num_images: int, num_samples: int
) -> dict[str, Any]:
    """What numbers on test images are numbers of: the `protocol` in `evaluation.json`."""
    return {
        "unit": "nats per image",
        "dataset": dataset.name,
        "split": "test",
        "num_images": num_images,
        "num_samples": num_samples,
        "binarization": binarization,
        "binarization_seed": HELD_OUT_SEED,
        "comparable": binarization != "none",
    }


def _delete(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of this package and of those that its results depend on."""
    names = ("tfp-cvae", "tensorflow", "tf-keras", "tensorflow-probability", "numpy", "scikit-learn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
