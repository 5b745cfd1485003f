"""A CVAE from the package's networks, by name."""

import typing
from collections.abc import Sequence

import tf_keras as keras

from tfp_cvae import checks, networks
from tfp_cvae.config import Network, Prior
from tfp_cvae.flows import flow_prior, stacked_prior
from tfp_cvae.model import CVAE
from tfp_cvae.semi_supervised import SemiSupervisedCVAE


def build_cvae(
    image_shape: Sequence[int],
    num_classes: int,
    latent_size: int = 40,
    network: Network = "mlp",
    *,
    width: int | None = None,
    depth: int | None = None,
    prior: Prior = "standard",
    num_samples: int = 1,
    seed: int = 0,
) -> CVAE:
    """Builds a CVAE from one of the package's networks.

    The initial weights come from Keras's global generator: call `keras.utils.set_random_seed` before it. The networks
    follow the global dtype policy of Keras, such as "mixed_bfloat16", but for what makes the parameters of a density.

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of classes; 0 for the plain VAE of Kingma and Welling 2014.
        latent_size: Size of z, >= 1.
        network: "mlp", "residual" or "conv".
        width: Units or channels of a layer; by default 500 (mlp), 512 (residual) or 32 (conv).
        depth: Hidden layers or residual blocks; by default 2 (mlp, residual) or 1 (conv).
        prior: "standard" for N(0, I), "label" for a normal that is learned for each class, "flow" for a normalizing
            flow that knows the class.
        num_samples: Latent samples K for each image, >= 1.
        seed: Seed of the latent samples.

    Returns:
        The model, not yet compiled.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value is out of range.
    """
    (encoder, decoder), prior_network = _networks(image_shape, num_classes, latent_size, network, width, depth, prior)
    return CVAE(encoder, decoder, prior_network, num_samples=num_samples, seed=seed, name="cvae")


def build_semi_supervised_cvae(
    image_shape: Sequence[int],
    num_classes: int,
    latent_size: int = 40,
    network: Network = "mlp",
    *,
    width: int | None = None,
    depth: int | None = None,
    prior: Prior = "standard",
    num_samples: int = 1,
    seed: int = 0,
    stacked: bool = False,
    deformation: float = 0.0,
) -> SemiSupervisedCVAE:
    """Builds a CVAE with q(y|x), a small convolutional network, which learns from images with and without label.

    It is M2 of Kingma, Rezende, Mohamed and Welling 2014; or M1+M2, whose latent is z = [z2, z1],

        p(x,y,z1,z2) = p(y) p(z2) p(z1|z2,y) p(x|z1)

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of classes, >= 1.
        latent_size: Size of z, >= 1; with `stacked` that of z1 and that of z2.
        network: "mlp", "residual" or "conv".
        width: Units or channels of a layer.
        depth: Hidden layers or residual blocks.
        prior: "standard", "label" or "flow"; with `stacked`, "standard" alone, which is p(z2).
        num_samples: Latent samples K for each image and label, >= 1.
        seed: Seed of latent samples and deformations.
        stacked: Whether to build M1+M2.
        deformation: Strength of random deformations, for digits on a background of 0, of what q(y|x) sees in training;
            0 for none, and from 2 on images fold.

    Returns:
        The model, not yet compiled.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value is out of range.
    """
    checks.integer("num_classes", num_classes, 1)
    checks.kind("stacked", stacked, bool)
    if stacked and prior != "standard":
        raise ValueError(f"prior: expected standard with stacked, whose p(z1|z2,y) is learned, got {prior}")
    (encoder, decoder), prior_network = _networks(
        image_shape, 0 if stacked else num_classes, latent_size, network, width, depth, prior
    )
    if stacked:
        encoder, decoder = networks.stacked(networks.Networks(encoder, decoder), num_classes)
        prior_network = stacked_prior(num_classes, latent_size)
    classifier = networks.convolutional_classifier(tuple(image_shape), num_classes)
    return SemiSupervisedCVAE(
        encoder,
        decoder,
        classifier,
        prior_network,
        num_samples=num_samples,
        seed=seed,
        deformation=deformation,
        name="cvae",
    )


def _networks(
    image_shape: Sequence[int],
    num_classes: int,
    latent_size: int,
    network: Network,
    width: int | None,
    depth: int | None,
    prior: Prior,
) -> tuple[networks.Networks, keras.Model | None]:
    """Encoder and decoder, and the network of the prior, of arguments that are checked here."""
    shape = tuple(checks.integer("image_shape", size, 1) for size in image_shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape: expected (height, width, channels), got {tuple(image_shape)}")
    checks.integer("num_classes", num_classes, 0)
    checks.integer("latent_size", latent_size, 1)
    checks.choice("network", network, typing.get_args(Network))
    checks.choice("prior", prior, typing.get_args(Prior))
    builder = networks.BUILDERS[network]
    pair = builder.build(
        shape,
        num_classes,
        latent_size,
        checks.integer("width", builder.width if width is None else width, 1),
        checks.integer("depth", builder.depth if depth is None else depth, 1),
    )
    if prior != "standard" and num_classes == 0:
        raise ValueError(f"prior: expected standard for a model without classes, got {prior}")
    build_prior = {"label": networks.label_prior, "flow": flow_prior}.get(prior)
    return pair, build_prior(num_classes, latent_size) if build_prior else None
