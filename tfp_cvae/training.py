"""Training from a configuration, through `compile` and stock `fit`, into a run folder."""

import importlib.util
import os
import pathlib
import signal
import threading
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfp_cvae import figures
from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.build import build_cvae
from tfp_cvae.callbacks import HistoryCSV, ImageGrid, KLWarmUp, SwapEMAWeights
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import Dataset, Split
from tfp_cvae.losses import ELBO, Distortion, NegativeELBO, NegativeIWAE, Rate
from tfp_cvae.model import CVAE
from tfp_cvae.run import Run, held_out_protocol
from tfp_cvae.sources import load_dataset

_STEPS_PER_EXECUTION = 50
_XLA_PAYS_FROM_STEPS = 1000


def train(
    config: TrainConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    verbose: int = 1,
) -> Run:
    """Trains a model and leaves everything behind in a run folder.

    The weights that are kept are those of the epoch with the best true bound on the validation split. The held-out
    bound is then measured once, on the test split, and the figures are drawn. The same configuration gives the same
    history and weights again. Sets the global seed of Keras.

    Args:
        config: Settings; None for the defaults.
        output: Run folder to make; by default `default_output(config)`.
        overwrite: Whether to delete the run that `output` may hold.
        verbose: As for `fit`: 1 shows a progress bar.

    Returns:
        The run.

    Raises:
        ValueError: If the data set or the folder is not as expected.
        ConnectionError: If the data set would have to be downloaded and there is no connection.
        KeyboardInterrupt: If the training was interrupted, after what was trained so far has been saved.
    """
    config = config or TrainConfig()
    dataset = load_dataset(config.dataset)
    if config.batch_size > len(dataset.train):
        raise ValueError(
            f"batch_size: expected at most {len(dataset.train)}, the number of training images, "
            f"got {config.batch_size}; lower it (--batch-size)"
        )
    if config.binarization == "none" and verbose:
        print("The bounds below are on grey images: not comparable with bounds on binary images.")
    if config.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise ValueError(
            "tensorboard: expected the package tensorboard, which is not installed; pip install tensorboard"
        )
    keras.utils.set_random_seed(config.seed)
    cvae = build_model(config, dataset)
    compile_model(cvae, config, steps_per_epoch=len(dataset.train) // config.batch_size)
    run = Run.create(output or default_output(config), config, dataset, overwrite=overwrite)
    if verbose:
        steps = len(dataset.train) // config.batch_size
        print(
            f"{dataset!r}\nsteps in an epoch: {steps}, the first after a while of compiling; run folder: {run.path}",
            flush=True,
        )
    try:
        _fit(cvae, config, dataset, run, verbose)
    except KeyboardInterrupt:
        _keep_interrupted(cvae, run, verbose)
        raise
    if not run.has_model():
        raise ValueError(
            f"learning_rate: expected a rate at which the loss stays finite, got {config.learning_rate}, with which it "
            "became NaN in the first epoch; lower it"
        )
    best = run.model()
    bound = evaluate_bound(best, held_out_batches(dataset.test, config))
    protocol = held_out_protocol(dataset, config.binarization, bound.num_images, bound.num_samples)
    run.write_evaluation({**bound.to_dict(), "protocol": protocol})
    figures.draw(run, best, dataset)
    return run


def default_output(config: TrainConfig) -> pathlib.Path:
    """Folder of a run that was not given one: `runs/` and the name of the data set."""
    path = pathlib.Path(config.dataset)
    name = path.resolve().stem if path.exists() else config.dataset.replace("/", "-")
    return pathlib.Path("runs") / (name or "run")


def build_model(config: TrainConfig, dataset: Dataset) -> CVAE:
    """Builds the untrained model of a configuration; each pixel's bias starts at the log-odds of its mean."""
    cvae = build_cvae(
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
    # The mean of dynamically binarized images is that of the grey ones.
    images = dataset.train.binarized("threshold" if config.binarization == "threshold" else "none")
    mean = np.clip(images.mean(axis=0), 1e-3, 1 - 1e-3)
    bias = cvae.decoder.get_layer("pixel_bias").bias
    bias.assign(np.reshape(np.log(mean / (1 - mean)), bias.shape))
    return cvae


def compile_model(cvae: CVAE, config: TrainConfig, steps_per_epoch: int) -> None:
    """Compiles a model with the loss, optimizer and metrics of a configuration."""
    learning_rate = config.learning_rate
    if config.learning_rate_schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps_per_epoch * config.epochs)
    optimizer = keras.optimizers.Adam(
        learning_rate, use_ema=config.ema_momentum > 0, ema_momentum=config.ema_momentum or 0.99
    )
    if config.objective == "iwae":
        loss = NegativeIWAE()
    else:
        loss = NegativeELBO(kl_weight=config.kl_weight, free_bits=config.free_bits)
    cvae.compile(
        optimizer,
        loss=loss,
        metrics=[ELBO(), Rate(), Distortion()],
        # XLA fuses the element-wise part of dense networks, which pays for the seconds that it compiles only after some
        # steps; on a CPU its convolutions are slower than TensorFlow's.
        jit_compile=config.network != "conv" and steps_per_epoch * config.epochs >= _XLA_PAYS_FROM_STEPS,
        steps_per_execution=min(_STEPS_PER_EXECUTION, steps_per_epoch),
    )


def held_out_batches(split: Split, config: TrainConfig) -> tf.data.Dataset:
    """Batches of a validation or test split, in the one draw that all runs share (seed 0)."""
    batch_size = min(config.batch_size, len(split))
    return split.batches(batch_size, binarization=config.binarization, conditional=config.conditional)


def _fit(cvae: CVAE, config: TrainConfig, dataset: Dataset, run: Run, verbose: int) -> None:
    batches = dataset.train.batches(
        config.batch_size,
        binarization=config.binarization,
        seed=config.seed,
        drop_remainder=True,
        conditional=config.conditional,
    )
    steps_per_epoch = len(dataset.train) // config.batch_size
    # The true bound that is trained: the loss itself for IWAE, the ELBO whatever the weight of the KL.
    iwae = config.objective == "iwae"
    best = {"monitor": "val_loss", "mode": "min"} if iwae else {"monitor": "val_elbo", "mode": "max"}
    listeners = [
        keras.callbacks.TerminateOnNaN(),
        HistoryCSV(run.path / "history.csv", images_per_epoch=steps_per_epoch * config.batch_size),
        *([KLWarmUp(config.kl_warmup_epochs, config.kl_weight)] if config.kl_warmup_epochs else []),
        *([SwapEMAWeights()] if config.ema_momentum else []),
        keras.callbacks.ModelCheckpoint(str(run.path / "model.keras"), save_best_only=True, **best),
        ImageGrid(run.path / "images_by_epoch.npz", seed=config.seed),
        *([keras.callbacks.EarlyStopping(patience=config.early_stopping, **best)] if config.early_stopping else []),
        *([keras.callbacks.TensorBoard(run.path / "tensorboard")] if config.tensorboard else []),
    ]
    # The last, so that an epoch that has ended is kept before the interruption is raised.
    interruption = _Interruption()
    previous = interruption.listen()
    try:
        cvae.fit(
            batches,
            validation_data=held_out_batches(dataset.validation, config),
            epochs=config.epochs,
            callbacks=[*listeners, interruption],
            verbose=verbose,
        )
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)


class _Interruption(keras.callbacks.Callback):
    """Raises KeyboardInterrupt after Ctrl-C, but between two steps.

    Raised wherever the program happens to be, it can fall into a destructor, which swallows it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False

    def listen(self) -> Any:
        """Takes over Ctrl-C, in the main thread; returns the handler to restore, or None."""
        if threading.current_thread() is not threading.main_thread():
            return None
        previous = signal.getsignal(signal.SIGINT)

        def ask(number: int, frame: Any) -> None:
            self._asked = True
            # Whoever cannot wait for the end of the step presses it again.
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, ask)
        return previous

    def _raise_if_asked(self, *args: Any, **kwargs: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = on_epoch_end = _raise_if_asked


def _keep_interrupted(cvae: CVAE, run: Run, verbose: int) -> None:
    """Sees to it that an interrupted run holds a model, and says which."""
    epochs = len(run.history())
    if not run.has_model():
        cvae.save(run.path / "model.keras")
    if verbose:
        what = (
            f"after {epochs} epochs; the best model so far is"
            if epochs
            else "in the first epoch; the model as it was is"
        )
        print(f"\ninterrupted {what} {run.path / 'model.keras'}; figures: tfp-cvae plot {run.path}")
