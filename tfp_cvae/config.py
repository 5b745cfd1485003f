"""The settings of a training run: one frozen dataclass that validates itself. Imports no TensorFlow."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tfp_cvae import archive, checks
from tfp_cvae.dataset_names import EMBEDDED

Binarization = Literal["dynamic", "threshold", "none"]
Network = Literal["mlp", "residual", "conv"]
Prior = Literal["standard", "label", "flow"]
Objective = Literal["elbo", "iwae"]
Model = Literal["cvae", "m1", "m2", "m1+m2"]
Precision = Literal["float32", "mixed_bfloat16"]
LearningRateSchedule = Literal["cosine", "constant"]

# Seed of the one draw in which validation and test images are binarized, for all runs alike.
HELD_OUT_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the result of a training run.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value is out of range.
    """

    dataset: str = EMBEDDED
    """mnist5k (embedded), a TFDS name such as mnist, a file.npz, or a folder of .npy files or of classes."""
    binarization: Binarization = "dynamic"
    """Each pixel 1 with probability pixel/255, or if >= 128; or grey values, whose bounds are not comparable."""
    conditional: bool = True
    """Condition on the label; without it, the plain VAE."""

    model: Model = "cvae"
    """The CVAE; M1, a plain VAE whose latent a linear classifier reads; M2, a CVAE with q(y|x); or M2 stacked on M1."""
    num_labels: int | None = None
    """Training images that keep their label, equally many in each class, by the seed; by default all (not cvae)."""
    labelled_per_batch: int | None = None
    """Labelled images in each batch, the others have none; by default their share, at least 1/16 (m2, m1+m2)."""
    classification_weight: float = 30.0
    """Weight of -log q(y|x) at the given labels in the loss (m2, m1+m2)."""
    label_warmup_epochs: int = 1
    """Epochs over which the weight of the bound's gradient with respect to q(y|x) rises from 0 (m2, m1+m2)."""
    deformation: float = 0.0
    """Strength of random deformations of what q(y|x) sees in training, for digits on black; 0 for none (m2, m1+m2)."""

    network: Network = "mlp"
    """Encoder and decoder."""
    latent_size: int = 40
    """Size of z; with m1+m2, of z1 and also of z2."""
    width: int | None = None
    """Units (mlp, residual) or channels (conv) of a layer; by default what suits the network."""
    depth: int | None = None
    """Hidden layers (mlp) or residual blocks (residual; conv: at each resolution)."""
    prior: Prior = "standard"
    """p(z|y): the standard normal, one normal learned for each label, or a normalizing flow that knows the label."""
    precision: Precision = "float32"
    """Dtype policy of the networks; their weights, and all log-probabilities and the KL, are float32 with either."""

    objective: Objective = "elbo"
    """Bound that is maximised."""
    num_samples: int = 1
    """Latent samples K for each image."""
    kl_weight: float = 1.0
    """Weight of the KL in the loss; the reported bound stays the true one."""
    kl_warmup_epochs: int = 0
    """Epochs in which the KL weight rises linearly to its full value."""
    free_bits: float = 0.0
    """Nats of KL that each latent dimension has for free in the loss."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images for each step."""
    learning_rate: float = 1e-3
    """Of Adam, at the start, or after the warm-up."""
    learning_rate_schedule: LearningRateSchedule = "cosine"
    """How the learning rate falls: along a cosine to 0 at the last epoch, or not at all."""
    learning_rate_warmup_epochs: int = 0
    """Epochs in which the learning rate rises linearly from 0 before it falls, where training begins badly."""
    ema_momentum: float = 0.0
    """Momentum of the moving average of the weights, which is what is validated and kept; 0 keeps the weights."""
    early_stopping: int = 0
    """Epochs without a better validation bound after which training stops; 0 for never."""
    tensorboard: bool = False
    """Write logs for TensorBoard, which has to be installed (the extra tensorboard)."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, the binarization and the latent samples."""

    def __post_init__(self) -> None:
        checks.kind("dataset", self.dataset, str)
        for field in dataclasses.fields(self):
            if field.type is bool:
                checks.kind(field.name, getattr(self, field.name), bool)
            elif typing.get_origin(field.type) is Literal:
                checks.choice(field.name, getattr(self, field.name), typing.get_args(field.type))
        for name in ("latent_size", "num_samples", "epochs", "batch_size"):
            _put(self, name, checks.integer, 1)
        for name in ("width", "depth", "num_labels", "labelled_per_batch"):
            if getattr(self, name) is not None:
                _put(self, name, checks.integer, 1)
        for name in ("kl_warmup_epochs", "early_stopping", "label_warmup_epochs", "learning_rate_warmup_epochs"):
            _put(self, name, checks.integer, 0)
        for name in ("kl_weight", "free_bits", "classification_weight", "deformation"):
            _put(self, name, checks.number, 0)
        _put(self, "learning_rate", checks.number, 0, above=True)
        _put(self, "ema_momentum", checks.number, 0, below=1)
        _put(self, "seed", checks.seed)
        if self.model == "cvae" and self.num_labels:
            raise ValueError(f"num_labels: expected none with the model cvae, got {self.num_labels}; pass --model m2")
        for name in ("labelled_per_batch", "classification_weight", "label_warmup_epochs", "deformation"):
            if not self.semi_supervised and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name}: expected {getattr(type(self), name)}, its default, with the model {self.model}, got "
                    f"{getattr(self, name)}; pass --model m2"
                )
        if self.semi_supervised and self.label_warmup_epochs >= self.epochs:
            raise ValueError(
                f"label_warmup_epochs: expected less than epochs, {self.epochs}, got {self.label_warmup_epochs}; "
                "train longer (--epochs) or lower it (--label-warmup-epochs)"
            )
        if self.model == "m1" and self.conditional:
            raise ValueError("conditional: expected False with m1, a plain VAE, got True; pass --no-conditional")
        if self.semi_supervised and not (self.conditional and self.objective == "elbo"):
            raise ValueError(
                f"model: expected {self.model} to be conditional, with the objective elbo, got "
                + ("another objective; pass --objective elbo" if self.conditional else "--no-conditional; leave it out")
            )
        if self.model == "m1+m2" and (self.prior != "standard" or self.free_bits):
            raise ValueError(
                "model: expected m1+m2 with the prior standard and without free_bits, as p(z1|z2,y) is learned and the "
                "KL is not computed in parts; leave those at their defaults"
            )
        for name in ("kl_warmup_epochs", "learning_rate_warmup_epochs"):
            if (value := getattr(self, name)) > self.epochs:
                raise ValueError(
                    f"{name}: expected at most epochs, {self.epochs}, got {value}; lower it or train longer"
                )
        if self.prior != "standard" and not self.conditional:
            raise ValueError(f"prior: expected standard for a model that is not conditional, got {self.prior}")
        if self.prior == "flow" and self.free_bits:
            raise ValueError(f"free_bits: expected 0 with the prior flow, whose KL has no parts, got {self.free_bits}")
        if self.prior == "flow" and self.latent_size < 2:
            raise ValueError(f"latent_size: expected at least 2 with the prior flow, got {self.latent_size}")
        if self.objective == "iwae" and (self.kl_weight != 1 or self.kl_warmup_epochs or self.free_bits):
            raise ValueError(
                "objective: expected elbo with kl_weight, kl_warmup_epochs or free_bits, got iwae, which has no KL "
                "term; leave those at their defaults"
            )

    @property
    def semi_supervised(self) -> bool:
        """Whether the model has q(y|x) of its own, and learns from images with and without label."""
        return self.model in ("m2", "m1+m2")

    @property
    def suits_xla(self) -> bool:
        """Whether XLA makes encoder and decoder faster on a CPU, which it does not with convolutions or bfloat16."""
        return self.network != "conv" and self.precision == "float32"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Inverse of `to_dict`.

        Args:
            values: Values by field name; fields that are left out take their defaults.

        Raises:
            TypeError: If a value is of the wrong kind.
            ValueError: If a key is not a field, or a value is out of range.
        """
        checks.kind("config", values, Mapping)
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key)[:100], names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(names)}"
                raise ValueError(f"config: expected a known key, got {archive.one_line(repr(key))}; {hint}")
        return cls(**values)

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Inverse of `to_json`.

        Args:
            text: JSON of an object.

        Raises:
            TypeError: If it is no object, or a value is of the wrong kind.
            ValueError: If it is no JSON, a key is not a field, or a value is out of range.
        """
        try:
            values = archive.parse_json(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config: expected JSON of settings, got another text: {error}") from error
        return cls.from_dict(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much an evaluation measures.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value is out of range.
    """

    num_importance_samples: int = 5000
    """Importance samples K for each image."""
    num_images: int | None = None
    """Test images, a seeded choice; by default all."""
    generated_per_class: int = 1000
    """Generated images of each class that a classifier judges."""
    num_classifier_images: int | None = None
    """Training images of the classifiers; by default all."""
    classifier_epochs: int = 6
    """Passes of the classifiers over them; more over few images, for at least 200 steps."""
    label_margin: float = 20.0
    """Nats below the best label, after 100 samples each, at which a label gets no further samples."""
    seed: int = 0
    """Seed of importance samples, generated images and classifiers."""

    def __post_init__(self) -> None:
        _put(self, "num_importance_samples", checks.num_samples)
        for name in ("generated_per_class", "classifier_epochs"):
            _put(self, name, checks.integer, 1)
        for name in ("num_images", "num_classifier_images"):
            if getattr(self, name) is not None:
                _put(self, name, checks.integer, 1)
        _put(self, "label_margin", checks.number, 0)
        _put(self, "seed", checks.seed)


def _put(
    config: TrainConfig | EvaluationConfig, name: str, check: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """Puts what a check returns in the place of a setting, which may be a NumPy number."""
    object.__setattr__(config, name, check(name, getattr(config, name), *args, **kwargs))


QUICK_EVALUATION = EvaluationConfig(
    num_importance_samples=100,
    num_images=500,
    generated_per_class=100,
    num_classifier_images=10_000,
    classifier_epochs=4,
)
