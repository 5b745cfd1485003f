"""Class-conditional variational autoencoders with TensorFlow Probability and Keras.

The names below are imported when they are first used, so that `import tfp_cvae` and the command line start at once.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tfp_cvae.backup import Backup as Backup
    from tfp_cvae.build import build_cvae as build_cvae
    from tfp_cvae.build import build_semi_supervised_cvae as build_semi_supervised_cvae
    from tfp_cvae.callbacks import ImageGrid as ImageGrid
    from tfp_cvae.callbacks import KLWarmUp as KLWarmUp
    from tfp_cvae.callbacks import LabelWarmUp as LabelWarmUp
    from tfp_cvae.callbacks import StopAtNonFiniteLoss as StopAtNonFiniteLoss
    from tfp_cvae.callbacks import SwapEMAWeights as SwapEMAWeights
    from tfp_cvae.client import request_images as request_images
    from tfp_cvae.config import EvaluationConfig as EvaluationConfig
    from tfp_cvae.config import TrainConfig as TrainConfig
    from tfp_cvae.data import Dataset as Dataset
    from tfp_cvae.evaluation import evaluate as evaluate
    from tfp_cvae.export import export_run as export_run
    from tfp_cvae.export import export_saved_model as export_saved_model
    from tfp_cvae.flows import CouplingFlow as CouplingFlow
    from tfp_cvae.importance import ImportanceEstimate as ImportanceEstimate
    from tfp_cvae.importance import importance_estimate as importance_estimate
    from tfp_cvae.layers import IndependentBernoulli as IndependentBernoulli
    from tfp_cvae.layers import MultivariateNormalDiag as MultivariateNormalDiag
    from tfp_cvae.layers import OneHotCategorical as OneHotCategorical
    from tfp_cvae.likelihood import Likelihood as Likelihood
    from tfp_cvae.likelihood import likelihood_under_each_label as likelihood_under_each_label
    from tfp_cvae.losses import ELBO as ELBO
    from tfp_cvae.losses import Distortion as Distortion
    from tfp_cvae.losses import NegativeELBO as NegativeELBO
    from tfp_cvae.losses import NegativeIWAE as NegativeIWAE
    from tfp_cvae.losses import Rate as Rate
    from tfp_cvae.losses import SemiSupervisedNegativeELBO as SemiSupervisedNegativeELBO
    from tfp_cvae.model import CVAE as CVAE
    from tfp_cvae.optimizers import FusedAdam as FusedAdam
    from tfp_cvae.recipes import RECIPES as RECIPES
    from tfp_cvae.recipes import recipe as recipe
    from tfp_cvae.results import Estimate as Estimate
    from tfp_cvae.results import Evaluation as Evaluation
    from tfp_cvae.run import Run as Run
    from tfp_cvae.semi_supervised import SemiSupervisedCVAE as SemiSupervisedCVAE
    from tfp_cvae.sources import load_dataset as load_dataset
    from tfp_cvae.training import train as train

_MODULES = {
    "backup": ("Backup",),
    "build": ("build_cvae", "build_semi_supervised_cvae"),
    "callbacks": ("ImageGrid", "KLWarmUp", "LabelWarmUp", "StopAtNonFiniteLoss", "SwapEMAWeights"),
    "client": ("request_images",),
    "config": ("EvaluationConfig", "TrainConfig"),
    "data": ("Dataset",),
    "evaluation": ("evaluate",),
    "export": ("export_run", "export_saved_model"),
    "flows": ("CouplingFlow",),
    "importance": ("ImportanceEstimate", "importance_estimate"),
    "layers": ("IndependentBernoulli", "MultivariateNormalDiag", "OneHotCategorical"),
    "likelihood": ("Likelihood", "likelihood_under_each_label"),
    "losses": ("ELBO", "Distortion", "NegativeELBO", "NegativeIWAE", "Rate", "SemiSupervisedNegativeELBO"),
    "model": ("CVAE",),
    "optimizers": ("FusedAdam",),
    "recipes": ("RECIPES", "recipe"),
    "results": ("Estimate", "Evaluation"),
    "run": ("Run",),
    "semi_supervised": ("SemiSupervisedCVAE",),
    "sources": ("load_dataset",),
    "training": ("train",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _check_versions() -> None:
    """Raises ImportError if TensorFlow, tf_keras and TensorFlow Probability are not of one generation."""
    found = {}
    for name in ("tensorflow", "tf-keras", "tensorflow-probability"):
        try:
            found[name] = ".".join(importlib.metadata.version(name).split(".")[:2])
        except importlib.metadata.PackageNotFoundError:
            # A build of another name, such as tensorflow-cpu.
            continue
    tensorflow, tf_keras = found.get("tensorflow"), found.get("tf-keras")
    if (tensorflow and tf_keras and tensorflow != tf_keras) or found.get("tensorflow-probability", "0.25") != "0.25":
        raise ImportError(
            "tfp_cvae needs tensorflow and tf-keras of one version and tensorflow-probability 0.25, found "
            f"{', '.join(f'{name} {version}' for name, version in found.items())}; "
            "run pip install 'tensorflow==2.21.*' 'tf-keras==2.21.*' 'tensorflow-probability==0.25.*'"
        )


_check_versions()
