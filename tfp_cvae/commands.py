"""The commands of the command line: their flags, and what they run.

TensorFlow, which takes seconds, is imported after what can be refused without it.
"""

import dataclasses
import importlib
import os
import pathlib
import platform
import re
import shlex
import sys
from typing import Annotated

import tyro

from tfp_cvae import checks, manifest, recipes
from tfp_cvae.config import QUICK_EVALUATION, EvaluationConfig, TrainConfig
from tfp_cvae.dataset_names import check_is_there, default_output
from tfp_cvae.run import Run, run_to_resume
from tfp_cvae.run_folder import checked_versions_folder


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model into a new run folder, measure its bound on held-out images, draw its figures."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    output: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Run folder to make; by default runs/ and the name of the data set."""
    overwrite: bool = False
    """Delete the run that the folder may hold."""
    resume: bool = False
    """Go on with the run that the folder may hold, exactly as if it had not been interrupted."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = "default"
    """Named settings, which `tfp-cvae recipes` lists; the other flags change some of them."""
    # Read by `_parse`, which gives `config` the settings of the recipe before the other flags are parsed.

    def run(self) -> None:
        """Runs the command."""
        output = self.output or default_output(self.config.dataset)
        # The folder of several workers is that of their chief, which may have begun to write.
        if not os.environ.get("TF_CONFIG"):
            begun = run_to_resume(output, self.config, overwrite=self.overwrite, resume=self.resume)
            if begun is None:
                check_is_there(self.config.dataset)
            elif begun.is_finished():
                begun.delete_old_backup()
                print(f"{begun.path}: the training is finished\n{begun.summary()}")
                return
        import_tensorflow()
        from tfp_cvae.training import train

        run = train(self.config, output, overwrite=self.overwrite, resume=self.resume, verbose=_verbose())
        print(f"{run.summary()}\nnext:    {shlex.join(['tfp-cvae', 'evaluate', str(run.path), '--quick'])}")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure what the model of a run is worth: likelihood, classification by Bayes' rule, latents and samples."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder, in which evaluation.json and figures are written."""
    quick: bool = False
    """An answer after a minute or two: 500 images, K = 100, classifiers on 10,000 images, 100 samples of a class."""
    num_importance_samples: int | None = None
    """Importance samples K for each image; by default 5,000, or 100 with --quick."""
    num_images: int | None = None
    """Test images, a seeded choice; by default all, or 500 with --quick."""
    label_margin: float | None = None
    """Nats below the best label, after 100 samples each, at which a label gets no further samples; by default 20."""
    seed: int | None = None
    """Seed of importance samples, generated images and classifiers; by default 0."""
    dataset: str | None = None
    """Another data set with the same classes; by default that of the training, with the labels that it kept."""

    def run(self) -> None:
        """Runs the command."""
        names = ("num_importance_samples", "num_images", "label_margin", "seed")
        given = {name: getattr(self, name) for name in names}
        config = dataclasses.replace(
            QUICK_EVALUATION if self.quick else EvaluationConfig(),
            **{name: value for name, value in given.items() if value is not None},
        )
        run = Run.load(self.run_folder)
        run.check_has_model()
        if self.dataset:
            check_is_there(self.dataset)
        _note_if_unfinished(run)
        import_tensorflow()
        from tfp_cvae import distribution, figures
        from tfp_cvae.evaluation import evaluate_run
        from tfp_cvae.sources import load_dataset

        strategy = distribution.from_environment()
        is_chief = distribution.is_chief(strategy)
        dataset = load_dataset(self.dataset) if self.dataset else run.training_data()
        with distribution.explained(strategy):
            result = evaluate_run(run, dataset, config, verbose=_verbose() if is_chief else 0, strategy=strategy)
        if not is_chief:
            return
        print(f"\n{result}")
        print(f"\n{run.evaluation_file}, and its figures:", flush=True)
        for path in figures.draw_evaluation(run, dataset):
            print(path)


@dataclasses.dataclass(frozen=True)
class Generate:
    """Generate images of one class with a trained model, as one picture."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    output: pathlib.Path
    """Picture to write, in the place of one of that name; the suffix decides the format."""
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS")] = None
    """Class, by its name or its number from 0; not for a model without classes."""
    count: int = 16
    """Number of images, at most 1,000."""
    seed: int = 0
    """Seed of the first image; the others follow it."""

    def run(self) -> None:
        """Runs the command."""
        from tfp_cvae import pictures

        run = Run.load(self.run_folder)
        run.check_has_model()
        number = run.class_number(self.label)
        pictures.check_samples(self.count, self.seed, self.output)
        _note_if_unfinished(run)
        import_tensorflow()
        from tfp_cvae.figures import draw_samples

        draw_samples(run, number, self.count, self.seed, self.output)
        print(f"{_images(self.count)}, {pictures.seeds(self.seed, self.count)}: {self.output}")


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the figures of a run again."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""

    def run(self) -> None:
        """Runs the command."""
        run = Run.load(self.run_folder)
        run.check_has_model()
        _note_if_unfinished(run)
        import_tensorflow()
        from tfp_cvae import figures

        cvae = run.model()
        try:
            dataset = run.training_data()
        except (OSError, TypeError, ValueError) as error:
            print(f"without figures of real images, which need the data set: {error}", file=sys.stderr)
            dataset = None
        drawn = figures.draw(run, cvae, dataset)
        own = not run.has_evaluation() or run.is_evaluated_on_own_data()
        for path in drawn + figures.draw_evaluation(run, dataset if own else None):
            print(path)


@dataclasses.dataclass(frozen=True)
class Export:
    """Export the model of a run as the next version that TensorFlow Serving can run."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    output: Annotated[pathlib.Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the versions; its name is that of the served model."""
    num_importance_samples: int = 100
    """Importance samples K of the signatures log_likelihood and classify."""

    def run(self) -> None:
        """Runs the command."""
        run = Run.load(self.run_folder)
        run.check_has_model()
        checked_versions_folder("output", self.output)
        checks.num_samples("num_importance_samples", self.num_importance_samples)
        _note_if_unfinished(run)
        import_tensorflow()
        from tfp_cvae.export import export_run, server_commands

        version = export_run(run, self.output, num_importance_samples=self.num_importance_samples)
        print(f"{version}\n\nTo serve it with Docker, or with the server installed, and ask it for images:\n")
        print(server_commands(version))


@dataclasses.dataclass(frozen=True)
class Request:
    """Ask a server of an exported model for images, and write them as one picture."""

    url: str
    """http://HOST:8501/v1/models/NAME, or grpc://HOST:8500/v1/models/NAME; for one version with /versions/N."""
    output: pathlib.Path
    """Picture to write, in the place of one of that name; the suffix decides the format."""
    label: Annotated[str | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Class, by its number from 0, as the server does not know its name; not for a model without classes."""
    count: int = 16
    """Number of images, at most 1,000."""
    seed: int = 0
    """Seed of the first image; the others follow it."""

    def run(self) -> None:
        """Runs the command."""
        import numpy as np

        from tfp_cvae import pictures
        from tfp_cvae.client import request_images

        pictures.check_samples(self.count, self.seed, self.output)
        if self.label is not None and not re.fullmatch(r"\d{1,9}", self.label):
            raise ValueError(f"label: expected the number of a class, from 0 (model_card.json), got {self.label!r}")
        if self.url.startswith("grpc:"):
            import_tensorflow()
        seed = self.seed + np.arange(self.count)
        images = request_images(self.url, None if self.label is None else np.full(self.count, int(self.label)), seed)
        name = "" if self.label is None else f"class {self.label}, "
        seeds = pictures.seeds(self.seed, self.count)
        pictures.save_samples(images, name + seeds, self.output)
        print(f"{_images(self.count)}, {seeds}, from {self.url}: {self.output}")


@dataclasses.dataclass(frozen=True)
class Check:
    """Check the files of a run against the sizes and SHA-256 in manifest.json."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""

    def run(self) -> None:
        """Runs the command."""
        run = Run.load(self.run_folder)
        if run.backup_folder.exists():
            raise ValueError(f"run: expected a finished training in {run.path}, but {run.stage()}; go on with --resume")
        faults = run.faults()
        if faults:
            found = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
            raise ValueError(f"run: expected {run.path} as it was written, got: {found}")
        files, _ = manifest.read(run.path)
        for name, entry in files.items():
            print(f"{entry['size']:12,} bytes  {name}")
        print(f"{run.path}: all files are there, with the sizes and SHA-256 of {manifest.FILE}")


@dataclasses.dataclass(frozen=True)
class Datasets:
    """List the data sets that can be loaded here, and from where."""

    def run(self) -> None:
        """Runs the command."""
        import_tensorflow()
        from tfp_cvae.sources import list_datasets

        for name, source in list_datasets():
            print(f"{name:24} {source}")


@dataclasses.dataclass(frozen=True)
class Recipes:
    """List the recipes with what they are for and what they reach."""

    def run(self) -> None:
        """Runs the command."""
        print(recipes.table())


COMMANDS = {
    kind.__name__.lower(): kind for kind in (Train, Evaluate, Generate, Plot, Export, Request, Check, Recipes, Datasets)
}


def _note_if_unfinished(run: Run) -> None:
    if run.backup_folder.exists():
        print(f"{run.path}: the best model so far, as {run.stage()}", file=sys.stderr)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _verbose() -> int:
    """As Keras counts: progress bars in a terminal, which redraws them; in a file, which would keep each, one line."""
    return 1 if sys.stdout.isatty() else 2


def import_tensorflow() -> None:
    """Imports TensorFlow with oneDNN, and without its notes on the machine, some of which no setting silences.

    On x86 processors without instructions for neural networks (AVX512-VNNI and the like), TensorFlow leaves oneDNN off,
    although convolutions are faster with it there, too. Other processors are left as TensorFlow has them. In a
    terminal, a line says what takes the time until it is done.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    in_terminal = sys.stderr.isatty() and "tensorflow" not in sys.modules
    if in_terminal:
        print("loading TensorFlow ...", end="", file=sys.stderr)
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        importlib.import_module("tensorflow")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        if in_terminal:
            # Back to the beginning of the line, which is erased.
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
