import json
import subprocess
import sys

import numpy as np
import pytest

from tfp_cvae.config import EvaluationConfig, TrainConfig


def test_json_round_trip():
    config = TrainConfig(dataset="mnist", network="conv", width=12, free_bits=0.5, seed=3)
    assert TrainConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["width"] == 12


def test_numbers_of_numpy_are_as_those_of_python():
    """As of `for seed in np.arange(3)`; they would not go into a file of JSON."""
    given = {"seed": np.int64(3), "width": np.int32(7), "epochs": np.uint8(5), "learning_rate": np.float32(0.25)}
    config = TrainConfig(**given)
    assert config == TrainConfig.from_json(config.to_json())
    for value, kind in (*((getattr(config, name), int) for name in list(given)[:3]), (config.learning_rate, float)):
        assert type(value) is kind
    evaluation = EvaluationConfig(num_images=np.int64(5), label_margin=np.float32(20), seed=np.int64(1))
    assert [type(value) for value in (evaluation.num_images, evaluation.label_margin, evaluation.seed)] == [
        *(int, float, int)
    ]


def test_configuration_needs_neither_tensorflow_nor_numpy():
    code = "import sys, tfp_cvae.config; print(sorted({'numpy', 'tensorflow'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"latent_size": 0}, ValueError, "latent_size: expected an integer >= 1, got 0"),
        ({"latent_size": 2.5}, TypeError, "latent_size: expected an integer >= 1, got 2.5 of type float"),
        ({"epochs": True}, TypeError, "epochs: expected an integer >= 1, got True"),
        ({"depth": 0}, ValueError, "depth: expected an integer >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"seed": 2**31}, ValueError, "seed: expected an integer >= 0 and < 2147483648, got 2147483648"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: expected a number > 0, got nan"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate: expected a number > 0, got 'fast' of type str"),
        ({"learning_rate": 0}, ValueError, "learning_rate: expected a number > 0, got 0"),
        ({"dataset": 3}, TypeError, "dataset: expected a str, got 3 of type int"),
        ({"conditional": "no"}, TypeError, "conditional: expected a bool, got 'no' of type str"),
        (
            {"learning_rate_warmup_epochs": 3, "epochs": 2},
            ValueError,
            "learning_rate_warmup_epochs: expected at most epochs, 2, got 3",
        ),
        ({"kl_warmup_epochs": 3, "epochs": 2}, ValueError, "kl_warmup_epochs: expected at most epochs, 2, got 3"),
        ({"prior": "label", "conditional": False}, ValueError, "prior: expected standard for a model that is not"),
        ({"ema_momentum": 1.0}, ValueError, "ema_momentum: expected a number >= 0 and < 1, got 1.0"),
        ({"network": "transformer"}, ValueError, "network: expected one of mlp, residual, conv, got 'transformer'"),
        ({"binarization": "static"}, ValueError, "binarization: expected one of dynamic, threshold, none"),
        ({"num_labels": 100}, ValueError, "num_labels: expected none with the model cvae, got 100; pass --model m2"),
        ({"model": "m1"}, ValueError, "conditional: expected False with m1, a plain VAE, got True; pass --no-cond"),
        ({"model": "m2", "num_labels": 0}, ValueError, "num_labels: expected an integer >= 1, got 0"),
        (
            {"model": "m2", "objective": "iwae"},
            ValueError,
            "model: expected m2 to be conditional, with the objective elbo, got another",
        ),
        (
            {"model": "m1+m2", "objective": "iwae"},
            ValueError,
            r"model: expected m1\+m2 to be conditional, with the obj",
        ),
        (
            {"model": "m1+m2", "prior": "flow"},
            ValueError,
            r"model: expected m1\+m2 with the prior standard and without",
        ),
        (
            {"model": "m1+m2", "free_bits": 0.1},
            ValueError,
            r"model: expected m1\+m2 with the prior standard and without",
        ),
        ({"model": "m2", "conditional": False}, ValueError, "got --no-conditional; leave it out"),
        (
            {"model": "m2", "epochs": 1},
            ValueError,
            "label_warmup_epochs: expected less than epochs, 1, got 1; train longer",
        ),
        (
            {"deformation": 0.5},
            ValueError,
            "deformation: expected 0.0, its default, with the model cvae, got 0.5; pass",
        ),
        ({"model": "m2", "deformation": -1}, ValueError, "deformation: expected a number >= 0, got -1"),
        ({"objective": "iwae", "kl_weight": 0.5}, ValueError, "objective: expected elbo with kl_weight"),
    ],
)
def test_mistakes(values, error, message):
    with pytest.raises(error, match=message):
        TrainConfig(**values)


def test_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match=r"expected a known key, got 'latent_dim'; did you mean latent_size\?"):
        TrainConfig.from_dict({"latent_dim": 3})
