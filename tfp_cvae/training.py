"""Training from a configuration, through `compile` and stock `fit`, into a run folder."""

import functools
import importlib.util
import os
import pathlib
import shlex
import shutil

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import atomic, distribution, figures
from tfp_cvae.backup import Backup
from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.callbacks import (
    HistoryCSV,
    ImageGrid,
    KLWarmUp,
    LabelWarmUp,
    NonFiniteLossError,
    StopAtNonFiniteLoss,
    SwapEMAWeights,
)
from tfp_cvae.classification import label_posterior_accuracy
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import Dataset, Split
from tfp_cvae.dataset_names import default_output
from tfp_cvae.interruption import Interruption
from tfp_cvae.layers import dtype_policy
from tfp_cvae.lock import locked
from tfp_cvae.losses import ELBO, Distortion, NegativeELBO, NegativeIWAE, Rate, SemiSupervisedNegativeELBO
from tfp_cvae.memory import keep_freed_memory
from tfp_cvae.model import CVAE
from tfp_cvae.model_files import weights_sha256
from tfp_cvae.optimizers import FusedAdam
from tfp_cvae.protocol import held_out_protocol, versions
from tfp_cvae.run import Run, run_to_resume
from tfp_cvae.run_folder import check_one_of, has_config
from tfp_cvae.sources import load_training_data

_STEPS_PER_EXECUTION = 50
_XLA_PAYS_FROM_STEPS = 1000
_FEW_STEPS = 5
_SOME_IMAGES = 1000
# Folders in which Keras has workers save that are not the chief; it deletes them, unless a worker is killed.
_OF_OTHER_WORKERS = "workertemp_*"


def train(
    config: TrainConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    verbose: int = 1,
) -> Run:
    """Trains a model and leaves everything behind in a run folder.

    The weights that are kept are those of the epoch with the best true bound on the validation split. The held-out
    bound is then measured once, on the test split, and the figures are drawn. The same configuration gives the same
    history and weights again, also if the training was killed and resumed. Sets the global seed of Keras, and has the
    C library keep freed memory (`memory.keep_freed_memory`).

    Args:
        config: Settings; None for the defaults.
        output: Run folder to make; by default `runs/` and the name of the data set.
        overwrite: Whether to delete the run that `output` may hold.
        resume: Whether to go on with the run that `output` may hold. A finished one is returned as it is.
        strategy: Strategy whose replicas train together; by default that of all workers in `TF_CONFIG`, or of one
            device. All workers call this with the same settings and a folder that all of them see.
        verbose: As for `fit`: 1 shows a progress bar, 2 a line for each epoch.

    Returns:
        The run.

    Raises:
        ValueError: If the data set or the folder is not as expected, another process trains in the folder, or the loss
            became NaN or infinite.
        OSError: If a file cannot be written.
        ConnectionError: If the data set would have to be downloaded and there is no connection, or another worker is
            gone.
        KeyboardInterrupt: If the training was interrupted, after what was trained so far has been saved.
    """
    config = config or TrainConfig()
    check_one_of(overwrite, resume)
    path = pathlib.Path(output or default_output(config.dataset))
    # Where a link leads now: it may lead elsewhere before the training has ended.
    real = os.path.realpath(path)
    path = path if real == os.path.abspath(path) else pathlib.Path(real)
    keep_freed_memory()
    strategy = strategy or distribution.from_environment()
    with distribution.explained(strategy):
        if distribution.is_chief(strategy):
            return _lead(path, config, strategy, overwrite=overwrite, resume=resume, verbose=verbose)
        return _assist(path, config, strategy, resume=resume)


def _lead(
    path: pathlib.Path,
    config: TrainConfig,
    strategy: tf.distribute.Strategy,
    *,
    overwrite: bool,
    resume: bool,
    verbose: int,
) -> Run:
    """Trains as the worker whose folder it is, or the only one."""
    # A first look, before the images are loaded.
    run = run_to_resume(path, config, overwrite=overwrite, resume=resume)
    if run is None or not run.is_finished():
        dataset = _load(config, run)
        _check_can_train(config, dataset, strategy)
        if config.binarization == "none" and verbose:
            print("The bounds below are on grey images: not comparable with bounds on binary images.")
        if config.binarization == "dynamic" and verbose and _mid_tones(dataset.train) > 0.5:
            print("Binarized, these images are mostly noise: --binarization none keeps their grey values.")
        if config.semi_supervised and not dataset.train.has_unlabelled() and verbose:
            print("All training images have a label: --num-labels keeps a few.")
        atomic.make_folder(path)
        with locked(path):
            # Again, as another process may have been here meanwhile.
            run = run_to_resume(path, config, overwrite=overwrite, resume=resume)
            if run is None:
                run = Run.create(path, config, dataset, overwrite=overwrite)
            if not run.is_finished():
                _check_can_resume(run, dataset, verbose)
                distribution.wait_for_all(strategy)
                _train(run, dataset, strategy, verbose)
                distribution.wait_for_all(strategy)
                return run
    distribution.wait_for_all(strategy)
    run.delete_old_backup()
    if verbose:
        print(f"{path}: the training is finished")
    return run


def _assist(path: pathlib.Path, config: TrainConfig, strategy: tf.distribute.Strategy, *, resume: bool) -> Run:
    """Takes part in a training whose folder is another worker's to write."""
    begun = Run.load(path) if resume and has_config(path) else None
    if begun and begun.is_finished():
        # As the chief, who does not look at the data then.
        distribution.wait_for_all(strategy)
        return begun
    dataset = _load(config, begun)
    distribution.wait_for_all(strategy)
    run = Run.load(path)
    if not run.is_finished():
        _check_can_resume(run, dataset, verbose=0)
        keras.utils.set_random_seed(run.config.seed)
        cvae = _compiled_model(run.config, dataset, strategy)
        _fit(cvae, run.config, dataset, run, strategy, verbose=0)
        distribution.wait_for_all(strategy)
    return run


def _load(config: TrainConfig, run: Run | None) -> Dataset:
    """The data set of a run, or for a new one."""
    dataset = run.training_data() if run else load_training_data(config)
    unlabelled = dataset.train.has_unlabelled() or dataset.validation.has_unlabelled()
    if config.model == "cvae" and config.conditional and unlabelled:
        raise ValueError(
            f"model: expected m1, m2 or m1+m2 for {dataset.name}, where some images have no label, got cvae; pass "
            "--model m2"
        )
    return dataset


def _check_can_train(config: TrainConfig, dataset: Dataset, strategy: tf.distribute.Strategy) -> None:
    distribution.check_batch_size(config.batch_size, strategy)
    if config.batch_size > len(dataset.train):
        raise ValueError(
            f"batch_size: expected at most {len(dataset.train)}, the number of training images, "
            f"got {config.batch_size}; lower it (--batch-size)"
        )
    if not _steps_per_epoch(config, dataset):
        raise ValueError(
            f"batch_size: expected no more images without label in a batch than there are, got {config.batch_size} in "
            "all; lower it (--batch-size), or have more labelled ones (--labelled-per-batch)"
        )
    if config.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise ValueError(
            "tensorboard: expected the package tensorboard, which is not installed; pip install tensorboard"
        )


def _mid_tones(split: Split) -> float:
    """Mean variance of a binarized pixel over that of a fair coin, of some images: 0 of black and white, 1 of grey."""
    some = np.linspace(0, len(split) - 1, min(_SOME_IMAGES, len(split))).astype(int)
    value = split.binarized("none", rows=some)
    return float(np.mean(4 * value * (1 - value)))


def _check_can_resume(run: Run, dataset: Dataset, verbose: int) -> None:
    if not run.backup_folder.is_dir():
        raise ValueError(
            f"output: expected a training that can be resumed, got {str(run.path)!r}, which has no backup: it was made "
            "by an older version, or deleted half-way; begin again with --overwrite"
        )
    run.check_data(dataset)
    changed = [name for name, version in versions().items() if run.versions.get(name) != version]
    if changed and verbose:
        print(f"resumed with other versions ({', '.join(changed)}): the result can differ in the last digits")


def _train(run: Run, dataset: Dataset, strategy: tf.distribute.Strategy, verbose: int) -> None:
    config = run.config
    keras.utils.set_random_seed(config.seed)
    cvae = _compiled_model(config, dataset, strategy)
    if verbose:
        steps, workers = _steps_per_epoch(config, dataset), distribution.num_workers(strategy)
        print(
            f"{dataset!r}\nsteps in an epoch: {steps}, the first after a while of compiling; run folder: {run.path}"
            + (f"; {workers} workers" if workers > 1 else ""),
            flush=True,
        )
        if steps < _FEW_STEPS:
            print(
                "These are few steps: a smaller batch (--batch-size) gives more, and a better model in as many epochs."
            )
    for folder in (run.path, run.figures_folder):
        atomic.delete_temporary(folder)
    for folder in run.path.glob(_OF_OTHER_WORKERS):
        shutil.rmtree(folder)
    trained = _fit(cvae, config, dataset, run, strategy, verbose)
    if verbose:
        print("measuring the held-out bound, and drawing figures ...", flush=True)
    best = run.model()
    # Else the evaluation is that of the same model, and perhaps of many more samples.
    if trained or not run.has_evaluation():
        _evaluate(run, best, dataset)
    figures.draw(run, best, dataset)
    run.finish()


def _evaluate(run: Run, best: CVAE, dataset: Dataset) -> None:
    """Measures the held-out bound, and of a model with few labels how many images it puts into the right class."""
    config = run.config
    bound = evaluate_bound(best, held_out_batches(dataset.test, config))
    protocol = held_out_protocol(dataset, config.binarization, bound.num_images, bound.num_samples)
    result = {**bound.to_dict(), "protocol": {**protocol, "weights_sha256": weights_sha256(best)}}
    if config.semi_supervised or (config.model == "m1" and dataset.num_classes > 1):
        image, label = dataset.test.binarized(config.binarization), dataset.test.labels
        accuracy = label_posterior_accuracy(best, dataset.train, image, label, config.binarization)
        result["label_posterior_accuracy"] = accuracy.to_dict()
    # One that was made meanwhile may be of an epoch that is not kept.
    run.delete_evaluation()
    run.write_evaluation(result)


def _compiled_model(config: TrainConfig, dataset: Dataset, strategy: tf.distribute.Strategy) -> CVAE:
    with strategy.scope():
        cvae = build_model(config, dataset)
        compile_model(cvae, config, steps_per_epoch=_steps_per_epoch(config, dataset))
    return cvae


def _steps_per_epoch(config: TrainConfig, dataset: Dataset) -> int:
    return dataset.train.num_batches(
        config.batch_size,
        drop_remainder=True,
        conditional=config.conditional,
        labelled_per_batch=config.labelled_per_batch,
    )


def build_model(config: TrainConfig, dataset: Dataset) -> CVAE:
    """Builds the untrained model of a configuration; each pixel's bias starts at the log-odds of its mean.

    Args:
        config: Settings.
        dataset: Whose images and classes the model is for.

    Returns:
        The model, not compiled.
    """
    build = build_cvae
    if config.semi_supervised:
        build = functools.partial(
            build_semi_supervised_cvae, stacked=config.model == "m1+m2", deformation=config.deformation
        )
    with dtype_policy(config.precision):
        cvae = build(
            dataset.image_shape,
            dataset.num_classes if config.conditional else 0,
            config.latent_size,
            config.network,
            width=config.width,
            depth=config.depth,
            prior=config.prior,
            num_samples=config.num_samples,
            seed=config.seed,
        )
    mean = np.clip(dataset.train.mean_image(config.binarization), 1e-3, 1 - 1e-3)
    bias = cvae.decoder.get_layer("pixel_bias").bias
    bias.assign(np.reshape(np.log(mean / (1 - mean)), bias.shape))
    return cvae


def compile_model(cvae: CVAE, config: TrainConfig, steps_per_epoch: int) -> None:
    """Compiles a model with the loss, optimizer and metrics of a configuration.

    Args:
        cvae: Of `build_model`.
        config: Settings.
        steps_per_epoch: Batches of an epoch, by which the learning rate falls.
    """
    optimizer = FusedAdam(
        _learning_rate(config, steps_per_epoch),
        use_ema=config.ema_momentum > 0,
        ema_momentum=config.ema_momentum or 0.99,
    )
    if config.objective == "iwae":
        loss = NegativeIWAE()
    elif config.semi_supervised:
        loss = SemiSupervisedNegativeELBO(
            classification_weight=config.classification_weight, kl_weight=config.kl_weight, free_bits=config.free_bits
        )
    else:
        loss = NegativeELBO(kl_weight=config.kl_weight, free_bits=config.free_bits)
    cvae.compile(
        optimizer,
        loss=loss,
        metrics=[ELBO(), Rate(), Distortion()],
        # XLA fuses the element-wise part of dense networks, which pays for the seconds that it compiles only after some
        # steps; not with q(y|x), which has convolutions, too, and on a CPU it cannot sum over replicas.
        jit_compile=config.suits_xla
        and not config.semi_supervised
        and steps_per_epoch * config.epochs >= _XLA_PAYS_FROM_STEPS
        and tf.distribute.get_strategy().num_replicas_in_sync == 1,
        steps_per_execution=min(_STEPS_PER_EXECUTION, steps_per_epoch),
    )


def _learning_rate(
    config: TrainConfig, steps_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate, or how it rises and falls."""
    highest, schedules = config.learning_rate, keras.optimizers.schedules
    steps, rising = (steps_per_epoch * epochs for epochs in (config.epochs, config.learning_rate_warmup_epochs))
    if config.learning_rate_schedule == "constant":
        return schedules.PolynomialDecay(0.0, rising, end_learning_rate=highest) if rising else highest
    if rising:
        # It takes no fall of 0 steps, as where the warm-up is all of the training.
        return schedules.CosineDecay(0.0, max(1, steps - rising), warmup_target=highest, warmup_steps=rising)
    return schedules.CosineDecay(highest, steps)


def held_out_batches(split: Split, config: TrainConfig) -> tf.data.Dataset:
    """Batches of a validation or test split, in the one draw that all runs share (seed 0)."""
    return split.batches(config.batch_size, binarization=config.binarization, conditional=config.conditional)


def _fit(
    cvae: CVAE, config: TrainConfig, dataset: Dataset, run: Run, strategy: tf.distribute.Strategy, verbose: int
) -> bool:
    """Trains, or goes on; returns whether there was anything left to train."""
    batches = distribution.distribute(
        lambda share: dataset.train.batches(
            config.batch_size,
            binarization=config.binarization,
            seed=config.seed,
            drop_remainder=True,
            conditional=config.conditional,
            share=share,
            labelled_per_batch=config.labelled_per_batch,
        ),
        strategy,
    )
    steps_per_epoch = _steps_per_epoch(config, dataset)
    backup = Backup(run.backup_folder, batches)
    # A chief that goes ahead could delete the backup before the others have read it.
    distribution.wait_for_all(strategy)
    if backup.finished:
        return False
    is_chief = distribution.is_chief(strategy)
    if is_chief:
        run.delete_evaluation()
    if backup.epoch and verbose:
        print(f"resumed after {_epochs(backup.epoch)}", flush=True)
    interruption = Interruption()
    try:
        with interruption.listening():
            cvae.fit(
                batches,
                validation_data=held_out_batches(dataset.validation, config),
                epochs=config.epochs,
                steps_per_epoch=steps_per_epoch,
                initial_epoch=backup.initial_epoch,
                callbacks=[*_callbacks(config, run, steps_per_epoch), backup, interruption],
                verbose=verbose,
            )
    except (KeyboardInterrupt, NonFiniteLossError) as error:
        which = "best" if run.has_model() else "only"
        if not run.has_model() and is_chief:
            cvae.save(run.model_file)
        kept = f"the {which} model so far is {run.model_file}"
        if isinstance(error, NonFiniteLossError):
            raise NonFiniteLossError(f"{error}. After {_epochs(len(run.history()), 'whole ')}, {kept}") from error
        if verbose:
            goes_on = f"goes on after {_epochs(backup.epoch)}, its last backup" if backup.epoch else "begins again"
            print(
                f"\ninterrupted after {_epochs(len(run.history()), 'whole ')}; {kept}\n"
                f"figures: {shlex.join(['tfp-cvae', 'plot', str(run.path)])}; the same command with --resume {goes_on}"
            )
        raise
    return True


def _callbacks(config: TrainConfig, run: Run, steps_per_epoch: int) -> list[keras.callbacks.Callback]:
    """What a configuration asks for besides the training itself, and what fills the run folder."""
    # The true bound that is trained: the loss itself for IWAE, the ELBO whatever the weight of the KL.
    iwae = config.objective == "iwae"
    best = {"monitor": "val_loss", "mode": "min"} if iwae else {"monitor": "val_elbo", "mode": "max"}
    return [
        HistoryCSV(run.history_file, images_per_epoch=steps_per_epoch * config.batch_size),
        *([KLWarmUp(config.kl_warmup_epochs)] if config.kl_warmup_epochs else []),
        *([LabelWarmUp(config.label_warmup_epochs)] if config.semi_supervised and config.label_warmup_epochs else []),
        *([SwapEMAWeights()] if config.ema_momentum else []),
        StopAtNonFiniteLoss(),
        keras.callbacks.ModelCheckpoint(str(run.model_file), save_best_only=True, **best),
        ImageGrid(run.images_file, seed=config.seed),
        *([keras.callbacks.EarlyStopping(patience=config.early_stopping, **best)] if config.early_stopping else []),
        *([keras.callbacks.TensorBoard(run.path / "tensorboard")] if config.tensorboard else []),
    ]


def _epochs(count: int, kind: str = "") -> str:
    return f"{count} {kind}epoch{'' if count == 1 else 's'}"
