"""The command line `tfp-cvae`: parsing only. Imports no TensorFlow, so that `--help` answers at once."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import io
import operator
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

import tfp_cvae
from tfp_cvae import archive, commands, recipes
from tfp_cvae.config import TrainConfig
from tfp_cvae.dataset_names import default_output
from tfp_cvae.run import Run
from tfp_cvae.run_folder import has_config

_DESCRIPTION = (
    "Class-conditional variational autoencoders: train, evaluate, generate, serve. --version prints the version."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; None for those of the process.

    Returns:
        Exit status: 0, 2 after a mistake of the user, 130 after Ctrl-C, 141 if nobody reads what is printed any more.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    # None where the shell has closed it.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A name that the encoding does not have must not end an evaluation after hours; others than files have none.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if words == ["--version"]:
            print(f"tfp-cvae {tfp_cvae.__version__}")
        else:
            _parse(words).run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # As of `tfp-cvae ... | head`. What Python would still write when it ends has to go somewhere.
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
        return 141
    except Exception as error:
        explained = _explained(error, words)
        if explained is None or os.environ.get("TFP_CVAE_TRACEBACK"):
            raise
        print(f"error: {archive.one_line(explained, 900)}", file=sys.stderr)
        return 2
    return 0


def _explained(error: Exception, words: Sequence[str]) -> str | None:
    """What went wrong, if it is a mistake of the user; None for one of the program."""
    if isinstance(error, (OSError, TypeError, ValueError)):
        return str(error)
    # That of TensorFlow, which is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        wanted = re.search(r"shape\[[\d,]+\]", str(error))
        got = f"a tensor of {wanted[0]}" if wanted else "more"
        advice = {"train": "lower width, depth, latent_size or batch_size", "evaluate": "pass --quick"}
        help_it = advice.get(words[0] if words else "", "end other programs, or use a machine that has more")
        return f"memory: expected what this machine has, got {got}; {help_it}"
    return None


def _parse(words: list[str]) -> Any:
    """Parses the command line; a mistake becomes a ValueError, in place of the box that tyro prints."""
    words = [_with_home(word) for word in words]
    for before, word in zip(["the command", *words], words, strict=False):
        # A path of no letters would be the current folder.
        if not word or re.fullmatch(r"--[\w-]+=", word):
            raise ValueError(
                f"{word.rstrip('=') or before}: expected a value, got an empty word; is a variable not set?"
            )
    if words and not words[0].startswith("-") and words[0] not in commands.COMMANDS:
        near = difflib.get_close_matches(words[0], commands.COMMANDS, n=1)
        guess = f"did you mean {near[0]}?" if near else f"see {_help([])}"
        raise ValueError(f"command: expected one of {', '.join(commands.COMMANDS)}, got {words[0]!r}; {guess}")
    # The recipe, or the run to resume, decides the defaults of the other flags, and has to be known before they are
    # parsed.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe")
    first.add_argument("--dataset")
    first.add_argument("--output", type=pathlib.Path)
    first.add_argument("--resume", action="store_true")
    try:
        known = first.parse_known_args(words)[0]
        config = recipes.recipe(known.recipe or "default")
        output = known.output or default_output(known.dataset or config.dataset)
        if known.resume and not known.recipe and has_config(output):
            config = Run.load(output).config
    except argparse.ArgumentError:
        config = TrainConfig()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(_any_command(config), prog="tfp-cvae", description=_DESCRIPTION, args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _unbroken(_unboxed(printed.getvalue()), words)
        raise ValueError(archive.one_line(f"{message}; {_near(message, words)}see {_help(words)}", 900)) from None


def _with_home(word: str) -> str:
    """A path after a flag and `=`, where a shell leaves `~` as it is, which would become a folder of that name."""
    return re.sub(r"^(--(?:output|dataset)=)~(?=/|$)", lambda flag: flag[1] + os.path.expanduser("~"), word)


def _any_command(config: TrainConfig) -> Any:
    """Type of the commands; the settings of `train` are those of `config` unless a flag changes them."""
    kinds = [
        Annotated[
            kind,
            tyro.conf.subcommand(name, prefix_name=False, default=kind(config))
            if kind is commands.Train
            else tyro.conf.subcommand(name, prefix_name=False),
        ]
        for name, kind in commands.COMMANDS.items()
    ]
    return functools.reduce(operator.or_, kinds)


def _help(words: Sequence[str]) -> str:
    """The command that lists what the words could have been."""
    return f"tfp-cvae {words[0]} --help" if words and words[0] in commands.COMMANDS else "tfp-cvae --help"


def _near(message: str, words: Sequence[str]) -> str:
    """What a misspelt word could have meant."""
    command = commands.COMMANDS.get(words[0]) if words else None
    kinds = [command, TrainConfig] if command is commands.Train else [command] if command else []
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)} - {"config", "run_folder"}
    flags = [f"--{name.replace('_', '-')}" for name in sorted(names)]
    for word in re.findall(r"[\w-]+", message.partition("Unrecognized options:")[2]):
        near = difflib.get_close_matches(word, flags if word.startswith("--") else commands.COMMANDS, n=1, cutoff=0.7)
        if near:
            return f"did you mean {near[0]}? "
    return ""


def _unboxed(text: str) -> str:
    """The first paragraph in a box of tyro, without the box."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in text.splitlines()]
    inner = [line for line in lines if line]
    # The title stands in the first rule, or, in the ASCII of an output that is not UTF-8, above it.
    rules = [index for index, line in enumerate(inner) if line.startswith("╭") or set(line) <= set("─╰╯-")]
    begin, end = [-1, *rules, len(inner), len(inner)][1:3] if rules else (-1, len(inner))
    return " ".join(inner[begin + 1 : end]).rstrip(".")


def _unbroken(text: str, words: Sequence[str]) -> str:
    """The text with those words in one piece that a line of the box, which has 80 columns at most, had to break."""
    for word in words:
        value = word[word.startswith("--") and word.find("=") + 1 :].strip(" ")
        # As it is, and as Python writes it; the end of a longer one is not shown.
        for shown in (value[:900], repr(value)[1:-1][:900]):
            # A shorter one is not broken.
            if len(shown) > 30:
                broken = " +".join(" ?".join(map(re.escape, part)) for part in shown.split(" ") if part)
                text = re.sub(broken, shown.replace("\\", r"\\"), text)
    return text
