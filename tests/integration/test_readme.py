"""The README is run as it stands."""

import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tfp_cvae import cli
from tfp_cvae import commands as commands_module
from tfp_cvae.commands import Evaluate, Train
from tfp_cvae.recognition import correct, recognised, train_classifier
from tfp_cvae.run import Run
from tfp_cvae.sources import load_dataset

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.partition("#")[0].split("&&")]
    return [shlex.split(part) for part in parts if part.startswith("tfp-cvae ")]


def run_command(words, folder):
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the README's first command has been run, `tfp-cvae train`, with the default settings."""
    path = tmp_path_factory.mktemp("readme")
    assert commands()[0] == ["tfp-cvae", "train"]
    out = run_command(["tfp-cvae", "train"], path).stdout
    assert "held-out bound, nats per image: elbo -" in out
    return path


def test_python(tmp_path):
    # The second block goes on where the first ends.
    done = run_command([sys.executable, "-c", "\n".join(blocks("python"))], tmp_path)
    # Two lines an epoch, of checks of the validation batches.
    assert "Skipping loop optimization" not in done.stderr
    assert (tmp_path / "cvae.keras").is_file()
    assert (tmp_path / "serving" / "cvae" / "1" / "saved_model.pb").is_file()


@pytest.mark.usefixtures("quick_judge")
def test_commands(folder, monkeypatch):
    """Most in this process, as the first one was in its own, and with a small evaluation."""
    names = ("evaluate", "generate", "plot", "export", "recipes", "datasets")
    quick = [words for words in commands() if words[1] in names and "runs/best" not in words]
    assert {words[1] for words in quick} == set(names)
    amounts = {"num_images": 20, "num_classifier_images": 200, "generated_per_class": 2, "classifier_epochs": 1}
    small = dataclasses.replace(commands_module.QUICK_EVALUATION, num_importance_samples=2, **amounts)
    monkeypatch.setattr(commands_module, "QUICK_EVALUATION", small)
    monkeypatch.chdir(folder)
    for words in quick:
        if words[1] in ("recipes", "datasets"):
            run_command(words, folder)
        else:
            assert cli.main(words[1:]) == 0, words
    assert PIL.Image.open(folder / "three.png").size[0] > 300
    # The long ones are at least understood.
    long = [cli._parse(words[1:]) for words in commands() if words not in quick and words != ["tfp-cvae", "train"]]
    assert any(isinstance(command, Train) and command.config.dataset == "mnist" for command in long)
    assert any(isinstance(command, Evaluate) and not command.quick for command in long)


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("https:")]
    assert len(targets) > 3
    for target in targets:
        assert (ROOT / target).exists(), target


def test_each_file_of_results_is_explained():
    results = ROOT / "benchmarks" / "results"
    named = re.findall(r"`([\w-]+\.(?:json|csv|txt))`", (results / "README.md").read_text())
    assert {path.name for path in results.iterdir()} - {"README.md"} == set(named)


@pytest.mark.mnist
def test_all_ten_classes_of_the_default_run_are_recognised(folder):
    mnist = load_dataset("mnist")
    # Enough of them for a judge that is right as often as is asked for below.
    few = np.arange(20_000)
    classifier = train_classifier(mnist.train.binarized("none", rows=few), mnist.train.labels[few], 10, epochs=4)
    assert correct(classifier, mnist.test.binarized("none"), mnist.test.labels).mean() > 0.985
    fractions = recognised(classifier, Run.load(folder / "runs" / "mnist5k").model(), count=1000).mean(axis=1)
    print("recognised, by class:", np.round(fractions, 3))
    assert len(fractions) == 10
    assert fractions.min() >= 0.85
