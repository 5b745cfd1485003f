"""What a trained model is worth: likelihood, classification by Bayes' rule, latents and samples."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import array_checks, atomic, checks, distribution, latents, on_disk, recognition
from tfp_cvae.classification import classify, label_posterior_accuracy
from tfp_cvae.config import Binarization, EvaluationConfig
from tfp_cvae.data import Dataset, Split
from tfp_cvae.importance import products_per_second
from tfp_cvae.likelihood import Likelihood, likelihood_under_each_label
from tfp_cvae.model import CVAE
from tfp_cvae.model_files import weights_sha256
from tfp_cvae.protocol import held_out_protocol
from tfp_cvae.results import ACTIVE_VARIANCE, ClassEvaluation, Estimate, Evaluation, LabelUse, LatentUse, SampleQuality
from tfp_cvae.run import Run
from tfp_cvae.semi_supervised import SemiSupervisedCVAE

_FEW_IMAGES = 100
_PROBE_IMAGES = 10_000
_NEAREST_IMAGES = 1000


def evaluate(
    cvae: CVAE,
    dataset: Dataset,
    config: EvaluationConfig | None = None,
    *,
    binarization: Binarization = "dynamic",
    class_probabilities: Sequence[float] | None = None,
    jit_compile: bool = False,
    verbose: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> Evaluation:
    """Evaluates a model on the test split.

    Args:
        cvae: The model.
        dataset: The data set. Its training split fits the probe and the classifiers, and is searched for neighbours.
        config: How much to measure; None for everything at full length.
        binarization: As of the model's training.
        class_probabilities: p(y), `[num_classes]`, >= 0 and scaled to sum 1; None for the shares of the classes in the
            training split of `dataset`, and for equal ones if the model is a `SemiSupervisedCVAE`. Of the model of a
            run, evaluated on other data than its own, give `Run.model_class_probabilities`.
        jit_compile: Whether to compile the importance-weighted pass with XLA, which makes dense networks faster and
            convolutions slower.
        verbose: As for `fit`: 1 shows progress bars, 2 a line for each part.
        strategy: Strategy whose workers share the generating and the importance-weighted pass, and call this with the
            same arguments; None for one process.

    Returns:
        The results. They do not depend on how images are batched. Sets the global seed of Keras.

    Raises:
        ValueError: If model and data set do not fit, the model gives numbers that are not finite, or
            `class_probabilities` are no probabilities.
        TypeError: If `class_probabilities` are no numbers.
    """
    config = config or EvaluationConfig()
    _check_fit(cvae, dataset)
    probabilities = _class_probabilities(cvae, dataset, class_probabilities)
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(probabilities) if cvae.num_classes else None
    begin = time.perf_counter()
    chosen = _choice(len(dataset.test), config.num_images, config.seed)
    image, labels = dataset.test.binarized(binarization, rows=chosen), dataset.test.labels[chosen]
    label = labels if cvae.num_classes else None
    # First what is quick, so that what does not work shows before the long pass.
    _check_finite(cvae, image[:_FEW_IMAGES], None if label is None else label[:_FEW_IMAGES])
    latent = _latent_use(cvae, dataset.train, image, label, binarization, config.seed)
    products = products_per_second(cvae, jit_compile=jit_compile)
    if products is not None:
        products = float(distribution.gathered(np.array([products]), strategy).sum())
    samples, recognised = (
        _sample_quality(cvae, dataset, config, binarization, verbose, strategy) if cvae.num_classes else (None, None)
    )
    classified = (
        label_posterior_accuracy(cvae, dataset.train, image, labels, binarization)
        if isinstance(cvae, SemiSupervisedCVAE) or (not cvae.num_classes and dataset.num_classes > 1)
        else None
    )
    likelihood_begin = time.perf_counter()
    likelihood = likelihood_under_each_label(
        cvae,
        image,
        label,
        num_samples=config.num_importance_samples,
        label_margin=config.label_margin,
        log_class_probabilities=log_probabilities,
        seed=config.seed,
        jit_compile=jit_compile,
        verbose=verbose,
        strategy=strategy,
    )
    end = time.perf_counter()
    protocol = {
        **held_out_protocol(dataset, binarization, len(image), config.num_importance_samples),
        **{
            key: value
            for key, value in dataclasses.asdict(config).items()
            if key not in ("num_importance_samples", "num_images")
        },
        "num_real_test_images": len(dataset.test),
        "class_probabilities": probabilities.tolist(),
        "weights_sha256": weights_sha256(cvae),
        "jit_compile": jit_compile,
        "num_workers": 1 if strategy is None else distribution.num_workers(strategy),
        "latents_decoded": likelihood.decoded,
        "latents_per_second": round(likelihood.decoded / (end - likelihood_begin), 1),
        "products_per_second": None if products is None else round(products, 1),
        "likelihood_seconds": round(end - likelihood_begin, 1),
        "seconds": round(end - begin, 1),
    }
    results = _likelihood_results(likelihood, dataset, label, recognised, log_probabilities)
    return Evaluation(
        **results,
        label_posterior_accuracy=classified,
        latent=latent,
        samples=samples,
        protocol=protocol,
    )


def evaluate_run(
    run: Run,
    dataset: Dataset,
    config: EvaluationConfig | None = None,
    *,
    verbose: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> Evaluation:
    """Evaluates the model of a run, and writes `evaluation.json`.

    Args:
        run: The run.
        dataset: Data set to evaluate on, with the classes of the run's own. p(y) is that of the run, if the run tells
            (`Run.model_class_probabilities`).
        config: As for `evaluate`.
        verbose: As for `evaluate`.
        strategy: As for `evaluate`; the chief writes.

    Returns:
        The results, as of `evaluate`.

    Raises:
        ValueError: If the run has no model yet, the data set does not fit it, or the run was trained on meanwhile.
        OSError: If the folder cannot be written; the result is printed then, if it is there.
    """
    if run.class_names and dataset.class_names != run.class_names:
        expected, found = (", ".join(names) for names in (run.class_names, dataset.class_names))
        raise ValueError(
            f"dataset: expected the classes {expected}, as of the run, got {dataset.name} with {found}; give the data "
            "set that the run was trained on"
        )
    writes = strategy is None or distribution.is_chief(strategy)
    if writes:
        atomic.check_can_write(run.path)
    model_sha256 = run.model_sha256()
    result = evaluate(
        run.model(),
        dataset,
        config,
        binarization=run.config.binarization,
        class_probabilities=run.model_class_probabilities,
        jit_compile=run.config.suits_xla,
        verbose=verbose,
        strategy=strategy,
    )
    if writes:
        try:
            if model_sha256 != run.model_sha256():
                raise ValueError(
                    f"run: expected the model of {str(run.path)!r} as it was when its evaluation began, got another "
                    "one, as its training goes on; evaluate again after that"
                )
            content = result.to_dict()
            content["protocol"]["dataset_sha256"] = dataset.fingerprint()
            run.write_evaluation(content)
        except Exception:
            # What may have taken hours is not lost, whatever it is.
            print(result)
            raise
    return result


def _check_fit(cvae: CVAE, dataset: Dataset) -> None:
    checks.kind("dataset", dataset, Dataset)
    if cvae.image_shape != dataset.image_shape:
        expected, found = ("x".join(map(str, shape)) for shape in (cvae.image_shape, dataset.image_shape))
        raise ValueError(f"dataset: expected images of {expected}, as of the model, got {dataset.name} with {found}")
    if cvae.num_classes not in (0, dataset.num_classes):
        raise ValueError(
            f"dataset: expected {cvae.num_classes} classes, as of the model, got {dataset.name} with "
            f"{dataset.num_classes}"
        )


def _class_probabilities(cvae: CVAE, dataset: Dataset, given: Sequence[float] | None) -> np.ndarray:
    """p(y), `[num_classes]` float64."""
    if given is not None:
        return array_checks.probabilities("class_probabilities", given, cvae.num_classes)
    if isinstance(cvae, SemiSupervisedCVAE):
        # No more may be known of it than the labels that were given tell.
        return np.full(cvae.num_classes, 1 / cvae.num_classes)
    return dataset.class_probabilities() if cvae.num_classes else np.empty(0)


def _choice(size: int, count: int | None, seed: int) -> np.ndarray:
    """Indices of a seeded choice, in their order; of everything if `count` is None."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _likelihood_results(
    likelihood: Likelihood,
    dataset: Dataset,
    label: np.ndarray | None,
    recognised: np.ndarray | None,
    log_class_probabilities: np.ndarray | None,
) -> dict[str, Any]:
    row = np.arange(len(likelihood.elbo))
    true = np.zeros(len(row), int) if label is None else label
    names = ("elbo", "rate", "distortion", "effective_sample_size", "log_likelihood")
    own = {name: getattr(likelihood, name)[row, true] for name in names}
    log_likelihood = own.pop("log_likelihood")
    results: dict[str, Any] = {name: Estimate.of(values) for name, values in own.items()}
    if label is None or recognised is None:
        nothing = dict.fromkeys(("log_p_x_given_y", "bayes_accuracy", "calibration", "label"))
        return {**results, **nothing, "log_p_x": Estimate.of(log_likelihood), "per_class": {}}
    # log p(x,y) = log p(x|y) + log p(y)
    log_joint = likelihood.blind + log_class_probabilities
    log_evidence = np.logaddexp.reduce(log_joint, axis=1)
    correct, calibration = classify(log_joint, label)
    classes = [label == number for number in range(dataset.num_classes)]
    per_class = {
        name: ClassEvaluation(
            num_images=int(inside.sum()),
            elbo=Estimate.of(own["elbo"][inside]),
            log_p_x_given_y=Estimate.of(log_likelihood[inside]),
            effective_sample_size=Estimate.of(own["effective_sample_size"][inside]),
            bayes_accuracy=Estimate.of(correct[inside]),
            recognised=Estimate.of(judged),
        )
        for name, inside, judged in zip(dataset.class_names, classes, recognised, strict=True)
    }
    wrong = np.arange(dataset.num_classes) != label[:, np.newaxis]
    elbo_by_label = [[Estimate.of(column).mean for column in likelihood.elbo[inside].T] for inside in classes]
    return {
        **results,
        "log_p_x_given_y": Estimate.of(log_likelihood),
        "log_p_x": Estimate.of(log_evidence),
        "bayes_accuracy": Estimate.of(correct),
        "per_class": per_class,
        "calibration": calibration,
        "label": LabelUse(
            elbo_wrong_label=Estimate.of(
                np.array([elbo[others].mean() for elbo, others in zip(likelihood.elbo, wrong, strict=True)])
                if dataset.num_classes > 1
                else np.empty(0)
            ),
            information=Estimate.of(log_likelihood - log_evidence),
            elbo_by_label=elbo_by_label,
        ),
    }


def _check_finite(cvae: CVAE, image: np.ndarray, label: np.ndarray | None) -> None:
    """Raises ValueError for a model of which classifiers would be trained on NaN."""
    drawn = cvae.generate(np.arange(min(cvae.num_classes, _FEW_IMAGES)) if cvae.num_classes else None)
    if not all(np.all(np.isfinite(part)) for part in (cvae.reconstruct(image, label), drawn)):
        raise ValueError("cvae: expected finite images, got NaN or infinity; its weights may be so too")


def _latent_use(
    cvae: CVAE, train: Split, image: np.ndarray, label: np.ndarray | None, binarization: Binarization, seed: int
) -> LatentUse:
    mean, noise, rate = latents.posterior_statistics(cvae, image, label)
    variance = latents.variance_of_means(mean, label)
    probed, chance = None, None
    if label is not None and cvae.num_classes > 1:
        known = train.labelled()
        known = known.rows(_choice(len(known), _PROBE_IMAGES, seed))
        # Of many images of a class and few of another, those may all be of one.
        if len(np.unique(known.labels)) > 1:
            _, train_noise, _ = latents.posterior_statistics(cvae, known.binarized(binarization), known.labels)
            probed = Estimate.of(latents.linear_probe((train_noise, known.labels), (noise, label)))
            chance = float(np.bincount(label).max() / len(label))
    # Where no class has a second image, nothing varies.
    varies = len(mean) > (1 if label is None else len(set(label)))
    return LatentUse(
        latent_size=cvae.latent_size,
        active_units=int(np.sum(variance > ACTIVE_VARIANCE)) if varies else None,
        variance_of_means=variance.tolist(),
        rate_per_dimension=None if rate is None else rate.mean(axis=0, dtype=np.float64).tolist(),
        linear_probe=probed,
        chance=chance,
    )


def _sample_quality(
    cvae: CVAE,
    dataset: Dataset,
    config: EvaluationConfig,
    binarization: Binarization,
    verbose: int,
    strategy: tf.distribute.Strategy | None,
) -> tuple[SampleQuality, np.ndarray]:
    """Quality of the samples, and which of each class were recognised, `[num_classes, generated_per_class]`."""
    labelled, test = dataset.train.labelled(), dataset.test
    chosen = _choice(len(labelled), config.num_classifier_images, config.seed)
    real, labels = labelled.images[chosen], labelled.labels[chosen]

    def judged_right(classifier: keras.Model) -> np.ndarray:
        parts = [
            recognition.correct(classifier, test.images[part] / np.float32(255), test.labels[part])
            for part in on_disk.parts(test.images)
        ]
        return np.concatenate(parts)

    def trained_on(what: str, images: np.ndarray) -> keras.Model:
        if verbose:
            print(f"classifier on {what}: {len(images):,} images", flush=True)
        return recognition.train_classifier(
            images, labels, cvae.num_classes, epochs=config.classifier_epochs, seed=config.seed, verbose=verbose
        )

    on_real = trained_on("real images", real / np.float32(255))
    recognised = recognition.recognised(
        on_real, cvae, count=config.generated_per_class, seed=config.seed, strategy=strategy
    )
    # Other seeds than those of the images that are judged.
    generated = recognition.generated(cvae, labels, config.seed + recognised.size, strategy)
    on_generated = trained_on("generated images", generated)
    among_generated = _choice(len(generated), _NEAREST_IMAGES, config.seed)
    among_test = _choice(len(test), _NEAREST_IMAGES, config.seed)
    reconstructed = cvae.reconstruct(test.binarized(binarization, rows=among_test), test.labels[among_test]).numpy()
    samples, reconstructions, test_images = (
        Estimate.of(recognition.nearest(images, dataset.train, count=1)[0])
        for images in (generated[among_generated], reconstructed, test.binarized("none", rows=among_test))
    )
    quality = SampleQuality(
        classifier_accuracy=Estimate.of(judged_right(on_real)),
        recognised=Estimate.of(recognised.ravel()),
        recognised_worst_class=min((Estimate.of(judged) for judged in recognised), key=lambda judged: judged.mean),
        classification_accuracy_score=Estimate.of(judged_right(on_generated)),
        nearest_to_samples=samples,
        nearest_to_reconstructions=reconstructions,
        nearest_to_test_images=test_images,
    )
    return quality, recognised
