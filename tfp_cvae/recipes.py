"""Named settings for a purpose, with what they reach. Imports no TensorFlow."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from tfp_cvae import checks
from tfp_cvae.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings for a purpose.

    Attributes:
        purpose: What it is for.
        config: The settings.
        reached: What it reached on MNIST; benchmarks/results has the commands and the whole result.
    """

    purpose: str
    config: TrainConfig
    reached: str


_CONV = TrainConfig(network="conv", prior="flow", learning_rate=2e-3, learning_rate_warmup_epochs=1)
_FEW_LABELS = TrainConfig(model="m2", width=300, latent_size=32, epochs=10, labelled_per_batch=8, deformation=1.0)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "default": Recipe(
            "plain MLP with a falling learning rate: small, quick, no surprises",
            TrainConfig(),
            "MNIST, 6 minutes: ELBO -85.3, log p(x|y) -82.8, log p(x) -85.0 nats; Bayes' rule 98.7% right",
        ),
        "homework": Recipe(
            "the report that this package began as: plain MLP 500-500, constant learning rate",
            TrainConfig(learning_rate_schedule="constant"),
            "MNIST, 6 minutes: ELBO -88.0, log p(x|y) -83.8 nats",
        ),
        "ten-minutes": Recipe(
            "the most for ten minutes of training on the full MNIST with two cores",
            dataclasses.replace(_CONV, epochs=10),
            "MNIST, 10 minutes: ELBO -81.8, log p(x|y) -79.3 nats, means of 3 training seeds",
        ),
        "best": Recipe(
            "the best likelihood for at most 90 minutes of training on the full MNIST with two cores",
            dataclasses.replace(_CONV, epochs=80),
            "MNIST, 76 minutes: ELBO -79.6, log p(x|y) -77.5, log p(x) -79.8 nats; Bayes' rule 99.2% right",
        ),
        "m1": Recipe(
            "M1 for comparison: a plain VAE, and a linear classifier of the images that have a label (--num-labels)",
            TrainConfig(model="m1", conditional=False, latent_size=50, epochs=10),
            "MNIST, 100 labels: it has 71.9% of the binarized test images right, mean of 5 choices of the labels",
        ),
        "m1+m2": Recipe(
            "M2 stacked on the latent of M1 (--num-labels), for comparison",
            dataclasses.replace(_FEW_LABELS, model="m1+m2"),
            "MNIST, 100 labels: q(y|x) has 96.6% of the binarized test images right, with one choice of the labels",
        ),
        "few-labels": Recipe(
            "M2 on images of which few have a label (--num-labels), in ten minutes on the full MNIST with two cores",
            dataclasses.replace(_FEW_LABELS, epochs=30, learning_rate=2e-3, kl_weight=2.0),
            "MNIST, 100 labels: q(y|x) has 98.5% of the binarized test images right, mean of 5 choices of the labels",
        ),
    }
)


def recipe(name: str) -> TrainConfig:
    """Settings of a recipe; `dataclasses.replace` changes some of them.

    Args:
        name: Name in `RECIPES`.

    Raises:
        ValueError: If there is no such recipe.
    """
    checks.choice("recipe", name, list(RECIPES))
    return RECIPES[name].config


def table() -> str:
    """The recipes, with what they are for and what they reach."""
    width = max(map(len, RECIPES))
    return "\n".join(
        f"{name:{width}}  {found.purpose}\n{'':{width}}  {found.reached}" for name, found in RECIPES.items()
    )
