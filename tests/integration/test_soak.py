"""Training and evaluating in one process for a long time: memory and open files stay as they are.

`--soak-minutes N` asks for longer; docs/reliability.md has the result of an hour.
"""

import gc
import time

import numpy as np
import psutil
import tf_keras as keras

from tfp_cvae.backup import Backup
from tfp_cvae.bounds import evaluate_bound
from tfp_cvae.build import build_cvae
from tfp_cvae.callbacks import HistoryCSV, ImageGrid, StopAtNonFiniteLoss, SwapEMAWeights
from tfp_cvae.flows import CouplingFlow
from tfp_cvae.importance import importance_estimate
from tfp_cvae.likelihood import likelihood_under_each_label
from tfp_cvae.losses import ELBO, NegativeELBO
from tfp_cvae.model import CVAE
from tfp_cvae.sources import load_dataset

# Of the time, after which memory is measured; TensorFlow fills its caches before.
WARM_UP = 0.2


def test_memory_and_open_files_stay_flat(tmp_path, request, record_property):
    minutes = request.config.getoption("--soak-minutes")
    data = load_dataset("mnist5k")
    train, held_out = data.train.rows(np.arange(512)), data.validation.rows(np.arange(200))
    keras.utils.set_random_seed(0)
    networks = build_cvae(data.image_shape, 10, latent_size=10, width=100)
    one_hot = keras.Input((10,))
    # Small, as most of the time would go into what TensorFlow makes of it.
    flow = keras.Model(one_hot, CouplingFlow(10, depth=2, width=16)(one_hot))
    cvae = CVAE(networks.encoder, networks.decoder, flow)
    cvae.compile(keras.optimizers.Adam(use_ema=True), loss=NegativeELBO(), metrics=[ELBO()])
    validation = held_out.batches(100)
    image, label = data.test.binarized()[:20], data.test.labels[:20]
    process = psutil.Process()
    begin, cycles, seen = time.monotonic(), 0, []
    while time.monotonic() < begin + 60 * minutes or cycles < 8:
        batches = train.batches(128, seed=cycles)
        callbacks = [
            HistoryCSV(tmp_path / "history.csv", len(train)),
            SwapEMAWeights(),
            StopAtNonFiniteLoss(),
            keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), "val_elbo", mode="max", save_best_only=True),
            ImageGrid(tmp_path / "grid.npz"),
        ]
        backup = Backup(tmp_path / "backup", batches, every_seconds=0)
        cvae.fit(batches, validation_data=validation, epochs=3, callbacks=[*callbacks, backup], verbose=0)
        backup.delete()
        evaluate_bound(cvae, validation)
        importance_estimate(cvae, image, label, num_samples=200)
        likelihood_under_each_label(cvae, image, label, num_samples=200)
        keras.models.load_model(tmp_path / "best.keras").generate([3], seed=cycles)
        # As Keras asks of who makes models in a loop: TensorFlow keeps something for each name of a variable.
        keras.backend.clear_session()
        gc.collect()
        cycles += 1
        seen.append((time.monotonic() - begin, process.memory_info().rss / 2**20, process.num_fds()))
    when, memory, files = np.array(seen).T
    # The first ones fill TensorFlow's caches, however long they took.
    warm = (when > WARM_UP * when[-1]) & (np.arange(cycles) >= 2)
    parts = [float(part.mean()) for part in np.array_split(memory[warm], 4)]
    line = (
        f"{cycles} cycles in {when[-1] / 60:.1f} minutes; MB after the warm-up, means of quarters: "
        f"{', '.join(f'{part:.0f}' for part in parts)}; open files {files[warm].min():.0f} to {files[warm].max():.0f}"
    )
    record_property("soak", line)
    print(line)
    assert files[warm].max() <= files[warm].min() + 2
    # A short run has few cycles for a leak, each of which would take some MB, and memory goes up and down by 1%.
    assert parts[-1] <= (1.05 if minutes >= 10 else 1.03) * parts[0]
