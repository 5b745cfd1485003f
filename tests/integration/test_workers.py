"""Several workers train as one does, each in a process of its own, and survive that one of them is killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import crash
import numpy as np
import pytest
from conftest import stripes

from tfp_cvae import backup, recognition, training
from tfp_cvae.cli import main

SETTINGS = {"epochs": 4, "batch-size": 16, "width": 16, "latent-size": 4, "ema-momentum": 0.9, "kl-warmup-epochs": 2}
# With a backup after each epoch, however short it is, and with XLA where there is one worker, as in longer trainings.
PROGRAM = """
import sys
from tfp_cvae import cli, commands
commands.import_tensorflow()
from tfp_cvae import backup, recognition, training
training._XLA_PAYS_FROM_STEPS = 1
recognition._MIN_STEPS = 1
backup.Backup.__init__.__kwdefaults__["every_seconds"] = 0
sys.exit(cli.main())
"""
SHARED_OUT = """
import json
import numpy as np
from tfp_cvae import distribution
strategy = distribution.from_environment()
number = distribution.worker_number(strategy)
rows = [distribution.rows_of_worker(count, strategy) for count in (7, 1)]
again = [distribution.gathered(np.stack([own, -own], axis=1).astype(np.float64) / 3, strategy) for own in rows]
print(json.dumps([number, [own.tolist() for own in rows], [all_rows.tolist() for all_rows in again]]))
"""
# Of sums in another order, after 48 steps.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images, and a run of one worker on them, which uses XLA, as it does in longer trainings."""
    folder = tmp_path_factory.mktemp("workers")
    images, labels = stripes()
    np.savez(folder / "stripes.npz", images=images, labels=labels)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(training, "_XLA_PAYS_FROM_STEPS", 1)
        assert main(words(folder, "one")) == 0
    return folder


def words(folder, name, *more):
    settings = [word for flag, value in SETTINGS.items() for word in (f"--{flag}", str(value))]
    return ["train", "--dataset", f"{folder}/stripes.npz", "--output", f"{folder}/{name}", *settings, *more]


def start(number, command, program=PROGRAM, cwd=None):
    """As many workers, the chief first."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    cluster = {"worker": [f"localhost:{free.getsockname()[1]}" for free in sockets]}
    for free in sockets:
        free.close()
    return processes(cluster, number, command, program, cwd)


def processes(cluster, number, command, program=PROGRAM, cwd=None):
    """The first ones of a cluster."""
    workers = []
    for index in range(number):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *command],
                cwd=cwd,
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return workers


@pytest.fixture
def as_program(monkeypatch):
    """What `PROGRAM` has, in this process."""
    monkeypatch.setattr(training, "_XLA_PAYS_FROM_STEPS", 1)
    monkeypatch.setattr(recognition, "_MIN_STEPS", 1)
    monkeypatch.setitem(backup.Backup.__init__.__kwdefaults__, "every_seconds", 0)


def alone(command, capsys):
    """What one worker, which this process is, has printed."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as context:
        task = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
        context.setenv("TF_CONFIG", json.dumps(task))
        assert main(command) == 0
    return capsys.readouterr()


def ended(workers):
    """What they have printed, after all have ended."""
    try:
        return [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def finish(workers):
    """What they have printed, after all have come to a good end."""
    printed = ended(workers)
    assert [worker.returncode for worker in workers] == [0] * len(workers), printed
    return printed


def assert_close(found, expected):
    """The same training, but for the order of sums."""
    assert list(found["weights, optimizer, moving averages"]) == list(expected["weights, optimizer, moving averages"])
    for name, value in expected["weights, optimizer, moving averages"].items():
        np.testing.assert_allclose(
            found["weights, optimizer, moving averages"][name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    for row, expected_row in zip(found["history"], expected["history"], strict=True):
        assert row == pytest.approx(expected_row, rel=TOLERANCE)
    assert found["evaluation"]["elbo"] == pytest.approx(expected["evaluation"]["elbo"], rel=TOLERANCE)


@pytest.fixture(scope="module")
def two(folder):
    """What two workers have come to, and printed, who were started beside the data."""
    printed = finish(start(2, words(folder, "two", "--dataset", "stripes.npz"), cwd=folder))
    return crash.result(folder / "two"), printed


def test_two_workers_are_as_one(folder, two):
    found, ((chief, _), (other, _)) = two
    assert "2 workers" in chief
    assert "Epoch" not in other
    assert_close(found, crash.result(folder / "one"))


def test_four_workers_are_as_one(folder):
    finish(start(4, words(folder, "four")))
    assert_close(crash.result(folder / "four"), crash.result(folder / "one"))


def test_two_workers_learn_from_few_labels_as_one(folder):
    """With M1+M2, which has all that M2 has, and a flow."""
    few = ["--model", "m1+m2", "--num-labels", "6", "--labelled-per-batch", "4", "--deformation", "1"]
    assert main(words(folder, "few", *few)) == 0
    finish(start(2, words(folder, "two-few", *few)))
    assert_close(crash.result(folder / "two-few"), crash.result(folder / "few"))


def leaves(value, name=""):
    """Name and value of what nested dictionaries and lists hold."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}/{key}")
    else:
        yield name, value


def test_rows_are_shared_out_and_gathered():
    """Also fewer than there are workers, one of which has none then."""
    printed = finish(start(2, [], SHARED_OUT))
    (first, first_rows, gathered), (second, second_rows, same) = (json.loads(out) for out, _ in printed)
    assert (first, second) == (0, 1)
    assert first_rows == [[0, 1, 2, 3], [0]]
    assert second_rows == [[4, 5, 6], []]
    for rows, size in zip(gathered, (7, 1), strict=True):
        np.testing.assert_array_equal(rows, np.stack([np.arange(size), -np.arange(size)], axis=1) / 3)
    assert same == gathered


@pytest.mark.usefixtures("as_program")
def test_two_workers_evaluate_as_one(folder, capsys):
    results = []
    for number in (1, 2):
        run = folder / f"evaluated-by-{number}"
        shutil.copytree(folder / "one", run)
        command = ["evaluate", str(run), "--quick", "--num-importance-samples", "150"]
        printed = finish(start(2, command)) if number == 2 else [alone(command, capsys)]
        assert "log p(x|y)" in printed[0][0]
        # Each has its share of the pairs of 24 images and 3 labels.
        assert f"a first look at every label: {72 // number} pairs" in printed[0][0]
        assert [out for out, _ in printed[1:]] == [""] * (number - 1)
        results.append(json.loads((run / "evaluation.json").read_text()))
    for result in results:
        for measured in ("latents_per_second", "products_per_second", "likelihood_seconds", "seconds"):
            del result["protocol"][measured]
    assert [result["protocol"].pop("num_workers") for result in results] == [1, 2]
    # Of 24 images, each worker has 12; the products of a group of images are rounded by their place in it.
    one, two = (dict(leaves(result)) for result in results)
    assert one.keys() == two.keys()
    assert sum(isinstance(value, float) for value in one.values()) > 100
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


@pytest.mark.parametrize(("victim", "again"), [(0, 2), (1, 1)], ids=["the chief", "another, and one goes on"])
@pytest.mark.usefixtures("as_program")
def test_a_killed_worker(folder, two, victim, again, capsys):
    """The others end with one line, and after a new start the result is that of workers nobody has killed."""
    name = f"killed{victim}-{again}"
    workers = start(2, words(folder, name, "--resume", "--dataset", "stripes.npz"), cwd=folder)
    while not list(folder.glob(f"{name}/backup/[1-9]")) and all(worker.poll() is None for worker in workers):
        time.sleep(0.02)
    workers[victim].kill()
    out, error = ended(workers)[1 - victim]
    assert workers[1 - victim].returncode == 2, out + error
    assert error.startswith("error: TF_CONFIG: expected all workers to stay until the end"), error
    assert error.count("\n") == 1
    # As of Keras, when it is killed while it saves.
    (folder / name / "workertemp_1").mkdir(exist_ok=True)
    # The run knows the settings, and where the data are.
    command = ["train", "--resume", "--output", f"{folder}/{name}"]
    (begun, _), *_ = finish(start(again, command)) if again == 2 else [alone(command, capsys)]
    assert "resumed after" in begun
    if again == 2:
        assert crash.differences(crash.result(folder / name), two[0]) == []
    else:
        assert_close(crash.result(folder / name), two[0])


def test_a_folder_that_is_taken(folder):
    """The chief refuses, and the others do not wait for it."""
    workers = start(2, words(folder, "one"))
    (_, chief), (_, other) = ended(workers)
    assert [worker.returncode for worker in workers] == [2, 2], chief + other
    assert chief.startswith("error: output: expected a new folder"), chief
    assert other.startswith("error: TF_CONFIG: expected all workers to stay until the end"), other


def test_a_port_that_is_taken(folder):
    with socket.create_server(("localhost", 0)) as taken, socket.create_server(("localhost", 0)) as other:
        cluster = {"worker": [f"localhost:{server.getsockname()[1]}" for server in (taken, other)]}
        ((out, error),) = ended(processes(cluster, 1, words(folder, "taken")))
    assert "Traceback" not in error, out + error
    assert error.splitlines()[-1].startswith("error: TF_CONFIG: expected a free port and all workers, got ")
    assert not (folder / "taken").exists()
