import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import pty
import resource
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tfp_cvae import cli, plotting
from tfp_cvae.cli import main
from tfp_cvae.config import EvaluationConfig, TrainConfig
from tfp_cvae.evaluation import evaluate_run
from tfp_cvae.run import Run
from tfp_cvae.training import train


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from conftest import stripes

    folder = tmp_path_factory.mktemp("cli")
    images, labels = stripes()
    np.savez(folder / "stripes.npz", images=images, labels=labels)
    config = TrainConfig(dataset=str(folder / "stripes.npz"), epochs=2, batch_size=32, latent_size=4, width=16)
    return train(config, folder / "run", verbose=0).path


def test_help_is_fast_and_names_every_setting():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "tfp_cvae", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of a processor, so that it does not matter what else runs. TensorFlow alone would take some more.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    text = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tfp_cvae", "train", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "argparse" in text.stderr
    for slow in ("numpy", "tensorflow"):
        assert f" {slow}\n" not in text.stderr
    for field in TrainConfig.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text.stdout
    assert "--output" in text.stdout
    assert "--overwrite" in text.stdout


def test_version_is_that_of_the_installed_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfp-cvae {importlib.metadata.version('tfp-cvae')}\n"


@pytest.mark.parametrize(
    ("machine", "given", "found"),
    [("x86_64", {}, "1"), ("x86_64", {"TF_ENABLE_ONEDNN_OPTS": "0"}, "0"), ("aarch64", {}, "None")],
)
def test_the_command_line_has_onednn_unless_told_otherwise(machine, given, found):
    code = f"""
import os, platform, sys
platform.machine = lambda: {machine!r}
from tfp_cvae import cli
cli.main(["datasets"])
assert "tensorflow" in sys.modules
print(os.environ.get("TF_ENABLE_ONEDNN_OPTS"))
if platform.uname().machine == {machine!r}:
    from tensorflow.python.util import _pywrap_util_port
    assert _pywrap_util_port.IsMklEnabled() == ({found!r} == "1")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == found


def test_a_terminal_shows_what_takes_the_time(tmp_path, npz):
    """That TensorFlow is loaded, in a line that is erased, and the progress of an epoch."""
    settings = ["--epochs", "1", "--batch-size", "32", "--latent-size", "4", "--width", "8"]
    words = [sys.executable, "-m", "tfp_cvae", "train", "--dataset", str(npz), "--output", str(tmp_path / "run")]
    terminal, end = pty.openpty()
    with subprocess.Popen([*words, *settings], stdout=end, stderr=end) as process:
        os.close(end)
        shown = b""
        # Linux has an error for the end of a terminal.
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 1024):
                shown += part
    os.close(terminal)
    assert process.returncode == 0
    assert shown.startswith(b"loading TensorFlow ...\r\x1b[K")
    assert b"==]" in shown


def test_what_needs_no_tensorflow_does_not_wait_for_it(run_folder, tmp_path):
    picture, untrained = str(tmp_path / "one.png"), str(tmp_path / "untrained")
    shutil.copytree(run_folder, untrained)
    (tmp_path / "untrained" / "model.keras").unlink()
    generate = ["generate", str(run_folder), "--output", picture]
    mistakes = {
        "output: expected a new folder, got": [["train", "--output", str(run_folder)]],
        "epochs: expected 2, with which the training to resume was begun, got 77": [
            ["train", "--output", str(run_folder), "--resume", "--epochs", "77"]
        ],
        "run: expected the folder": [
            *([command, str(tmp_path)] for command in ("evaluate", "plot", "check")),
            ["export", str(tmp_path), "--output", picture],
        ],
        "output: expected a folder for versions alone, got": [
            ["export", str(run_folder), "--output", str(run_folder)],
        ],
        "num_importance_samples: expected an integer >= 1, got 0": [
            ["export", str(run_folder), "--output", picture, "--num-importance-samples", "0"],
        ],
        "gone.npz: expected an existing .npz file, got none": [
            ["train", "--dataset", "gone.npz", "--output", str(tmp_path / "run")],
            ["evaluate", str(run_folder), "--dataset", "gone.npz"],
        ],
        "dataset: expected a folder with a subfolder for each class or an .npz file, got none: './gone'": [
            ["train", "--dataset", "./gone", "--output", str(tmp_path / "run")],
        ],
        "run: expected a finished training in": [
            *([command, untrained] for command in ("evaluate", "plot")),
            *([command, untrained, "--output", picture] for command in ("export", "generate")),
        ],
        "label: expected one of the classes 0, 1, 2": [[*generate, "--label", "nobody"]],
        "count: expected at most 1,000": [[*generate, "--label", "1", "--count", "5000"]],
        "output: expected a picture format": [["generate", str(run_folder), "--label", "1", "--output", "one.xyz"]],
    }
    expected = [f"error: {message}" for message, commands in mistakes.items() for _ in commands]
    code = f"""
import sys
from tfp_cvae.cli import main
assert main(["check", {str(run_folder)!r}]) == 0
assert main(["train", "--resume", "--output", {str(run_folder)!r}]) == 0
for commands in {list(mistakes.values())!r}:
    assert [main(words) for words in commands] == [2] * len(commands)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"{run_folder}: the training is finished\nheld-out bound, nats per image: elbo -" in done.stdout
    lines = done.stderr.splitlines()
    assert [line[: len(message)] for line, message in zip(lines, expected, strict=True)] == expected


def test_the_traceback_behind_an_error_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("TFP_CVAE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="run: expected the folder"):
        main(["check", str(tmp_path)])


def test_a_network_larger_than_the_memory_is_one_line(tmp_path, npz, capfd):
    words = ["train", "--dataset", str(npz), "--width", "1000000", "--output", str(tmp_path / "run")]
    assert main(words) == 2
    expected = "memory: expected what this machine has, got a tensor of shape[1000000,1000000]; lower width, "
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {expected}")


def test_nobody_reads_what_is_printed():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "tfp_cvae", "recipes"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_train_prints_the_bound_and_where_the_pictures_are(tmp_path, npz, capfd):
    arguments = ["--dataset", str(npz), "--epochs", "2", "--batch-size", "64", "--latent-size", "4", "--width", "8"]
    assert main(["train", *arguments, "--output", str(tmp_path / "run")]) == 0
    out, err = capfd.readouterr()
    assert "steps in an epoch: 3," in out
    assert "These are few steps: a smaller batch (--batch-size) gives more" in out
    assert "Epoch 2/2" in out
    # Not in a terminal, and so without progress bars.
    assert "==]" not in out
    assert "held-out bound, nats per image: elbo -" in out
    assert "24 test images, binarized once, seed 0; K = 1; mean +- standard error; training seed 0" in out
    assert f"figures: {tmp_path / 'run' / 'figures'}" in out
    assert err == ""


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("lowest", "highest", "binarization", "hinted"),
    [
        (64, 192, "dynamic", True),
        (64, 192, "none", False),
        (0, 40, "dynamic", False),
    ],
)
def test_train_says_so_if_binarization_leaves_noise(tmp_path, capsys, lowest, highest, binarization, hinted):
    """A pixel of value p has the variance p (1 - p): at 1/4 and 3/4 it is 0.75 of the most."""
    images = np.random.default_rng(0).choice(np.array([lowest, highest], np.uint8), (60, 8, 8))
    np.savez(tmp_path / "tones.npz", images=images, labels=np.arange(60) % 2)
    words = [
        "--dataset",
        str(tmp_path / "tones.npz"),
        "--binarization",
        binarization,
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["train", *words, "--epochs", "1", "--batch-size", "16", "--width", "4", "--latent-size", "2"]) == 0
    assert ("Binarized, these images are mostly noise: --binarization none" in capsys.readouterr().out) == hinted


@pytest.mark.usefixtures("quick_judge")
def test_evaluate_prints_and_keeps_the_numbers_and_draws_them(run_folder, capfd):
    flags = {"--num-importance-samples": "120", "--num-images": "20", "--label-margin": "7", "--seed": "5"}
    assert main(["evaluate", str(run_folder), "--quick", *[word for flag in flags.items() for word in flag]]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    result = json.loads((run_folder / "evaluation.json").read_text())
    for name in ("elbo", "rate", "distortion", "log_p_x_given_y", "log_p_x", "bayes_accuracy"):
        assert set(result[name]) == {"mean", "standard_error"}
    assert f"{result['log_p_x_given_y']['mean']:.2f} +- {result['log_p_x_given_y']['standard_error']:.2f}" in out
    assert result["protocol"]["num_samples"] == 120
    assert result["protocol"]["num_images"] == 20
    assert result["protocol"]["label_margin"] == 7
    assert result["protocol"]["seed"] == 5
    assert result["protocol"]["versions"]["tf-keras"]
    # A line for each look, and as this is no terminal, no progress bar.
    assert "the likely labels" in out
    assert "==]" not in out
    for name in ("calibration", "class_tables", "latent", "neighbours"):
        picture = PIL.Image.open(run_folder / "figures" / f"{name}.png")
        assert min(picture.size) > 300
        assert str(run_folder / "figures" / f"{name}.png") in out


@pytest.mark.usefixtures("quick_judge")
def test_an_evaluation_on_another_data_set_says_so(run_folder, tmp_path, capsys):
    from conftest import stripes

    folder, other = tmp_path / "run", tmp_path / "other.npz"
    shutil.copytree(run_folder, folder)
    images, labels = stripes(seed=1)
    np.savez(other, images=images, labels=labels)
    quick = ["--quick", "--num-importance-samples", "20", "--num-images", "9"]
    assert main(["evaluate", str(folder), *quick, "--dataset", str(other)]) == 0
    assert f"  9 test images of {other}, binarized once" in Run.load(folder).summary()
    # The pictures of the evaluation are not mixed with those of other data.
    neighbours = (folder / "figures" / "neighbours.png").read_bytes()
    capsys.readouterr()
    assert main(["plot", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "calibration.png" in printed
    assert "neighbours.png" not in printed
    assert (folder / "figures" / "neighbours.png").read_bytes() == neighbours
    assert main(["evaluate", str(folder), *quick]) == 0
    assert "  9 test images, binarized once" in Run.load(folder).summary()
    assert (folder / "figures" / "neighbours.png").read_bytes() != neighbours


def test_the_home_folder_after_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = cli._parse(["train", "--output=~/run", "--dataset=~/x~.npz"])
    assert parsed.output == tmp_path / "run"
    assert parsed.config.dataset == str(tmp_path / "x~.npz")
    assert cli._parse(["generate", "~", "--output=a~.png", "--label=~"]).label == "~"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    "value", ["/path-without/any/spaces" * 5, r"some  words of C:\x and " + "x" * 99 + " more", "many"]
)
def test_a_message_has_the_value_as_it_was_given(value, joined, encoding, monkeypatch):
    """And nothing of the box of tyro, which has 80 columns, and other rules where the output is not UTF-8."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    given = [f"--epochs={value}"] if joined else ["--epochs", value]
    with pytest.raises(ValueError, match=r"^Error parsing --epochs: ") as caught:
        cli._parse(["train", *given])
    expected = f"Error parsing --epochs: invalid literal for int() with base 10: {value!r}; see tfp-cvae train --help"
    assert str(caught.value) == expected


@pytest.mark.parametrize("words", [["train", "--output", ""], ["export", "run", "--output="]])
def test_an_empty_word_is_no_folder(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err == "error: --output: expected a value, got an empty word; is a variable not set?\n"


@pytest.mark.parametrize(
    ("command", "advice"), [("train", "lower width"), ("evaluate", "pass --quick"), ("plot", "end other programs")]
)
def test_out_of_memory(command, advice):
    assert f"; {advice}" in cli._explained(MemoryError(), [command, "run"])


def test_output_that_the_shell_has_closed():
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m tfp_cvae recipes >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_the_encoding_does_not_have(run_folder, tmp_path):
    """Chinese ones, say: they are printed after the work has been done."""
    done = subprocess.run(
        [sys.executable, "-m", "tfp_cvae", "generate", run_folder, "--label", "1", "--output", "\u4e00.png"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"},
        cwd=tmp_path,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"16 images, seeds 0 to 15: \\u4e00.png\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-importance-samples", "0"], "num_importance_samples: expected an integer >= 1, got 0"),
        (["--dataset", "{other}"], "dataset: expected images of 8x8x1, as of the model, got"),
        (["--dataset", "{classes}"], "dataset: expected the classes 0, 1, 2, as of the run, got"),
        (["--dataset", "mnist5k"], "dataset: expected the classes 0, 1, 2, as of the run, got mnist5k with 0, 1, 2, 3"),
    ],
)
def test_mistakes_in_an_evaluation(run_folder, tmp_path, arguments, message, capsys):
    from conftest import stripes

    images, labels = stripes(size=9)
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    images, labels = stripes()
    np.savez(tmp_path / "classes.npz", images=images, labels=labels, class_names=["a", "b", "c"])
    files = {"other": tmp_path / "other.npz", "classes": tmp_path / "classes.npz"}
    before = (run_folder / "evaluation.json").read_bytes()
    assert main(["evaluate", str(run_folder), *[word.format(**files) for word in arguments]]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert (run_folder / "evaluation.json").read_bytes() == before


def test_a_folder_that_is_not_a_run(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    expected = f"error: run: expected the folder '{tmp_path}' that `tfp-cvae train` made, got no config.json in it\n"
    assert capsys.readouterr().err == expected


def test_generate(run_folder, tmp_path, capsys, monkeypatch):
    picture, drawn = tmp_path / "two.png", []
    image_table = plotting.image_table

    def noted(images, title):
        drawn.append((images, title))
        return image_table(images, title=title)

    monkeypatch.setattr(plotting, "image_table", noted)
    assert (
        main(["generate", str(run_folder), "--label", "2", "--count", "5", "--seed", "3", "--output", str(picture)])
        == 0
    )
    assert capsys.readouterr().out == f"5 images, seeds 3 to 7: {picture}\n"
    ((images, title),) = drawn
    assert title == "stripes.npz, class 2: seeds 3 to 7"
    expected = Run.load(run_folder).model().generate([2] * 5, 3 + np.arange(5))
    np.testing.assert_array_equal(images.reshape(expected.shape), expected)
    assert PIL.Image.open(picture).size[0] > 300


@pytest.mark.usefixtures("no_figures")
def test_generate_without_classes(npz, tmp_path, capsys):
    run = str(tmp_path / "vae")
    settings = ["--epochs", "1", "--width", "16", "--latent-size", "4", "--batch-size", "32"]
    assert main(["train", "--dataset", str(npz), "--no-conditional", "--output", run, *settings]) == 0
    for count in (1, 3):
        arguments = ["--count", str(count), "--seed", "2", "--output", str(tmp_path / f"{count}.png")]
        assert main(["generate", run, *arguments]) == 0
    out = capsys.readouterr().out
    assert "steps in an epoch: 6," in out
    assert "few steps" not in out
    assert out.endswith(f"3 images, seeds 2 to 4: {tmp_path / '3.png'}\n")
    # Images of an untrained model are grey, on white.
    grey = [np.sum(np.array(PIL.Image.open(tmp_path / f"{count}.png").convert("L")) < 200) for count in (1, 3)]
    assert grey[1] > 2 * grey[0]


def test_plot(run_folder, capsys):
    for path in (run_folder / "figures").iterdir():
        path.unlink()
    assert main(["plot", str(run_folder)]) == 0
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(str(path) for path in (run_folder / "figures").iterdir())
    names = {pathlib.Path(path).name for path in printed}
    assert {"lower_bound.png", "generated_by_epoch.png", "classes.png", "styles.png"} <= names


@pytest.mark.usefixtures("quick_judge")
def test_plot_without_the_data_set(run_folder, capsys):
    short = EvaluationConfig(num_importance_samples=2, num_images=6, generated_per_class=2, classifier_epochs=1)
    run = Run.load(run_folder)
    evaluate_run(run, run.training_data(), short)
    data = run_folder.parent / "stripes.npz"
    data.rename(data.with_suffix(".away"))
    try:
        assert main(["plot", str(run_folder)]) == 0
    finally:
        data.with_suffix(".away").rename(data)
    out, err = capsys.readouterr()
    of_training = {"lower_bound.png", "generated_by_epoch.png", "classes.png"}
    of_evaluation = {"calibration.png", "class_tables.png", "latent.png"}
    assert {pathlib.Path(path).name for path in out.split()} == of_training | of_evaluation
    missing = f"dataset: expected {data}, where it was at the training, got none; bring it back"
    assert err.startswith(f"without figures of real images, which need the data set: {missing}")


def test_datasets(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    for word in ("mnist5k", "fashion_mnist", "emnist/balanced", "file.npz", "folder/of/classes/"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train, evaluate, generate, plot, export, request, check, recipes, datasets"),
        (["tarin"], "command: expected one of train, evaluate, generate, plot, "),
        (["trian", "--dataset", "x.npz"], "datasets, got 'trian'; did you mean train?"),
        (["learn", "--dataset", "x.npz"], "got 'learn'; see tfp-cvae --help"),
        (
            ["train", "--output", "/proc/x"],
            "/proc/x: expected to write it, got: No such file or directory; choose another",
        ),
        (["train", "--latent-sise", "3"], "--latent-sise, 3; did you mean --latent-size? see tfp-cvae train --help"),
        (["train", "--confg", "3"], "Unrecognized options: --confg, 3; see tfp-cvae train --help"),
        # A flag of another command is not what was meant.
        (["train", "--num-imags", "9"], "Unrecognized options: --num-imags, 9; see tfp-cvae train --help"),
        (["train", "--epochs", "0"], "epochs: expected an integer >= 1, got 0"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--network", "gan"], "gan"),
        (["train", "--latent-size", "0"], "latent_size: expected an integer >= 1, got 0"),
        (["train", "--dataset", "no_such_set"], "dataset: expected mnist5k, a TFDS name, an .npz file or a folder"),
        (["train", "--batch-size", "10000"], "batch_size: expected at most 4050, the number of training images"),
        (["train", "--dataset", "x" * 300], "dataset: expected mnist5k, a TFDS name, an .npz file or a folder"),
        # As Python has a name of bytes that are no UTF-8.
        (["train", "--output", "s\udcff"], r"output: expected a name of text in UTF-8, got 's\udcff'; choose another"),
        (["train", "--output", "x" * 300], "output: expected a folder that can be read, got 'xxx"),
        (["train", "--resume", "--output", "x" * 300], "xxx...: File name too long; choose another one"),
        (["plot", "x" * 300], "that `tfp-cvae train` made, got none"),
        (["plot", "nowhere"], "run: expected the folder 'nowhere' that `tfp-cvae train` made, got none"),
        (
            ["generate", "RUN", "--label", "3", "--output", "x.png"],
            "label: expected one of the classes 0, 1, 2 (or the number of one, from 0), got 3",
        ),
        (
            ["generate", "RUN", "--output", "x.png"],
            "label: expected one of the classes 0, 1, 2, got none; give one (--label)",
        ),
        (["generate", "RUN", "--label", "1", "--count", "0", "--output", "x.png"], "count: expected an integer >= 1"),
        (["generate", "RUN", "--label", "1", "--count", "1001", "--output", "x.png"], "count: expected at most 1,000"),
        (["generate", "RUN", "--label", "1", "--output", "x.doc"], "output: expected a picture format"),
        (["generate", "RUN", "--label", "1", "--output", "x.pgf"], "output: expected a picture format"),
        (
            ["generate", "RUN", "--label", "1", "--seed", str(2**63), "--output", "x.png"],
            "seed: expected an integer >= 0 and < 2147483648",
        ),
        (
            ["generate", "RUN", "--label", "1", "--output", "absent/x.png"],
            "expected a file in an existing folder, got no folder 'absent'",
        ),
        (["generate", "RUN", "--label", "1"], "--output"),
    ],
)
def test_mistakes_are_one_line(run_folder, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(run_folder) if word == "RUN" else word for word in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
