"""Trainings are killed at random moments, and resumed: nothing is lost, half written or different in the end.

`--kills N` asks for more kills; docs/reliability.md has the result of the long form.
"""

import collections
import functools
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import sys
import time

import crash
import numpy as np
import pytest
from conftest import stripes

PARTS = 2  # beside each other with `--dist load`, as a training of this size leaves a processor without work
SETTINGS = {
    "mlp": {
        "width": 16,
        "latent_size": 4,
        "kl_warmup_epochs": 3,
        "ema_momentum": 0.9,
        "early_stopping": 3,
    },
    "few labels": {
        "model": "m2",
        "num_labels": 6,
        "labelled_per_batch": 4,
        "label_warmup_epochs": 2,
        "width": 16,
        "latent_size": 4,
    },
    "conv, flow": {"network": "conv", "prior": "flow", "width": 4, "depth": 1, "latent_size": 4},
    "residual, iwae": {
        "network": "residual",
        "prior": "label",
        "objective": "iwae",
        "num_samples": 2,
        "width": 16,
        "latent_size": 4,
    },
    "few labels, stacked": {
        "model": "m1+m2",
        "precision": "mixed_bfloat16",
        "num_labels": 6,
        "labelled_per_batch": 4,
        "label_warmup_epochs": 2,
        "width": 16,
        "latent_size": 4,
    },
}


@pytest.fixture(scope="module")
def processes():
    """Processes that have imported TensorFlow already, and are no more than that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash"])
    # The server knows `crash` only from here, and would go on in silence without it.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return context


def start(processes, *args):
    process = processes.Process(target=crash.run, args=args)
    process.start()
    return process


@pytest.fixture(scope="module")
def reference(processes, tmp_path_factory):
    """Trainings that nobody disturbs, by name: settings, result, number of moments and seconds."""
    folder = tmp_path_factory.mktemp("references")
    images, labels = stripes(120)
    np.savez(folder / "stripes.npz", images=images, labels=labels)

    @functools.cache
    def undisturbed(name):
        settings = {**SETTINGS[name], "dataset": str(folder / "stripes.npz"), "epochs": 6, "batch_size": 16}
        place = folder / name
        place.mkdir()
        process = start(processes, settings, place)
        process.join()
        assert process.exitcode == 0
        moments = place / "moments"
        # From the file that the others wait for, too, to the last one.
        seconds = moments.stat().st_mtime - (place / "started").stat().st_mtime
        return settings, crash.result(place / "run"), int(moments.read_text()), seconds

    return undisturbed


@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_moment(part, processes, reference, tmp_path, request, record_property):
    wanted = request.config.getoption("--kills") / PARTS
    crash_seed = request.config.getoption("--crash-seed")
    generator = random.Random(PARTS * crash_seed + part)
    kills, finished = collections.Counter(), 0
    while kills.total() < wanted:
        # Each kind in turn, so that few kills are of several.
        name = list(SETTINGS)[(crash_seed + PARTS * finished + part) % len(SETTINGS)]
        settings, expected, moments, seconds = reference(name)
        place = tmp_path / f"{finished}"
        place.mkdir()
        for kill in range(generator.randint(1, 2)):
            # By itself at the moment of a write or a step, or from outside at any time.
            target = generator.randrange(1, moments) if kill % 2 == 0 else None
            number = signal.SIGKILL if target else generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            (place / "started").unlink(missing_ok=True)
            process = start(processes, settings, place, target, generator.random())
            if target is None:
                while not (place / "started").exists() and process.is_alive():
                    time.sleep(0.01)
                process.join(generator.uniform(0, seconds))
                if process.is_alive():
                    os.kill(process.pid, number)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == (130 if number == signal.SIGINT else -number)
            crash.check_whole(place)
            kills[number.name, progress(place)] += 1
        process = start(processes, settings, place)
        process.join()
        assert process.exitcode == 0
        assert crash.differences(expected, crash.result(place / "run")) == [], name
        crash.check_whole(place)
        assert len(list(place.glob("served/[0-9]*"))) == 1
        finished += 1
        print(f"part {part}: {kills.total()} kills, {finished} trainings", file=sys.stderr, flush=True)
        shutil.rmtree(place)
    line = f"{kills.total()} kills, {finished} trainings; what there was at a kill: {counted(kills)}"
    record_property("kills", line)


def counted(kills):
    return ", ".join(f"{number} {signal_name} with {what}" for (signal_name, what), number in sorted(kills.items()))


def progress(place):
    """How far a killed training had come."""
    run = place / "run"
    if list(place.glob("served/*")):
        return "export"
    if (run / "manifest.json").is_file():
        return "evaluation, figures or manifest"
    if (run / "history.csv").is_file():
        return "history"
    if (run / "config.json").is_file():
        return "configuration"
    return "nothing"
