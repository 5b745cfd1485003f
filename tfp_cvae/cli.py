"""The command line `tfp-cvae`: parsing only. TensorFlow is imported late, so that `--help` answers at once."""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from tfp_cvae.config import TrainConfig

_DESCRIPTION = "Class-conditional variational autoencoders: train, look, generate."


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model into a new run folder, measure its bound on held-out images, draw its figures."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    output: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Run folder to make; by default runs/ and the name of the data set."""
    overwrite: bool = False
    """Delete the run that the folder may hold."""

    def run(self) -> None:
        """Runs the command."""
        from tfp_cvae.training import default_output, train

        output = self.output or default_output(self.config)
        print(train(self.config, output, overwrite=self.overwrite).summary())


@dataclasses.dataclass(frozen=True)
class Generate:
    """Generate images of one class with a trained model, as one picture."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    output: pathlib.Path
    """Picture to write; the suffix decides the format."""
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS")] = None
    """Class, by its name or its number from 0; not for a model without classes."""
    count: int = 16
    """Number of images."""
    seed: int = 0
    """Seed of the first image; the others follow it."""

    def run(self) -> None:
        """Runs the command."""
        from tfp_cvae.figures import save_samples
        from tfp_cvae.run import Run

        save_samples(Run.load(self.run_folder), self.label, self.count, self.seed, self.output)
        print(f"{self.count} images, seeds {self.seed} to {self.seed + self.count - 1}: {self.output}")


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the figures of a run again."""

    run_folder: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""

    def run(self) -> None:
        """Runs the command."""
        from tfp_cvae import figures
        from tfp_cvae.run import Run
        from tfp_cvae.sources import load_dataset

        run = Run.load(self.run_folder)
        cvae = run.model()
        try:
            dataset = load_dataset(run.config.dataset)
        except (OSError, ValueError) as error:
            print(f"without styles.png, which needs the data set: {error}", file=sys.stderr)
            dataset = None
        for path in figures.draw(run, cvae, dataset):
            print(path)


@dataclasses.dataclass(frozen=True)
class Datasets:
    """List the data sets that can be loaded here, and from where."""

    def run(self) -> None:
        """Runs the command."""
        from tfp_cvae.sources import list_datasets

        for name, source in list_datasets():
            print(f"{name:24} {source}")


Command = (
    Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
    | Annotated[Generate, tyro.conf.subcommand("generate", prefix_name=False)]
    | Annotated[Plot, tyro.conf.subcommand("plot", prefix_name=False)]
    | Annotated[Datasets, tyro.conf.subcommand("datasets", prefix_name=False)]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; None for those of the process.

    Returns:
        Exit status: 0, 2 after a mistake of the user, 130 after Ctrl-C.
    """
    try:
        command = _parse(arguments)
        _import_tensorflow_quietly()
        command.run()
    except KeyboardInterrupt:
        return 130
    except (OSError, TypeError, ValueError) as error:
        if os.environ.get("TFP_CVAE_TRACEBACK"):
            raise
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


def _import_tensorflow_quietly() -> None:
    """Imports TensorFlow without its notes on instruction sets and missing GPUs, some of which no setting silences."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        importlib.import_module("tensorflow")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _parse(arguments: Sequence[str] | None) -> Any:
    """Parses the command line; a mistake becomes a ValueError, in place of the box that tyro prints."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(Command, prog="tfp-cvae", description=_DESCRIPTION, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_unboxed(printed.getvalue())}; see tfp-cvae --help") from None


def _unboxed(text: str) -> str:
    """The first paragraph in a box of tyro, without the box."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in text.splitlines()]
    inner = [line for line in lines if line and not line.startswith("╭")]
    end = next((index for index, line in enumerate(inner) if set(line) <= set("─╰╯")), len(inner))
    return " ".join(inner[:end]).rstrip(".")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
