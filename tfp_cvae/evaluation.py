"""What a trained model is worth: likelihood, classification by Bayes' rule, latents and samples."""

import dataclasses
import time
from typing import Any

import numpy as np

from tfp_cvae import latents, recognition
from tfp_cvae.bounds import Estimate
from tfp_cvae.classification import Classification
from tfp_cvae.config import Binarization, EvaluationConfig
from tfp_cvae.data import HELD_OUT_SEED, Dataset, Split
from tfp_cvae.importance import products_per_second
from tfp_cvae.likelihood import LABEL_MARGIN, Likelihood, likelihood_under_each_label
from tfp_cvae.model import CVAE
from tfp_cvae.results import Calibration, ClassEvaluation, Evaluation, LabelUse, LatentUse, SampleQuality
from tfp_cvae.run import Run


def evaluate(
    cvae: CVAE,
    dataset: Dataset,
    config: EvaluationConfig | None = None,
    *,
    binarization: Binarization = "dynamic",
    jit_compile: bool = False,
    verbose: int = 0,
) -> Evaluation:
    """Evaluates a model on the test split.

    Args:
        cvae: The model.
        dataset: The data set. Its training split gives p(y), and fits the probe and the classifiers.
        config: How much to measure; None for everything at full length.
        binarization: As of the model's training.
        jit_compile: Whether to compile the importance-weighted pass with XLA, which makes dense networks faster and
            convolutions slower.
        verbose: 1 shows progress.

    Returns:
        The results. They do not depend on how images are batched. Sets the global seed of Keras.

    Raises:
        ValueError: If model and data set do not fit.
    """
    config = config or EvaluationConfig()
    check_fit(cvae, dataset)
    begin = time.perf_counter()
    test = _subset(dataset.test, config.num_images)
    image = test.binarized(binarization)
    label = test.labels if cvae.num_classes else None
    likelihood = likelihood_under_each_label(
        cvae,
        image,
        label,
        num_samples=config.num_importance_samples,
        seed=config.seed,
        jit_compile=jit_compile,
        verbose=verbose,
    )
    seconds = time.perf_counter() - begin
    samples, recognised = None, np.empty((0, 0))
    if cvae.num_classes:
        samples, recognised = _sample_quality(cvae, dataset, config, verbose)
    results = _likelihood_results(likelihood, test, dataset, label, recognised)
    latent = _latent_use(cvae, dataset.train, test, image, label, binarization)
    protocol = {
        **dataclasses.asdict(config),
        "unit": "nats per image",
        "dataset": dataset.name,
        "split": "test",
        "num_images": len(test),
        "binarization": binarization,
        "binarization_seed": HELD_OUT_SEED,
        "comparable": binarization != "none",
        "label_margin": LABEL_MARGIN,
        "latents_decoded": likelihood.decoded,
        "latents_per_second": round(likelihood.decoded / seconds, 1),
        "products_per_second": round(products_per_second(cvae, jit_compile=jit_compile), 1),
        "likelihood_seconds": round(seconds, 1),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    return Evaluation(**results, latent=latent, samples=samples, protocol=protocol)


def evaluate_run(run: Run, dataset: Dataset, config: EvaluationConfig | None = None, *, verbose: int = 0) -> Evaluation:
    """Evaluates the model of a run, and writes `evaluation.json`.

    Args:
        run: The run.
        dataset: Data set to evaluate on, with the classes of the run's own.
        config: As for `evaluate`.
        verbose: As for `evaluate`.

    Raises:
        ValueError: If the run has no model yet, or the data set does not fit it.
    """
    if run.class_names and dataset.class_names != run.class_names:
        expected, found = (", ".join(names) for names in (run.class_names, dataset.class_names))
        raise ValueError(
            f"dataset: expected the classes {expected}, as of the run, got {dataset.name} with {found}; give the data "
            "set that the run was trained on"
        )
    result = evaluate(
        run.model(),
        dataset,
        config,
        binarization=run.config.binarization,
        jit_compile=run.config.network != "conv",
        verbose=verbose,
    )
    run.write_evaluation(result.to_dict())
    return result


def check_fit(cvae: CVAE, dataset: Dataset) -> None:
    """Raises ValueError if a model was not made for the images and classes of a data set."""
    if cvae.image_shape != dataset.image_shape:
        expected, found = ("x".join(map(str, shape)) for shape in (cvae.image_shape, dataset.image_shape))
        raise ValueError(f"dataset: expected images of {expected}, as of the model, got {dataset.name} with {found}")
    if cvae.num_classes not in (0, dataset.num_classes):
        raise ValueError(
            f"dataset: expected {cvae.num_classes} classes, as of the model, got {dataset.name} with "
            f"{dataset.num_classes}"
        )


def _subset(split: Split, num_images: int | None) -> Split:
    """The whole split, or a seeded choice of its images in their order."""
    if num_images is None or num_images >= len(split):
        return split
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:num_images])
    return dataclasses.replace(split, images=split.images[chosen], labels=split.labels[chosen])


def _likelihood_results(
    likelihood: Likelihood, test: Split, dataset: Dataset, label: np.ndarray | None, recognised: np.ndarray
) -> dict[str, Any]:
    row = np.arange(len(test))
    true = np.zeros(len(test), int) if label is None else label
    own = {
        "elbo": likelihood.elbo[row, true],
        "rate": likelihood.rate[row, true],
        "distortion": likelihood.distortion[row, true],
        "effective_sample_size": likelihood.effective_sample_size[row, true],
    }
    estimates: dict[str, Any] = {name: Estimate.of(values) for name, values in own.items()}
    own["log_p_x_given_y"] = likelihood.log_likelihood[row, true]
    if label is None:
        nothing = dict.fromkeys(("log_p_x_given_y", "bayes_accuracy", "calibration", "label"))
        return {**estimates, **nothing, "log_p_x": Estimate.of(own["log_p_x_given_y"]), "per_class": {}}
    # log p(x,y) = log p(x|y) + log p(y)
    frequency = np.bincount(dataset.train.labels, minlength=dataset.num_classes) / len(dataset.train)
    log_joint = likelihood.log_likelihood + np.log(frequency)
    log_evidence = np.logaddexp.reduce(log_joint, axis=1)
    found = Classification.of(log_joint, label)
    own["bayes_accuracy"] = found.correct.astype(float)
    classes = [label == number for number in range(dataset.num_classes)]
    wrong = np.arange(dataset.num_classes) != label[:, np.newaxis]
    elbo_wrong_label = np.sum(likelihood.elbo, axis=1, where=wrong) / max(1, dataset.num_classes - 1)
    return {
        **estimates,
        "log_p_x_given_y": Estimate.of(own["log_p_x_given_y"]),
        "log_p_x": Estimate.of(log_evidence),
        "bayes_accuracy": Estimate.of(own["bayes_accuracy"]),
        "per_class": {
            name: ClassEvaluation(
                num_images=int(inside.sum()),
                **{
                    key: Estimate.of(own[key][inside])
                    for key in ("elbo", "log_p_x_given_y", "effective_sample_size", "bayes_accuracy")
                },
                recognised=Estimate.of(judged),
            )
            for name, inside, judged in zip(dataset.class_names, classes, recognised, strict=True)
            if inside.any()
        },
        "calibration": Calibration(
            found.expected_calibration_error,
            found.reliability.tolist(),
            found.selective_accuracy,
            found.confusion.tolist(),
        ),
        "label": LabelUse(
            elbo_wrong_label=Estimate.of(elbo_wrong_label),
            information=Estimate.of(own["log_p_x_given_y"] - log_evidence),
            elbo_by_label=[likelihood.elbo[inside].mean(axis=0).tolist() for inside in classes if inside.any()],
        ),
    }


def _latent_use(
    cvae: CVAE, train: Split, test: Split, image: np.ndarray, label: np.ndarray | None, binarization: Binarization
) -> LatentUse:
    mean, _, rate = latents.posterior_statistics(cvae, image, label)
    probed = None if label is None else latents.linear_probe(cvae, train, test, binarization)
    return LatentUse(
        latent_size=cvae.latent_size,
        active_units=latents.active_units(mean),
        variance_of_means=np.var(mean, axis=0, dtype=np.float64).tolist(),
        rate_per_dimension=None if rate is None else rate.mean(axis=0, dtype=np.float64).tolist(),
        linear_probe=None if probed is None else Estimate.of(probed),
        chance=None if label is None else float(np.bincount(label).max() / len(label)),
    )


def _sample_quality(
    cvae: CVAE, dataset: Dataset, config: EvaluationConfig, verbose: int
) -> tuple[SampleQuality, np.ndarray]:
    """Quality of the samples, and which of each class were recognised, `[num_classes, generated_per_class]`."""
    train, test = _subset(dataset.train, config.num_classifier_images), dataset.test
    real_test = test.binarized("none")

    def classifier(what: str, images: np.ndarray) -> Any:
        if verbose:
            print(f"classifier on {what}: {len(images):,} images, {config.classifier_epochs} epochs", flush=True)
        return recognition.train_classifier(
            images, train.labels, cvae.num_classes, epochs=config.classifier_epochs, seed=config.seed, verbose=verbose
        )

    on_real = classifier("real images", train.binarized("none"))
    recognised = recognition.recognised(on_real, cvae, count=config.generated_per_class, seed=config.seed)
    # Other seeds than those of the images that are judged.
    generated = recognition.generated(cvae, train.labels, config.seed + recognised.size)
    on_generated = classifier("generated images", generated)
    chosen = np.random.default_rng(config.seed).permutation(len(test))[: min(len(generated), 1000)]
    distance_of_test, _ = recognition.nearest(real_test[chosen], dataset.train, count=1)
    distance_of_samples, _ = recognition.nearest(generated[: len(chosen)], dataset.train, count=1)
    quality = SampleQuality(
        classifier_accuracy=Estimate.of(recognition.correct(on_real, real_test, test.labels)),
        recognised=Estimate.of(recognised.ravel()),
        recognised_worst_class=float(recognised.mean(axis=1).min()),
        classification_accuracy_score=Estimate.of(recognition.correct(on_generated, real_test, test.labels)),
        nearest_to_samples=Estimate.of(distance_of_samples[:, 0]),
        nearest_to_test_images=Estimate.of(distance_of_test[:, 0]),
    )
    return quality, recognised
