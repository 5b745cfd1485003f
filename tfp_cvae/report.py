"""The text that `tfp-cvae evaluate` prints: the content of `evaluation.json` as tables."""

from collections.abc import Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """Formats an evaluation for people.

    Args:
        result: Content of `evaluation.json`, `Evaluation.to_dict()`.

    Returns:
        Lines of at most 120 characters.
    """
    protocol = result["protocol"]
    samples = protocol["num_importance_samples"]
    lines = [
        f"{protocol['dataset']}: {protocol['num_images']:,} test images, {_binarization(protocol)}; "
        f"K = {samples:,} importance samples; seed {protocol['seed']}",
        "mean +- standard error; bounds and likelihoods in nats per image",
        "",
        _line("ELBO", result["elbo"]),
        _line("rate", result["rate"]),
        _line("distortion", result["distortion"]),
    ]
    if "log_p_x_given_y" in result:
        lines.append(_line("log p(x|y)", result["log_p_x_given_y"]))
    lines += [
        _line("log p(x)", result["log_p_x"]),
        _line("effective sample size", result["effective_sample_size"], f"of {samples:,}"),
        f"  {protocol['latents_per_second']:,.0f} images x samples a second"
        + (
            f"; the matrix products alone: {protocol['products_per_second']:,.0f}"
            if "products_per_second" in protocol
            else ""
        ),
    ]
    if "calibration" in result:
        lines += ["", *_classes(result["per_class"]), "", *_calibration(result), "", *_label(result["label"])]
    lines += ["", *_latent(result["latent"])]
    if "samples" in result:
        lines += ["", *_samples(result["samples"], protocol)]
    return "\n".join(lines)


def _binarization(protocol: Mapping[str, Any]) -> str:
    return {
        "dynamic": f"binarized once, seed {protocol['binarization_seed']}",
        "threshold": "binarized at 128",
        "none": "grey, so not comparable with bounds on binary images",
    }[protocol["binarization"]]


def _line(name: str, estimate: Mapping[str, float], note: str = "") -> str:
    return f"  {name:24}{_plus_minus(estimate):>18}  {note}".rstrip()


def _plus_minus(estimate: Mapping[str, float], scale: float = 1, digits: int = 2) -> str:
    return f"{scale * estimate['mean']:.{digits}f} +- {scale * estimate['standard_error']:.{digits}f}"


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{_plus_minus(estimate, 100)}%"


def _classes(per_class: Mapping[str, Any]) -> list[str]:
    width = max(5, *(len(name) for name in per_class))
    lines = [f"{'class':{width}} {'images':>7} {'ELBO':>17} {'log p(x|y)':>17} {'Bayes rule':>16} {'recognised':>16}"]
    for name, values in per_class.items():
        lines.append(
            f"{name:{width}} {values['num_images']:7,} {_plus_minus(values['elbo']):>17} "
            f"{_plus_minus(values['log_p_x_given_y']):>17} {_percent(values['bayes_accuracy']):>16} "
            f"{_percent(values['recognised']):>16}"
        )
    return lines


def _calibration(result: Mapping[str, Any]) -> list[str]:
    calibration = result["calibration"]
    surest = {float(share): accuracy for share, accuracy in calibration["selective_accuracy"].items()}
    return [
        "classification by Bayes' rule, argmax_y log p(x|y) + log p(y)",
        f"  {'accuracy':24}{_percent(result['bayes_accuracy']):>19}",
        f"  {'calibration error':24}{100 * calibration['expected_calibration_error']:>17.2f}%",
        "  " + "surest " + ", ".join(f"{share:.0%}: {accuracy:.2%}" for share, accuracy in surest.items() if share < 1),
    ]


def _label(label: Mapping[str, Any]) -> list[str]:
    return [
        "what the label does",
        _line("ELBO, wrong labels", label["elbo_wrong_label"], "mean over the other labels"),
        _line("log p(x|y) - log p(x)", label["information"], "nats that the label is worth"),
    ]


def _latent(latent: Mapping[str, Any]) -> list[str]:
    lines = ["what the latent carries", f"  active units: {latent['active_units']} of {latent['latent_size']}"]
    if latent.get("linear_probe"):
        lines.append(
            f"  class read by a linear probe: {_percent(latent['linear_probe'])} (chance {latent['chance']:.2%})"
        )
    return lines


def _samples(samples: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    return [
        f"what samples are worth ({protocol['generated_per_class']:,} for each class; the classifier has "
        f"{_percent(samples['classifier_accuracy'])} on real test images)",
        f"  recognised: {_percent(samples['recognised'])}, worst class {samples['recognised_worst_class']:.2%}",
        f"  classification accuracy score: {_percent(samples['classification_accuracy_score'])} "
        "(the same classifier, trained on samples only)",
        f"  distance to the nearest training image: samples {_plus_minus(samples['nearest_to_samples'])}, "
        f"test images {_plus_minus(samples['nearest_to_test_images'])}",
    ]
