import dataclasses
import errno
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import stat

import crash
import filelock
import numpy as np
import pytest
import tensorflow as tf
from conftest import stripes
from test_training import small, start, wait_for

from tfp_cvae import atomic, cli, evaluation, figures, interruption, manifest, training
from tfp_cvae import run as run_module
from tfp_cvae.backup import Backup
from tfp_cvae.config import EvaluationConfig
from tfp_cvae.evaluation import evaluate_run
from tfp_cvae.lock import locked
from tfp_cvae.run import FORMAT_VERSION, Run
from tfp_cvae.sources import load_dataset
from tfp_cvae.training import build_model, compile_model, train

SHORT = EvaluationConfig(num_importance_samples=2, num_images=6, generated_per_class=2, classifier_epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, which the tests copy."""
    folder = tmp_path_factory.mktemp("finished")
    images, labels = stripes()
    np.savez(folder / "stripes.npz", images=images, labels=labels)
    train(small(folder / "stripes.npz", epochs=2), folder / "run", verbose=0)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run that was stopped after an epoch, with a backup of it, which the tests copy."""
    folder = tmp_path_factory.mktemp("stopped")
    images, labels = stripes()
    np.savez(folder / "stripes.npz", images=images, labels=labels)
    on_epoch_begin = Backup.on_epoch_begin

    def stop(self, epoch, logs=None):
        on_epoch_begin(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Backup.__init__.__kwdefaults__, "every_seconds", 0)
        patch.setattr(Backup, "on_epoch_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            train(small(folder / "stripes.npz"), folder / "run", verbose=0)
    return folder / "run"


@pytest.fixture
def stopped(stopped_once, tmp_path, npz, monkeypatch):
    """That run, as if it had been begun with the data of the test."""
    monkeypatch.setitem(Backup.__init__.__kwdefaults__, "every_seconds", 0)
    shutil.copytree(stopped_once, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings.update(dataset=str(npz), dataset_path=str(npz))
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    return Run.load(tmp_path / "run")


def test_check(folder, capsys):
    assert cli.main(["check", str(folder)]) == 0
    printed = capsys.readouterr().out
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert f"{path.stat().st_size:12,} bytes  {path.relative_to(folder)}" in printed


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda run: flip(run / "model.keras"), {"model.keras": "altered"}),
        (lambda run: flip(run / "figures/classes.png"), {"figures/classes.png": "altered"}),
        (lambda run: (run / "history.csv").unlink(), {"history.csv": "missing"}),
        (lambda run: (run / "figures/styles.png").unlink(), {"figures/styles.png": "missing"}),
        (
            lambda run: (run / "manifest.json").unlink(),
            dict.fromkeys(
                ["config.json", "history.csv", "model.keras", "evaluation.json", "images_by_epoch.npz"],
                "not in the manifest",
            ),
        ),
        (
            lambda run: (run / "backup").mkdir(),
            {"backup": "there, as the training runs or was stopped, after 2 of 2 epochs"},
        ),
    ],
)
def test_harm_is_found(folder, capsys, harm, expected):
    harm(folder)
    faults = Run.load(folder).faults()
    assert set(faults) == set(expected)
    assert all(faults[name].startswith(begin) for name, begin in expected.items())
    assert cli.main(["check", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    if "backup" in expected:
        begun = f"in {folder}, but the training runs or was stopped, after 2 of 2 epochs; go on with --resume"
        assert line == f"error: run: expected a finished training {begun}"
        return
    assert line.startswith(f"error: run: expected {folder} as it was written, got: ")
    assert all(name in line for name in expected)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"files": 3, "changing": []}', '{"files": {"a": {}}}', '{"files": {"a": 1}}', "[" * 10_000]
)
def test_manifest_that_cannot_be_read(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json: expected sizes and SHA-256 by file, got what cannot be read"):
        Run.load(folder).faults()


def test_manifest_looks_at_nothing_outside(folder):
    (folder.parent / "secret").write_text("x")
    entry = {"size": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(
        json.dumps({"changing": [], "files": {"../secret": entry, "/etc/passwd": entry}})
    )
    faults = manifest.faults(folder, [])
    assert faults == {"../secret": "outside of the folder", "/etc/passwd": "outside of the folder"}


def test_what_a_stopped_command_was_writing_is_not_in_the_manifest(folder):
    def write():
        with manifest.changing(folder, "figures", "evaluation.json"):
            (folder / "evaluation.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    files, changing = manifest.read(folder)
    assert set(files) == {"config.json", "history.csv", "images_by_epoch.npz", "model.keras"}
    assert changing == ["evaluation.json", "figures"]
    faults = Run.load(folder).faults()
    assert set(faults) == {"evaluation.json", "figures"}
    assert all("when its command was stopped; run that again" in fault for fault in faults.values())
    assert cli.main(["plot", str(folder)]) == 0
    assert set(Run.load(folder).faults()) == {"evaluation.json"}


def test_two_commands_end_at_once(folder, monkeypatch):
    entry = manifest._entry

    def meanwhile(path):
        monkeypatch.setattr(manifest, "_entry", entry)
        with manifest.changing(folder, "evaluation.json"):
            (folder / "evaluation.json").write_text("{}")
        return entry(path)

    with manifest.changing(folder, "figures"):
        (folder / "figures/classes.png").write_bytes(b"new")
        monkeypatch.setattr(manifest, "_entry", meanwhile)
    assert Run.load(folder).faults() == {}


def test_two_commands_at_once(folder):
    with manifest.changing(folder, "figures"):
        (folder / "figures/classes.png").write_bytes(b"new")
        with manifest.changing(folder, "evaluation.json"):
            (folder / "evaluation.json").write_text("{}")
    assert Run.load(folder).faults() == {}


def test_evaluation_outlives_a_spoilt_manifest(folder):
    (folder / "manifest.json").write_text("{")
    Run.load(folder).write_evaluation({"elbo": {"mean": -1.0, "standard_error": 0.1}, "protocol": {}})
    assert Run.load(folder).evaluation()["elbo"]["mean"] == -1


def test_an_evaluation_of_a_thousand_classes(folder):
    """Of 1,000,000 numbers, a row of them on a line, each as it was."""
    bounds = np.random.default_rng(0).standard_normal((1000, 1000)).tolist()
    content = {"elbo_by_label": bounds, "names": ["a, [", "b\n"], "none": [], "one": [[1]], "protocol": {}}
    Run.load(folder).write_evaluation(content)
    found = Run.load(folder).evaluation()
    assert {name: found[name] for name in content if name != "protocol"} == {
        name: value for name, value in content.items() if name != "protocol"
    }
    assert len((folder / "evaluation.json").read_text().splitlines()) < 1100


def test_what_is_half_written_is_in_no_manifest(folder):
    (folder / "figures" / ".tfp-cvae-tmp-1.png").write_bytes(b"half")
    with manifest.changing(folder, "figures"):
        pass
    (folder / "figures" / ".tfp-cvae-tmp-1.png").unlink()
    assert Run.load(folder).faults() == {}


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("begun", [False, True])
def test_an_evaluation_that_cannot_be_kept_is_printed(folder, monkeypatch, capsys, begun):
    """As the training went on meanwhile, or there is no room."""
    run, cvae = Run.load(folder), Run.load(folder).model()
    before, evaluate = run.evaluation(), evaluation.evaluate

    def evaluate_while_it_changes(*given, **options):
        result = evaluate(*given, **options)
        if begun:
            cvae.save(folder / "model.keras")
        else:
            monkeypatch.setattr(run_module, "write_atomically", no_room)
        return result

    def no_room(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation, "evaluate", evaluate_while_it_changes)
    with pytest.raises(
        ValueError if begun else OSError, match="evaluate again after that" if begun else "No space left"
    ):
        evaluate_run(run, load_dataset(run.config.dataset), SHORT)
    assert "log p(x|y)" in capsys.readouterr().out
    assert run.evaluation() == before


def test_a_folder_that_cannot_be_written_is_told_before_an_evaluation(folder, monkeypatch):
    def none(*given, **options):
        raise AssertionError

    def read_only(path, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    run, data = Run.load(folder), load_dataset(Run.load(folder).config.dataset)
    monkeypatch.setattr(evaluation, "evaluate", none)
    monkeypatch.setattr(pathlib.Path, "touch", read_only)
    with pytest.raises(OSError, match="expected to write it, got: Read-only file system"):
        evaluate_run(run, data, SHORT)


def test_summary_of_one_test_image(folder):
    run = Run.load(folder)
    one = {"mean": 1.0, "standard_error": None}
    run.write_evaluation({**run.evaluation(), "label_posterior_accuracy": one, "elbo": one})
    summary = dataclasses.replace(run, config=small("x.npz", model="m2")).summary()
    assert "that q(y|x) has right: 100.00% +- ?\n" in summary
    assert "elbo 1.00 +- ?" in summary


@pytest.mark.usefixtures("quick_judge")
def test_evaluation_and_plot_keep_the_manifest(folder):
    run = Run.load(folder)
    dataset = load_dataset(run.config.dataset)
    evaluate_run(run, dataset, SHORT)
    assert "bayes_accuracy" in run.evaluation()
    assert cli.main(["plot", str(folder)]) == 0
    assert "figures/calibration.png" in manifest.read(folder)[0]
    assert run.faults() == {}


def test_resumed_run_is_that_of_a_training_that_was_not_stopped(stopped, tmp_path, npz, capsys):
    train(small(npz), tmp_path / "whole" / "run", verbose=0)
    train(small(npz), stopped.path, resume=True)
    assert "resumed after 1 epoch\n" in capsys.readouterr().out
    (tmp_path / "resumed").mkdir()
    stopped.path.rename(tmp_path / "resumed" / "run")
    assert crash.differences(crash.result(tmp_path / "whole/run"), crash.result(tmp_path / "resumed/run")) == []


def test_plot_of_a_stopped_run(stopped, capsys):
    assert cli.main(["plot", str(stopped.path)]) == 0
    assert str(stopped.path / "figures" / "lower_bound.png") in capsys.readouterr().out.splitlines()


def test_resume_takes_the_settings_from_the_run(stopped, capsys):
    assert cli.main(["train", "--resume", "--output", str(stopped.path)]) == 0
    assert Run.load(stopped.path).config == stopped.config
    assert stopped.faults() == {}
    capsys.readouterr()
    before = crash.result(stopped.path)
    assert cli.main(["train", "--resume", "--output", str(stopped.path)]) == 0
    assert "the training is finished" in capsys.readouterr().out
    assert crash.differences(before, crash.result(stopped.path)) == []


@pytest.mark.usefixtures("no_figures")
def test_evaluation_of_a_finished_training_is_kept(folder, npz):
    """The training was killed while its figures were drawn, and then evaluated at length."""
    before = json.loads((folder / "evaluation.json").read_text())
    run = Run.load(folder)
    (folder / "evaluation.json").write_text(json.dumps({**before, "bayes_accuracy": {"mean": 0.9}}))
    (folder / "backup").mkdir()
    cvae = build_model(run.config, load_dataset(run.config.dataset))
    compile_model(cvae, run.config, 6)
    batches = load_dataset(run.config.dataset).train.batches(32, drop_remainder=True)
    cvae.fit(batches, epochs=2, callbacks=[Backup(folder / "backup", batches)], verbose=0)
    train(run.config, folder, resume=True, verbose=0)
    assert run.evaluation()["bayes_accuracy"] == {"mean": 0.9}
    assert run.faults() == {}


@pytest.mark.usefixtures("quick_judge")
def test_evaluation_of_an_unfinished_training_is_of_another_model(stopped, npz, capsys):
    few = ["--quick", "--num-images", "6", "--num-importance-samples", "2"]
    assert cli.main(["evaluate", str(stopped.path), *few]) == 0
    begun = "the best model so far, as the training runs or was stopped, after 1 of 3 epochs"
    assert capsys.readouterr().err == f"{stopped.path}: {begun}\n"
    of_it = [
        stopped.path / "figures" / f"{name}.png" for name in ("latent", "calibration", "class_tables", "neighbours")
    ]
    assert all(path.exists() for path in of_it)
    train(small(npz), stopped.path, resume=True, verbose=0)
    assert "bayes_accuracy" not in stopped.evaluation()
    assert not any(path.exists() for path in of_it)
    assert stopped.faults() == {}


@pytest.mark.usefixtures("no_figures")
def test_resume_finds_the_run_by_the_name_of_the_data_set(stopped, npz, monkeypatch, capsys):
    monkeypatch.chdir(stopped.path.parent)
    (stopped.path.parent / "runs").mkdir()
    stopped.path.rename("runs/stripes")
    assert cli.main(["train", "--dataset", str(npz), "--resume"]) == 0
    assert Run.load("runs/stripes").faults() == {}


@pytest.fixture
def relative(stopped, npz, tmp_path, monkeypatch):
    """The stopped run, as if it had been begun beside its data with `--dataset stripes.npz`, seen from elsewhere."""
    settings = json.loads((stopped.path / "config.json").read_text())
    assert settings["dataset_path"] == str(npz)
    (stopped.path / "config.json").write_text(json.dumps({**settings, "dataset": npz.name}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Run.load(stopped.path)


@pytest.mark.usefixtures("quick_judge")
def test_commands_find_the_data_from_another_folder(relative, npz, capsys):
    # Of the same name, and not that of the training.
    images, labels = stripes(seed=1)
    np.savez(npz.name, images=images, labels=labels)
    assert cli.main(["train", "--resume", "--output", str(relative.path), "--dataset", f"../{npz.name}"]) == 0
    assert cli.main(["plot", str(relative.path)]) == 0
    few = ["--quick", "--num-images", "6", "--num-importance-samples", "2"]
    assert cli.main(["evaluate", str(relative.path), *few]) == 0
    assert capsys.readouterr().err == ""
    assert relative.evaluation()["protocol"]["dataset"] == "stripes.npz"
    assert relative.training_data().fingerprint() == relative.dataset_sha256


def test_data_are_found_if_something_else_is_where_they_were(relative, npz):
    shutil.copy(npz, npz.name)
    npz.write_bytes(b"something else")
    assert relative.training_data().fingerprint() == relative.dataset_sha256
    os.remove(npz.name)
    with pytest.raises(ValueError, match=r"stripes.npz: expected an .npz file of plain arrays, got an unreadable one"):
        relative.training_data()


def test_a_link_that_leads_in_a_circle(tmp_path, npz, capsys):
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    assert cli.main(["train", "--dataset", str(npz), "--output", str(tmp_path / "one")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_data_are_found_where_they_were_moved_to_with_the_run(relative, npz, capsys):
    shutil.copy(npz, npz.name)
    images, labels = stripes(seed=1)
    np.savez(npz, images=images, labels=labels)
    assert relative.training_data().fingerprint() == relative.dataset_sha256
    npz.rename(npz.with_suffix(".other"))
    assert relative.training_data().name == "stripes.npz"
    npz.with_suffix(".other").rename(npz)
    # Where neither is as it was, nothing is measured on images that may have been trained on.
    images, labels = stripes(seed=2)
    np.savez(npz.name, images=images, labels=labels)
    for command in (["train", "--resume", "--output"], ["evaluate"]):
        assert cli.main([*command, str(relative.path)]) == 2
        assert f"was begun (in {npz}), got other images, labels or classes; bring them back" in capsys.readouterr().err
    assert cli.main(["plot", str(relative.path)]) == 0
    out, err = capsys.readouterr()
    assert "without figures of real images" in err
    assert "styles.png" not in out
    npz.unlink()
    pathlib.Path(npz.name).unlink()
    with pytest.raises(
        ValueError, match=f"expected {npz}, where it was at the training, or stripes.npz in this folder"
    ):
        relative.training_data()


def test_a_folder_that_is_gone_is_no_tfds_set(relative, tmp_path):
    gone = dataclasses.replace(relative, dataset_path=tmp_path / "mnist")
    gone = dataclasses.replace(gone, config=dataclasses.replace(gone.config, dataset="mnist"))
    with pytest.raises(ValueError, match="where it was at the training, or mnist in this folder, got none;"):
        gone.training_data()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path, monkeypatch):
    """As on a disk that is read-only, which has its own error."""

    def refuse(lock):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), lock.lock_file)

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    expected = f"^{re.escape(str(tmp_path))}: expected to write it, got: Read-only file system; choose another folder"
    with pytest.raises(OSError, match=expected), locked(tmp_path):
        pass


@pytest.mark.mnist
def test_a_folder_of_the_name_of_a_tfds_set_is_not_the_data(tmp_path, dataset, monkeypatch):
    """Not even the run itself, whose folder may have that name."""
    monkeypatch.chdir(tmp_path)
    run = Run.create("mnist", small("mnist"), dataset)
    (run.path / "figures").mkdir()
    run = dataclasses.replace(Run.load("mnist"), dataset_sha256="")
    assert run.training_data().image_shape == (28, 28, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("stripes.npz", "stripes.npz"), ("link/../x.npz", "link/../x.npz"), (".", ""), ("mnist5k", None), ("mnist", None)],
)
def test_a_run_knows_where_its_data_are(name, expected, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run.create("run", small(name), dataset)
    found = Run.load("run").dataset_path
    # Folders are not left out, as one before .. may be a link.
    assert found == (None if expected is None else pathlib.Path(f"{tmp_path}/{expected}"))


def test_backup_of_somebody_else(tmp_path, npz, dataset):
    Backup(tmp_path / "run" / "backup").delete()
    (tmp_path / "run" / "backup" / "3").mkdir()
    with pytest.raises(ValueError, match="which holds something else than a run"):
        train(small(npz), tmp_path / "run", verbose=0)


def test_resume_when_there_is_room_again(tmp_path, npz):
    def limit_file_size():
        # The first backup does not fit.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(npz, tmp_path / "run", preexec_fn=limit_file_size)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run' / 'backup' / '0'}: expected to write it, got: File too large")
    process = start(npz, tmp_path / "run", resume=True)
    wait_for(tmp_path / "run" / "model.keras")
    process.kill()
    process.communicate()
    assert len(Run.load(tmp_path / "run").history()) >= 1


@pytest.mark.usefixtures("no_figures")
def test_resume_begins_where_there_is_nothing(tmp_path, npz):
    run = train(small(npz, epochs=1), tmp_path / "run", resume=True, verbose=0)
    assert run.is_finished()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "epochs: expected 3, with which the training to resume was begun, got 5"),
        ({"seed": 1}, "seed: expected 0, with which the training to resume was begun, got 1"),
    ],
)
def test_resume_with_other_settings(stopped, npz, change, message):
    with pytest.raises(ValueError, match=message):
        train(small(npz, **change), stopped.path, resume=True, verbose=0)


def test_resume_with_other_images(stopped, npz):
    with np.load(npz) as file:
        arrays = dict(file)
    arrays["images"][0, 0, 0] ^= 1
    np.savez(npz, **arrays)
    with pytest.raises(ValueError, match=r"dataset: expected .*stripes.npz as it was .* got other images"):
        train(small(npz), stopped.path, resume=True, verbose=0)


def test_nobody_looks_at_the_data_of_a_finished_run(folder, tmp_path):
    """Neither the chief nor another worker, who would not come to where the chief waits for it."""
    images, labels = stripes(seed=3)
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    settings = json.loads((folder / "config.json").read_text())
    changed = dict.fromkeys(("dataset", "dataset_path"), str(tmp_path / "stripes.npz"))
    (folder / "config.json").write_text(json.dumps({**settings, **changed}))
    run = Run.load(folder)
    with pytest.raises(ValueError, match="got other images, labels or classes"):
        run.training_data()
    assert train(run.config, folder, resume=True, verbose=0) == run
    assert training._assist(folder, run.config, tf.distribute.get_strategy(), resume=True) == run


def test_an_older_run_does_not_know_where_its_data_were(relative, tmp_path, npz):
    settings = json.loads((relative.path / "config.json").read_text())
    del settings["dataset_path"]
    (relative.path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"dataset: expected stripes.npz, where it was at the training, got none; bring"
    ):
        Run.load(relative.path).training_data()
    shutil.copy(npz, "stripes.npz")
    assert Run.load(relative.path).training_data().name == "stripes.npz"


def test_a_row_of_the_history_that_was_cut_short(stopped):
    with (stopped.path / "history.csv").open("a") as file:
        file.write("2,1.0,2.0\n")
    with pytest.raises(
        ValueError, match=r"run: expected a table of numbers in .*history.csv, got rows with other columns"
    ):
        stopped.history()


@pytest.mark.usefixtures("no_figures")
def test_an_evaluation_made_during_a_training_does_not_outlive_it(stopped, monkeypatch):
    """It may be of an epoch that was the best for a while."""

    def fit(cvae, config, dataset, run, *args, **kwargs):
        trained = real_fit(cvae, config, dataset, run, *args, **kwargs)
        (run.path / "figures").mkdir(exist_ok=True)
        for file in ("evaluation.json", "figures/latent.png"):
            (run.path / file).write_text("{}")
        return trained

    real_fit = training._fit
    monkeypatch.setattr(training, "_fit", fit)
    run = train(stopped.config, stopped.path, resume=True, verbose=0)
    assert not (run.path / "figures" / "latent.png").exists()
    assert np.isfinite(run.evaluation()["elbo"]["mean"])


@pytest.mark.usefixtures("no_figures")
def test_resume_with_other_versions_says_so(stopped, capsys):
    settings = json.loads((stopped.path / "config.json").read_text())
    settings["versions"]["tensorflow"] = "2.0.0"
    (stopped.path / "config.json").write_text(json.dumps(settings))
    train(stopped.config, stopped.path, resume=True, verbose=2)
    printed = capsys.readouterr().out
    assert "resumed with other versions (tensorflow): the result can differ in the last digits" in printed


def test_a_class_by_its_name_or_number(folder):
    run = dataclasses.replace(Run.load(folder), class_names=("circle", "2", "star"))
    assert [run.class_number(label) for label in ("circle", "star", "0", "2", "1")] == [0, 2, 0, 1, 1]
    with pytest.raises(ValueError, match=r"label: expected one of the classes circle, 2, star .* got square"):
        run.class_number("square")


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        done.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}")))

    def replaced(source, target, **options):
        replace(source, target, **options)
        done.append(("named", str(source)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    atomic.write_atomically(tmp_path / "one", lambda path: path.write_text("whole"))
    (first, temporary), (second, named), *after = done
    assert (first, second, temporary) == ("flushed", "named", named)
    assert ("flushed", str(tmp_path)) in after


def test_resume_without_a_backup(stopped, npz):
    shutil.rmtree(stopped.backup_folder)
    with pytest.raises(ValueError, match=r"expected a training that can be resumed, .* which has no backup"):
        train(small(npz), stopped.path, resume=True, verbose=0)


def test_resume_and_overwrite(tmp_path, npz):
    with pytest.raises(ValueError, match="overwrite, resume: expected one of them, got both"):
        train(small(npz), tmp_path / "run", overwrite=True, resume=True)


def test_two_trainings_in_one_folder(tmp_path, npz):
    process = start(npz, tmp_path / "run")
    try:
        wait_for(tmp_path / "run" / "model.keras")
        for options in ({"resume": True}, {"overwrite": True}):
            config = dataclasses.replace(Run.load(tmp_path / "run").config)
            with pytest.raises(
                ValueError, match=f"in which nobody else trains, .* process {process.pid} on .* since 20"
            ):
                train(config, tmp_path / "run", verbose=0, **options)
    finally:
        process.kill()
        process.communicate()
    # What a killed owner leaves is no lock.
    assert {".tfp-cvae-lock", ".tfp-cvae-owner.json"} <= set(os.listdir(tmp_path / "run"))
    with locked(tmp_path / "run"):
        pass
    assert not {".tfp-cvae-lock", ".tfp-cvae-owner.json"} & set(os.listdir(tmp_path / "run"))


def test_folder_is_deleted_while_training(folder, tmp_path, npz):
    """A link to it, through which the training was begun, leads to somebody else's run by then."""
    other = folder.rename(tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    process = start(npz, tmp_path / "latest")
    wait_for(tmp_path / "run" / "model.keras")
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(other)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run'}/")
    # Of the history or the model, or of the backup.
    assert "expected a file in an existing folder, got no" in line or "got: No such file or directory" in line
    run = Run.load(tmp_path / "elsewhere")
    assert run.model().generate([0], seed=0).shape == (1, 8, 8, 1)
    assert len(run.history()) >= 1
    assert not (tmp_path / "run").exists()
    assert Run.load(other).faults() == {}


def test_a_new_run_leaves_what_is_not_of_the_old_one(folder, finished):
    mine = [folder / "notes.txt", folder / "figures" / "three.png"]
    for path in mine:
        path.write_text("mine")
    before = {path for path in folder.rglob("*") if path.is_file()}
    dataset = load_dataset(finished / "stripes.npz")
    (folder / "tensorboard").mkdir()
    run = Run.create(folder, small(finished / "stripes.npz", epochs=2, seed=5), dataset, overwrite=True)
    assert {path for path in folder.rglob("*") if path.is_file()} == {*mine, folder / "config.json"} < before
    assert (Run.load(folder).config.seed, run.is_finished()) == (5, False)


def test_a_folder_stays_a_run_while_it_is_overwritten(folder, finished, monkeypatch):
    """Killed before each change in it, with a file of the user beside the old ones; and overwritten again."""
    (folder / "notes.txt").write_text("mine")
    config, dataset = small(finished / "stripes.npz", epochs=2), load_dataset(finished / "stripes.npz")
    left = [0]

    def counted(change):
        def changed(*args):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return change(*args)

        return changed

    monkeypatch.setattr(atomic, "delete", counted(atomic.delete))
    monkeypatch.setattr(run_module, "write_atomically", counted(run_module.write_atomically))
    for changes in range(1, 30):
        left[0] = changes
        try:
            run = Run.create(folder, config, dataset, overwrite=True)
            break
        except KeyboardInterrupt:
            assert not Run.load(folder).is_finished()
            assert not Run.load(folder).backup_folder.exists()
    assert changes > 10
    assert Run.load(folder) == run


@pytest.mark.usefixtures("quick_judge")
def test_no_figure_of_the_old_run_stays(folder, finished, monkeypatch):
    run, dataset = Run.load(folder), load_dataset(finished / "stripes.npz")
    evaluate_run(run, dataset, SHORT)
    assert len(figures.draw(run, run.model(), dataset) + figures.draw_evaluation(run, dataset)) == 8
    Run.create(folder, run.config, dataset, overwrite=True)
    assert not list((folder / "figures").iterdir())


def test_a_backup_on_another_disk(folder, tmp_path):
    """Kept there by a link, which is gone with the end of the training."""
    (tmp_path / "fast").mkdir()
    (folder / "backup").symlink_to(tmp_path / "fast")
    run = Run.load(folder)
    assert not run.is_finished()
    run.finish()
    assert run.is_finished()
    atomic.delete_temporary(folder)
    assert not [path for path in folder.iterdir() if path.is_symlink()]


def test_a_folder_of_another_program_is_not_overwritten(tmp_path, npz):
    paper = tmp_path / "paper"
    for name in ("config.json", "figures/photo.png", "backup/thesis.tex", "history.csv"):
        (paper / name).parent.mkdir(parents=True, exist_ok=True)
        (paper / name).write_text('{"model_type": "bert"}')
    for options in ({"overwrite": True}, {}):
        with pytest.raises(ValueError, match="which holds something else than a run"):
            train(small(npz), paper, verbose=0, **options)
    assert {path.read_text() for path in paper.rglob("*") if path.is_file()} == {'{"model_type": "bert"}'}


@pytest.mark.usefixtures("no_figures")
def test_what_others_hide_in_the_folder_is_left_alone(tmp_path, npz):
    for name in (".tmp-mine", ".lock", ".tmp-dir/thesis.tex"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("precious")
    train(small(npz), tmp_path / "run", verbose=0)
    assert sorted(path.name for path in (tmp_path / "run").glob(".*")) == [".lock", ".tmp-dir", ".tmp-mine"]
    assert (tmp_path / "run/.tmp-dir/thesis.tex").read_text() == (tmp_path / "run/.lock").read_text() == "precious"


def test_pictures_of_others_are_in_no_manifest(folder):
    (folder / "figures/three.png").write_text("of another command")
    assert cli.main(["plot", str(folder)]) == 0
    assert "figures/classes.png" in manifest.read(folder)[0]
    (folder / "figures/three.png").write_text("of a later one")
    assert Run.load(folder).faults() == {}


def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch):
    """As of some file systems of networks, where files can be."""
    fsync = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    atomic.write_atomically(tmp_path / "file", lambda path: path.write_text("whole"))
    assert (tmp_path / "file").read_text() == "whole"


def test_ctrl_c_that_is_ignored_stays_so():
    """As of a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.Interruption().listening():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_twice_does_not_wait():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        listener = interruption.Interruption()
        with listener.listening():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                listener.on_train_batch_end(0)
        with listener.listening():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_folder_that_cannot_be_written(npz, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["train", "--dataset", str(npz), "--epochs", "1", "--output", str(tmp_path / "file" / "run")]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_run_of_a_later_version(folder):
    content = json.loads((folder / "config.json").read_text())
    content["format_version"], content["versions"]["tfp-cvae"] = FORMAT_VERSION + 1, "9.1"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"of version 2; it was made by tfp-cvae 9.1: upgrade to that"):
        Run.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"versions": 3},
        {"versions": {"a": 1}},
        {"class_names": "ab"},
        {"class_names": [1]},
        {"class_probabilities": ["a"]},
        {"class_probabilities": 1},
        {"format_version": "x"},
        {"format_version": None},
        {"format_version": float("inf")},
    ],
)
def test_configuration_of_other_kinds(folder, change):
    content = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"run: expected a folder that `tfp-cvae train` made, got .* cannot be read"):
        Run.load(folder)


@pytest.mark.parametrize("version", range(FORMAT_VERSION + 1))
def test_runs_of_each_format_version_load(version, tmp_path):
    stored = pathlib.Path(__file__).parent / "runs" / f"format_{version}"
    folder = tmp_path / "run"
    shutil.copytree(stored, folder)
    run = Run.load(folder)
    expected = np.load(pathlib.Path(__file__).parent / "runs" / f"generated_{version}.npy")
    np.testing.assert_allclose(run.model().generate([0, 1, 2], seed=0), expected, atol=1e-6)
    assert len(run.history()) == 2
    assert run.evaluation()["elbo"]["mean"] < 0
    assert run.images_by_epoch()[0].tolist() == [1, 2]
    assert run.is_finished()
    assert "held-out bound" in run.summary()
    assert cli.main(["generate", str(folder), "--label", "1", "--output", str(tmp_path / "one.png")]) == 0
    if version:
        assert run.faults() == {}
    else:
        assert all("older version" in fault for fault in run.faults().values())
