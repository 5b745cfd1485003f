"""The run folder: what a training leaves behind. A file in it is either whole or absent. Imports no TensorFlow."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfp_cvae import archive, atomic, checks, manifest
from tfp_cvae.atomic import write_atomically
from tfp_cvae.config import HELD_OUT_SEED, TrainConfig
from tfp_cvae.dataset_names import path_of
from tfp_cvae.protocol import binarization_note, versions
from tfp_cvae.run_folder import BACKUP, CONFIG, check_free, check_one_of, has_config, holds_run

if TYPE_CHECKING:
    import numpy

    from tfp_cvae.data import Dataset
    from tfp_cvae.model import CVAE

_BOUND = ("elbo", "rate", "distortion", "iwae")
_EVALUATION, _MODEL, _HISTORY, _IMAGES = "evaluation.json", "model.keras", "history.csv", "images_by_epoch.npz"
_FIGURES = "figures"
# Two numbers for each pair of classes, of which there may be 3,000.
_MAX_EVALUATION_BYTES = 2**28
_OF_TRAINING = (_MODEL, _HISTORY, _IMAGES)
_FILES = (_EVALUATION, *_OF_TRAINING, CONFIG)
_OLD_BACKUP = f"{atomic.TEMPORARY_PREFIX}backup"
_FIGURES_OF_TRAINING, _FIGURES_OF_EVALUATION = (
    tuple(f"{_FIGURES}/{name}.png" for name in names.split())
    for names in ("lower_bound generated_by_epoch classes styles", "latent calibration class_tables neighbours")
)
# Other pictures in the folder are not the run's.
FIGURES = (*_FIGURES_OF_TRAINING, *_FIGURES_OF_EVALUATION)
# What a new run in the same folder deletes, in an order in which an interrupted deletion is never taken for a finished
# run. Its settings, which make it a run, are replaced.
_CONTENTS = (
    *(_EVALUATION, *_FIGURES_OF_EVALUATION, BACKUP, manifest.FILE),
    *(*_FIGURES_OF_TRAINING, "tensorboard", *_OF_TRAINING),
)

# Version of the run folder: 0 had neither this number nor a backup, a manifest and the fingerprint of the data.
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        path: The folder.
        config: Settings of the training.
        class_names: Name of each class; empty without classes.
        class_probabilities: Share of each class in the training images; empty without classes.
        versions: Versions of the packages that trained it.
        dataset_sha256: Fingerprint of the data set, `Dataset.fingerprint`; "" in runs of format version 0.
        dataset_path: Where the data set was when the training was begun, absolute, or in older runs as it was given;
            None for one that is no file or folder.
    """

    path: pathlib.Path
    config: TrainConfig
    class_names: tuple[str, ...]
    class_probabilities: tuple[float, ...]
    versions: Mapping[str, str]
    dataset_sha256: str = ""
    dataset_path: pathlib.Path | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: TrainConfig, dataset: "Dataset", *, overwrite: bool = False
    ) -> "Run":
        """Makes a new run folder.

        Args:
            path: Folder to make. It may exist if it is empty.
            config: Settings of the training.
            dataset: Data set of the training.
            overwrite: Whether to delete the run that the folder may hold, with all that is in `tensorboard/`. Other
                files are left alone.

        Returns:
            The run, which has its settings and nothing else yet.

        Raises:
            ValueError: If the folder exists and is not empty, or `overwrite` is to delete what is not a run.
        """
        path = pathlib.Path(path)
        check_free(path, overwrite)
        class_names = dataset.class_names if config.conditional else ()
        class_probabilities = tuple(dataset.class_probabilities().tolist()) if config.conditional else ()
        dataset_path = path_of(config.dataset)
        run = cls(path, config, class_names, class_probabilities, versions(), dataset.fingerprint(), dataset_path)
        content = {
            "format_version": FORMAT_VERSION,
            **config.to_dict(),
            "class_names": class_names,
            "class_probabilities": class_probabilities,
            "dataset_sha256": run.dataset_sha256,
            "dataset_path": None if dataset_path is None else str(dataset_path),
            "versions": run.versions,
        }
        text = json.dumps(content, indent=2)
        overwrites = holds_run(path)
        for name in _CONTENTS if overwrites else ():
            atomic.delete(path / name)
        atomic.make_folder(path)
        atomic.flush(path.parent)
        if not overwrites:
            # Before the settings, so that no run is without a backup; but not beside those of an old run, which would
            # then look as if it could be resumed.
            run.backup_folder.mkdir(exist_ok=True)
        write_atomically(path / CONFIG, lambda file: file.write_text(text + "\n"))
        run.backup_folder.mkdir(exist_ok=True)
        return run

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Opens a run folder.

        Args:
            path: The folder.

        Returns:
            The run.

        Raises:
            TypeError: If a setting is of the wrong kind.
            ValueError: If the folder is not a run, or one of a later version of this package.
        """
        path = pathlib.Path(path)
        if not has_config(path):
            got = f"no {CONFIG} in it" if os.path.isdir(path) else "none"
            raise ValueError(f"run: expected the folder {str(path)!r} that `tfp-cvae train` made, got {got}")
        try:
            content = archive.parse_json((path / CONFIG).read_bytes())
            found_versions, class_names = content.pop("versions"), content.pop("class_names")
            if not isinstance(class_names, list) or not _are_strings(*class_names, *found_versions.values()):
                raise TypeError("names and versions that are not strings")
            # Older runs do not have all of these.
            format_version = int(content.pop("format_version", 0))
            class_probabilities = tuple(map(float, content.pop("class_probabilities", ())))
            dataset_sha256 = str(content.pop("dataset_sha256", ""))
            # In older runs the path is what was given.
            given = content["dataset"] if path_of(content["dataset"]) else None
            dataset_path = content.pop("dataset_path", given)
            dataset_path = None if dataset_path is None else pathlib.Path(dataset_path)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"run: expected a folder that `tfp-cvae train` made, got {str(path)!r}, "
                f"whose {CONFIG} cannot be read ({type(error).__name__})"
            ) from error
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"run: expected a folder of format version {FORMAT_VERSION} or less, got {str(path)!r} of version "
                f"{format_version}; it was made by tfp-cvae {found_versions.get('tfp-cvae', '?')}: upgrade to that"
            )
        config = TrainConfig.from_dict(content)
        return cls(path, config, tuple(class_names), class_probabilities, found_versions, dataset_sha256, dataset_path)

    @property
    def model_class_probabilities(self) -> tuple[float, ...] | None:
        """p(y) of the model, the share of each class or, if it learns without labels, too (M2, M1+M2), equal ones.

        None of a model without classes, and of runs of format version 0, which do not tell.
        """
        if self.config.semi_supervised:
            return (1 / len(self.class_names),) * len(self.class_names)
        return self.class_probabilities or None

    def training_data(self) -> "Dataset":
        """Loads the data set of the training, without the labels that nothing may see.

        A file or folder is looked for where it was when the training was begun, and then, as the run may have been
        moved with it, where its name points to from the current folder. If there are two, it is the one with the
        fingerprint of the run.

        Returns:
            The data set; images that had no label in the training have none here.

        Raises:
            TypeError: If images or labels are of the wrong kind.
            ValueError: If the data set is not there any more, or not as it was.
            ConnectionError: If it would have to be downloaded and there is no connection.
        """
        dataset = self._found_data()
        self.check_data(dataset)
        return dataset

    def _found_data(self) -> "Dataset":
        from tfp_cvae import sources

        if self.dataset_path is None:
            return sources.load_training_data(self.config, named=True)
        given = self.config.dataset
        places = dict.fromkeys(path for path in (self.dataset_path, path_of(given)) if path and os.path.exists(path))
        if not places:
            elsewhere = self.dataset_path.is_absolute() and not os.path.isabs(given)
            here = f", or {archive.one_line(given)} in this folder" if elsewhere else ""
            raise ValueError(
                f"dataset: expected {archive.one_line(self.dataset_path)}, where it was at the training{here}, got "
                "none; bring it back"
            )
        found: list[Dataset | Exception] = []
        for path in places:
            try:
                dataset = sources.load_training_data(dataclasses.replace(self.config, dataset=str(path)))
            except (OSError, TypeError, ValueError) as error:
                found.append(error)
                continue
            dataset = dataclasses.replace(dataset, name=archive.one_line(pathlib.Path(given)))
            if dataset.fingerprint() == self.dataset_sha256:
                return dataset
            found.append(dataset)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def check_data(self, dataset: "Dataset") -> None:
        """Raises ValueError unless a data set is as it was when the training was begun."""
        if self.dataset_sha256 not in ("", dataset.fingerprint()):
            raise ValueError(
                f"dataset: expected {dataset.name} as it was when the training was begun"
                + (f" (in {archive.one_line(self.dataset_path)})" if self.dataset_path else "")
                + ", got other images, labels or classes; bring them back, or train again if a newer version reads "
                "them otherwise"
            )

    @property
    def backup_folder(self) -> pathlib.Path:
        """Backups of the training; there until it is finished."""
        return self.path / BACKUP

    @property
    def model_file(self) -> pathlib.Path:
        """The model of the epoch with the best validation bound."""
        return self.path / _MODEL

    @property
    def history_file(self) -> pathlib.Path:
        """Table of what was measured in each epoch."""
        return self.path / _HISTORY

    @property
    def images_file(self) -> pathlib.Path:
        """Images generated in the course of the training."""
        return self.path / _IMAGES

    @property
    def evaluation_file(self) -> pathlib.Path:
        """The held-out bound, or all of an evaluation."""
        return self.path / _EVALUATION

    @property
    def figures_folder(self) -> pathlib.Path:
        """Where the figures are."""
        return self.path / _FIGURES

    def stage(self) -> str:
        """How far a training is that is not finished, for messages."""
        return f"the training runs or was stopped, after {len(self.history())} of {self.config.epochs} epochs"

    def is_finished(self) -> bool:
        """Whether the training has ended, with evaluation and figures."""
        return self.has_evaluation() and not self.backup_folder.exists()

    def finish(self) -> None:
        """Marks the end of the training: lists its files in the manifest, and deletes the backup."""
        manifest.record(self.path, *_FILES)
        if self.backup_folder.exists():
            self.backup_folder.rename(self.path / _OLD_BACKUP)
        self.delete_old_backup()

    def delete_old_backup(self) -> None:
        """Deletes what is left of the backup of a finished training."""
        with contextlib.suppress(OSError):
            atomic.delete(self.path / _OLD_BACKUP)

    def delete_evaluation(self) -> None:
        """Deletes the evaluation of a model that is going to be trained further, and its figures."""
        for name in (_EVALUATION, *_FIGURES_OF_EVALUATION):
            atomic.delete(self.path / name)

    def faults(self) -> dict[str, str]:
        """What is wrong with the run, by the name of the file; empty if nothing is.

        Sizes and SHA-256 of the files are compared with those that were written down in `manifest.json`.

        Raises:
            ValueError: If the manifest cannot be read.
        """
        if not self.backup_folder.exists():
            return manifest.faults(self.path, _FILES)
        return {BACKUP: f"there, as {self.stage()}: go on with --resume"}

    def class_number(self, label: str | None) -> int | None:
        """Number of a class, from 0.

        Args:
            label: Its name, or the number; None for a model without classes.

        Returns:
            The number; None for a model without classes.

        Raises:
            ValueError: If there is no such class.
        """
        names = self.class_names
        expected = f"one of the classes {', '.join(names)}" if names else "none, as the model has no classes"
        if (label is None) != (not names):
            raise ValueError(f"label: expected {expected}, got {label or 'none; give one (--label)'}")
        if label is None or label in names:
            return None if label is None else names.index(label)
        if not label.isdecimal() or int(label) >= len(names):
            raise ValueError(f"label: expected {expected} (or the number of one, from 0), got {label}")
        return int(label)

    def history(self) -> list[dict[str, float]]:
        """Rows of `history.csv`, one for each epoch, by `callbacks.HISTORY_COLUMNS`; none before the first epoch.

        Raises:
            ValueError: If the file is not as it was written.
        """
        file = self.history_file
        if not file.is_file():
            return []
        try:
            with file.open(newline="") as lines:
                rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
            if any(row.keys() != rows[0].keys() for row in rows):
                raise ValueError("rows with other columns")
            return rows
        except (OSError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"run: expected a table of numbers in {archive.one_line(file)}, got "
                f"{archive.one_line(error)}; train again"
            ) from error

    def model(self) -> "CVAE":
        """Loads the trained model.

        Returns:
            The model, not compiled.

        Raises:
            ValueError: If the run has not saved one yet.
        """
        self.check_has_model()
        from tfp_cvae import model_files

        return model_files.load_keras(self.model_file)

    def check_has_model(self) -> None:
        """Raises ValueError unless a trained model has been saved."""
        if not self.has_model():
            raise ValueError(
                f"run: expected a finished training in {str(self.path)!r}, got no {_MODEL}; train it first"
            )

    def model_sha256(self) -> str:
        """SHA-256 of the file of the trained model, in hexadecimal digits."""
        self.check_has_model()
        return manifest.sha256(self.model_file)

    def has_model(self) -> bool:
        """Whether a trained model has been saved."""
        return self.model_file.is_file()

    def has_images_by_epoch(self) -> bool:
        """Whether `callbacks.ImageGrid` has kept anything."""
        return self.images_file.is_file()

    def images_by_epoch(self) -> "tuple[numpy.ndarray, numpy.ndarray]":
        """What `callbacks.ImageGrid` kept: epochs `[e]` int64 and images `[e, rows, height, width, channels]` uint8.

        Raises:
            ValueError: If the file is not as it was written.
        """
        from tfp_cvae.array_files import load_arrays

        file = self.images_file
        arrays = load_arrays(file, ("epochs", "images"))
        epochs, images = arrays.get("epochs"), arrays.get("images")
        if epochs is None or images is None or epochs.shape != images.shape[:1] or images.dtype != "uint8":
            raise ValueError(
                f"run: expected epochs [e] and images [e, ...] of uint8 in {archive.one_line(file)}, "
                f"got {sorted(arrays)} of other shapes or kinds; train again"
            )
        return epochs, images

    def binarization_note(self) -> str:
        """What the held-out images were on which bounds were measured."""
        return binarization_note(self.config.binarization, HELD_OUT_SEED)

    def summary(self) -> str:
        """Bound on held-out images, with what it was measured on, and where everything is."""
        evaluation = self.evaluation()
        protocol = evaluation["protocol"]
        bound = [
            f"{key} {evaluation[key]['mean']:.2f} +- {_rounded(evaluation[key]['standard_error'])}"
            for key in _BOUND
            if key in evaluation
        ]
        elsewhere = "" if self.is_evaluated_on_own_data() else f" of {protocol['dataset']}"
        accuracy = evaluation.get("label_posterior_accuracy")
        by = "q(y|x)" if self.config.semi_supervised else "logistic regression on the latent (M1)"
        found = (
            ""
            if accuracy is None
            else f"test images that {by} has right: {accuracy['mean']:.2%} +- "
            f"{_rounded(accuracy['standard_error'], '%')}\n"
        )
        return (
            f"{found}held-out bound, nats per image: {', '.join(bound)}\n"
            f"  {protocol['num_images']:,} test images{elsewhere}, {self.binarization_note()}; "
            f"K = {protocol['num_samples']}; mean +- standard error; training seed {self.config.seed}\n"
            f"figures: {self.figures_folder}\n"
            f"model:   {self.model_file}"
        )

    def has_evaluation(self) -> bool:
        """Whether the model has been evaluated."""
        return self.evaluation_file.is_file()

    def is_evaluated_on_own_data(self) -> bool:
        """Whether the evaluation is of the data set of the training, and not of another one."""
        own = self.dataset_sha256
        return not own or self.evaluation().get("protocol", {}).get("dataset_sha256", own) == own

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Writes `evaluation.json`.

        Args:
            result: What was measured, by name, and `protocol`, to which is added what was trained on what.
        """
        origin = {"trained_on": self.config.dataset, "training_seed": self.config.seed, "versions": versions()}
        content = {**result, "protocol": {**result["protocol"], **origin}}
        text = json.dumps(content, indent=2, allow_nan=False)
        # A row of numbers on a line: there are as many numbers as pairs of classes.
        text = re.sub(r'\[\n[^][{}"]*\]', lambda row: re.sub(r"\n *", " ", row[0]), text)
        with manifest.changing(self.path, _EVALUATION):
            write_atomically(self.evaluation_file, lambda file: file.write_text(text + "\n"))

    def evaluation(self) -> dict[str, Any]:
        """Content of `evaluation.json`.

        Raises:
            ValueError: If the run has not been evaluated.
        """
        file = self.evaluation_file
        if not self.has_evaluation():
            raise ValueError(f"run: expected a finished training in {str(self.path)!r}, got no {_EVALUATION}")
        try:
            content = archive.parse_json(file.read_bytes(), _MAX_EVALUATION_BYTES)
            checks.kind("content", content, dict)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"run: expected a whole {archive.one_line(file)}, got {archive.one_line(error)}; evaluate again"
            ) from error
        return content


def run_to_resume(path: pathlib.Path, config: TrainConfig, *, overwrite: bool, resume: bool) -> Run | None:
    """The run to go on with; None if a new one may be made.

    Args:
        path: The folder.
        config: Settings of the training.
        overwrite: Whether to delete the run that the folder may hold.
        resume: Whether to go on with it.

    Raises:
        ValueError: If the folder holds something else, the run was begun with other settings, or both `overwrite`
            and `resume` are given.
    """
    check_one_of(overwrite, resume)
    if not resume or not holds_run(path):
        check_free(path, overwrite)
        return None
    run = Run.load(path)
    for name, value in config.to_dict().items():
        before = getattr(run.config, name)
        if before != value and not (name == "dataset" and _same(path_of(value), run.dataset_path)):
            raise ValueError(
                f"{name}: expected {before}, with which the training to resume was begun, got {value}; leave the "
                "settings to the run folder (--resume --output), or train into another one"
            )
    return run


def _are_strings(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _same(path: pathlib.Path | None, other: pathlib.Path | None) -> bool:
    return path is not None and other is not None and path.resolve() == other.resolve()


def _rounded(error: float | None, kind: str = "f") -> str:
    return "?" if error is None else f"{error:.2{kind}}"
