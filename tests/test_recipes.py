import csv
import dataclasses
import json
import pathlib
import re
import statistics

import pytest

from tfp_cvae import cli
from tfp_cvae.config import TrainConfig
from tfp_cvae.recipes import RECIPES, recipe

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def test_a_recipe_sets_what_no_flag_does():
    command = cli._parse(["train", "--recipe", "best", "--epochs", "3", "--seed", "7"])
    assert command.config == dataclasses.replace(recipe("best"), epochs=3, seed=7)
    assert cli._parse(["train", "--recipe=homework"]).config == recipe("homework")
    assert cli._parse(["train"]).config == TrainConfig() == recipe("default")


def test_they_differ_and_are_listed(capsys):
    assert len({found.config for found in RECIPES.values()}) == len(RECIPES)
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name, found in RECIPES.items():
        assert name in out
        assert found.purpose in out
        assert found.reached in out


def test_what_they_reached_is_in_the_results():
    """Each figure is that of the results to its last digit."""
    with (RESULTS / "likelihood.csv").open(newline="") as lines:
        measured = {row["run"]: row for row in csv.DictReader(lines)}
    expected = {}
    for name, file in {"best": "best", "default": "mnist"}.items():
        found = json.loads((RESULTS / f"{file}-evaluation.json").read_text())
        expected[name] = {
            "ELBO": found["elbo"]["mean"],
            "log p(x|y)": found["log_p_x_given_y"]["mean"],
            "log p(x)": found["log_p_x"]["mean"],
            "right": 100 * found["bayes_accuracy"]["mean"],
        }
    for name, runs in {"ten-minutes": ["ten0", "ten1", "ten2"], "homework": ["homework"]}.items():
        columns = {"ELBO": "elbo", "log p(x|y)": "log_p_x_given_y"}
        expected[name] = {
            word: statistics.mean(float(measured[run][column]) for run in runs) for word, column in columns.items()
        }
        assert all(int(measured[run]["recipe_epochs"]) == RECIPES[name].config.epochs for run in runs)
    with (RESULTS / "few-labels.csv").open(newline="") as lines:
        few = list(csv.DictReader(lines))
    for name, (begin, choices) in {
        "few-labels": ("thirty-100-", 5),
        "m1": ("m1-100-", 5),
        "m1+m2": ("m1m2-100-", 1),
    }.items():
        rows = [row for row in few if row["run"].startswith(begin)]
        assert len(rows) == choices
        assert all(int(row["epochs"]) == RECIPES[name].config.epochs for row in rows)
        expected[name] = {"right": 100 - statistics.mean(float(row["label_posterior"]) for row in rows)}
    for name, found in RECIPES.items():
        said = dict(re.findall(r"(ELBO|log p\(x\|y\)|log p\(x\)) (-\d+\.\d)", found.reached))
        said.update(
            {
                word: number
                for number, word in re.findall(r"([\d.]+)% (?:of the binarized test images )?(right)", found.reached)
            }
        )
        assert said == {word: f"{value:.1f}" for word, value in expected[name].items()}


@pytest.mark.parametrize("arguments", [["train", "--recipe", "bets"], ["train", "--recipe=bets"]])
def test_a_name_that_does_not_exist(arguments, capsys):
    assert cli.main(arguments) == 2
    expected = (
        "error: recipe: expected one of default, homework, ten-minutes, best, m1, m1+m2, few-labels, got 'bets'\n"
    )
    assert capsys.readouterr().err == expected
