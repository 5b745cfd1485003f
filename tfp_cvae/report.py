"""The text that `tfp-cvae evaluate` prints: an evaluation as tables."""

import math

from tfp_cvae.protocol import binarization_note
from tfp_cvae.results import (
    Calibration,
    ClassEvaluation,
    Estimate,
    Evaluation,
    LabelUse,
    LatentUse,
    SampleQuality,
)


def table(result: Evaluation) -> str:
    """Formats an evaluation for people.

    Args:
        result: The evaluation.
    """
    protocol = result.protocol
    binarization = binarization_note(protocol["binarization"], protocol["binarization_seed"])
    samples = protocol["num_samples"]
    speed = f"  {protocol['latents_per_second']:,.0f} images x samples a second"
    if protocol["products_per_second"]:
        speed += f"; the matrix products alone: {protocol['products_per_second']:,.0f}"
    lines = [
        f"{protocol['dataset']}: {protocol['num_images']:,} test images, {binarization}; "
        f"K = {samples:,} importance samples; seed {protocol['seed']}",
        "mean +- standard error; bounds and likelihoods in nats per image",
        "",
        _line("ELBO", result.elbo),
        _line("rate", result.rate),
        _line("distortion", result.distortion),
        *([_line("log p(x|y)", result.log_p_x_given_y)] if result.log_p_x_given_y else []),
        _line("log p(x)", result.log_p_x),
        _line("effective sample size", result.effective_sample_size, f"of {samples:,}"),
        speed,
    ]
    if result.per_class:
        lines += ["", *_classes(dict(result.per_class))]
    if result.calibration and result.bayes_accuracy:
        lines += ["", *_calibration(result.bayes_accuracy, result.calibration)]
    if result.label_posterior_accuracy:
        by = "q(y|x)" if result.label else "logistic regression on the latent (M1)"
        lines += ["", f"classification by {by}: accuracy: {_percent(result.label_posterior_accuracy)}"]
    if result.label:
        lines += ["", *_label(result.label)]
    lines += ["", *_latent(result.latent)]
    if result.samples:
        lines += ["", *_samples(result.samples, protocol["generated_per_class"])]
    return "\n".join(lines)


def _line(name: str, estimate: Estimate, note: str = "") -> str:
    return f"  {name:24}{_plus_minus(estimate):>18}  {note}".rstrip()


def _plus_minus(estimate: Estimate, scale: float = 1, unit: str = "") -> str:
    if math.isnan(estimate.mean):
        return "-"
    error = "?" if math.isnan(estimate.standard_error) else f"{scale * estimate.standard_error:.2f}"
    return f"{scale * estimate.mean:.2f} +- {error}{unit}"


def _percent(estimate: Estimate) -> str:
    return _plus_minus(estimate, 100, "%")


def _classes(per_class: dict[str, ClassEvaluation]) -> list[str]:
    width = max(5, *(len(name) for name in per_class))
    lines = [f"{'class':{width}} {'images':>7} {'ELBO':>17} {'log p(x|y)':>17} {'Bayes rule':>16} {'recognised':>16}"]
    for name, found in per_class.items():
        lines.append(
            f"{name:{width}} {found.num_images:7,} {_plus_minus(found.elbo):>17} "
            f"{_plus_minus(found.log_p_x_given_y):>17} {_percent(found.bayes_accuracy):>16} "
            f"{_percent(found.recognised):>16}"
        )
    return lines


def _calibration(accuracy: Estimate, calibration: Calibration) -> list[str]:
    surest = ", ".join(f"{share:.0%}: {found:.2%}" for share, found in calibration.selective_accuracy if share < 1)
    return [
        "classification by Bayes' rule, argmax_y log p(x|y) + log p(y)",
        f"  accuracy: {_percent(accuracy)}; expected calibration error: {calibration.expected_calibration_error:.2%}",
        f"  accuracy on the surest {surest}",
    ]


def _label(label: LabelUse) -> list[str]:
    return [
        "what the label does",
        _line("ELBO, wrong labels", label.elbo_wrong_label, "mean over the other labels"),
        _line("log p(x|y) - log p(x)", label.information, "nats that the label is worth"),
    ]


def _latent(latent: LatentUse) -> list[str]:
    active = "?" if latent.active_units is None else latent.active_units
    lines = ["what the latent carries", f"  active units: {active} of {latent.latent_size}"]
    if latent.linear_probe:
        probe = f"{_percent(latent.linear_probe)} (chance {latent.chance:.2%})"
        lines.append(f"  class that a linear probe reads in it, beyond the prior's: {probe}")
    return lines


def _samples(samples: SampleQuality, count: int) -> list[str]:
    return [
        f"what samples are worth ({count:,} of each class; the classifier has {_percent(samples.classifier_accuracy)} "
        "on real test images)",
        f"  recognised: {_percent(samples.recognised)}, worst class {_percent(samples.recognised_worst_class)}",
        f"  classification accuracy score: {_percent(samples.classification_accuracy_score)} "
        "(the same classifier, trained on samples alone)",
        f"  distance to the nearest training image: samples {_plus_minus(samples.nearest_to_samples)}, reconstructions "
        f"{_plus_minus(samples.nearest_to_reconstructions)}, test images {_plus_minus(samples.nearest_to_test_images)}",
    ]
