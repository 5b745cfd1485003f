import dataclasses

import pytest

from tfp_cvae import cli
from tfp_cvae.config import TrainConfig
from tfp_cvae.recipes import RECIPES, recipe


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


@pytest.mark.parametrize("arguments", [["train", "--recipe", "bets"], ["train", "--recipe=bets"]])
def test_a_name_that_does_not_exist(arguments, capsys):
    assert cli.main(arguments) == 2
    expected = "error: recipe: expected one of default, homework, ten-minutes, best, got 'bets'\n"
    assert capsys.readouterr().err == expected
