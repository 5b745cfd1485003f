import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import perturb, stripes
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfp_cvae.atomic import write_next_version
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.export import export_run, export_saved_model, server_commands
from tfp_cvae.importance import importance_estimate
from tfp_cvae.likelihood import likelihood_under_each_label
from tfp_cvae.run import Run

SIGNATURES = {"generate", "generate_png", "decode", "encode", "reconstruct", "log_likelihood", "classify"}


def model(network="mlp", prior="label", num_classes=3):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 1), num_classes, 4, network, width=8, prior=prior)
    perturb(cvae)
    return cvae


def call(served, signature, **inputs):
    return {key: value.numpy() for key, value in served.signatures[signature](**inputs).items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, and the folder of its first version."""
    cvae, base = model(), tmp_path_factory.mktemp("exported") / "cvae"
    return cvae, export_saved_model(cvae, base, num_importance_samples=np.int64(30), class_probabilities=[2, 5, 3])


def test_versions_count_up_and_other_folders_are_left_alone(tmp_path):
    base = tmp_path / "cvae"
    (base / "7").mkdir(parents=True)
    (base / "notes").mkdir()
    first = export_saved_model(model(), base)
    assert first == base / "8"
    # Policies and labels that its owner wrote are kept.
    config = base / "models.config"
    mine = f"# mine\n{config.read_text()}"
    config.write_text(mine)
    assert export_saved_model(model(), str(base)) == base / "9"
    assert config.read_text() == mine
    assert sorted(path.name for path in base.iterdir()) == ["7", "8", "9", "models.config", "notes"]
    # Other users can read it, as a server is one.
    assert os.stat(first).st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_beside_the_model(exported, tmp_path):
    _, version = exported
    base = version.parent
    records = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(version / "assets.extra" / "tf_serving_warmup_requests"))
    ]
    assert {record.model_spec.signature_name for record in records} == SIGNATURES
    assert {record.model_spec.name for record in records} == {"cvae"}
    served = tf.saved_model.load(str(version))
    for record in records:
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in record.inputs.items()}
        for tensor in call(served, record.model_spec.signature_name, **inputs).values():
            assert len(tensor) == 1
    config = base / "models.config"
    written = config.read_text()
    (entry,) = text_format.Parse(written, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (entry.name, entry.base_path, entry.model_platform) == ("cvae", str(base), "tensorflow")
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert card["image_shape"] == [8, 8, 1]
    assert (card["latent_size"], card["num_classes"], card["num_importance_samples"]) == (4, 3, 30)
    assert card["class_probabilities"] == [0.2, 0.5, 0.3]
    assert card["signatures"]["log_likelihood"] == {
        "inputs": {"image": "float32 [n, 8, 8, 1]", "label": "int64 [n]", "seed": "int64 [n]"},
        "outputs": {"elbo": "float32 [n]", "log_likelihood": "float32 [n]"},
    }
    assert set(card["signatures"]) == SIGNATURES
    assert card["versions"]["tensorflow"] == tf.__version__
    commands = server_commands(version)
    assert commands.count(f"--model_config_file={config}") == 2
    assert "/v1/models/cvae --label 0 " in commands
    # Its owner may have given it another name; that of a copy names the first folder.
    config.write_text(written.replace('name: "cvae"', 'name: "digits"'))
    assert "/v1/models/digits --label 0 " in server_commands(version)
    shutil.copytree(base, tmp_path / "other")
    config.write_text(written)
    commands = server_commands(tmp_path / "other" / version.name)
    assert "models.config" not in commands
    assert f"-e MODEL_NAME=other -e MODEL_BASE_PATH={tmp_path} " in commands
    assert f" --model_name=other --model_base_path={tmp_path / 'other'}" in commands
    assert "/v1/models/other --label 0 " in commands


def test_a_colon_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "10:00").mkdir()
    monkeypatch.chdir(tmp_path / "10:00")
    with pytest.raises(ValueError, match=r"base_path: expected a local folder without ':', .* got '.*10:00/cvae'"):
        export_saved_model(model(), "cvae")


def test_served_answers_are_those_of_the_model(exported, dataset):
    (cvae, version), probabilities = exported, [0.2, 0.5, 0.3]
    served = tf.saved_model.load(str(version))
    image, label = dataset.test.binarized()[:3], dataset.test.labels[:3]
    seed = np.array([3, 1, 2**31 - 1])
    one_hot = cvae.one_hot(label, 3)
    images, labels, seeds = tf.constant(image), tf.constant(label), tf.constant(seed)

    generated = call(served, "generate", label=labels, seed=seeds)["image"]
    np.testing.assert_allclose(generated, cvae.generate(label, seed), atol=1e-6)
    np.testing.assert_array_equal(call(served, "serving_default", label=labels, seed=seeds)["image"], generated)
    pictures = call(served, "generate_png", label=labels, seed=seeds)["image_bytes"]
    for picture, expected in zip(pictures, generated, strict=True):
        np.testing.assert_array_equal(tf.io.decode_png(picture), np.round(255 * expected))
    posterior = cvae.posterior(images, one_hot)
    encoded = call(served, "encode", image=images, label=labels)
    np.testing.assert_allclose(encoded["mean"], posterior.mean(), atol=1e-5)
    np.testing.assert_allclose(encoded["stddev"], posterior.stddev(), atol=1e-5)
    latent = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    decoded = call(served, "decode", latent=tf.constant(latent), label=labels)["image"]
    np.testing.assert_allclose(decoded, cvae.likelihood(latent, one_hot).mean(), atol=1e-6)
    reconstructed = call(served, "reconstruct", image=images, label=labels)["image"]
    np.testing.assert_allclose(reconstructed, cvae.reconstruct(image, label), atol=1e-6)

    weighed = call(served, "log_likelihood", image=images, label=labels, seed=seeds)
    classified = call(served, "classify", image=images, seed=seeds)
    for row in range(3):
        own = (image[row : row + 1], label[row : row + 1])
        expected = importance_estimate(cvae, *own, num_samples=30, seed=int(seed[row]))
        np.testing.assert_allclose(weighed["log_likelihood"][row], expected.log_likelihood[0], rtol=1e-5)
        np.testing.assert_allclose(weighed["elbo"][row], expected.elbo[0], rtol=1e-5)
        each = likelihood_under_each_label(cvae, own[0], num_samples=30, seed=int(seed[row])).log_likelihood[0]
        joint = np.exp(each - each.max()) * probabilities
        np.testing.assert_allclose(classified["probabilities"][row], joint / joint.sum(), atol=1e-5)
    np.testing.assert_array_equal(classified["label"], np.argmax(classified["probabilities"], axis=1))
    assert classified["label"].dtype == np.int64


@pytest.mark.parametrize("build", [build_cvae, build_semi_supervised_cvae])
def test_no_rows_have_an_answer_of_none(tmp_path, build):
    """Also by convolutions, for which TensorFlow has no kernel then if an activation follows."""
    version = export_saved_model(build((8, 8, 1), 3, 4, "conv", width=8), tmp_path / "cvae", num_importance_samples=10)
    served = tf.saved_model.load(str(version))
    kinds = {
        "image": ((8, 8, 1), tf.float32),
        "latent": ((4,), tf.float32),
        "label": ((), tf.int64),
        "seed": ((), tf.int64),
    }
    for rows in (0, 1):
        for name, signature in served.signatures.items():
            inputs = {
                key: tf.zeros([rows, *kinds[key][0]], kinds[key][1]) for key in signature.structured_input_signature[1]
            }
            assert {answer.shape[0] for answer in signature(**inputs).values()} == {rows}, name


def test_without_classes(tmp_path):
    cvae = model(prior="standard", num_classes=0)
    version = export_saved_model(cvae, tmp_path / "plain")
    served = tf.saved_model.load(str(version))
    assert set(served.signatures) == SIGNATURES - {"classify"} | {"serving_default"}
    seeds = tf.constant([5, 6], tf.int64)
    np.testing.assert_allclose(
        call(served, "generate", seed=seeds)["image"], cvae.generate(seed=5 + np.arange(2)), atol=1e-6
    )
    image = np.random.default_rng(0).integers(0, 2, (2, 8, 8, 1)).astype(np.float32)
    found = call(served, "log_likelihood", image=tf.constant(image), seed=tf.constant([9, 9], tf.int64))
    expected = importance_estimate(cvae, image, num_samples=100, seed=9)
    np.testing.assert_allclose(found["log_likelihood"], expected.log_likelihood, rtol=1e-5)
    assert "--label" not in server_commands(version)


def test_many_channels_have_no_picture(tmp_path):
    keras.utils.set_random_seed(0)
    cvae = build_cvae((8, 8, 5), 2, 4, width=8)
    served = tf.saved_model.load(str(export_saved_model(cvae, tmp_path / "channels")))
    assert "generate_png" not in served.signatures


def test_no_xla_no_keras_and_the_weights_once(tmp_path):
    """Of a network of the default sizes, with the prior that has the largest graph."""
    keras.utils.set_random_seed(0)
    cvae = build_cvae((28, 28, 1), 10, 40, "conv", prior="flow")
    version = export_saved_model(cvae, tmp_path / "cvae")
    graph = (version / "saved_model.pb").read_bytes()
    # XLA marks the functions that it is to compile; a Keras object would be registered by its name.
    content = saved_model_pb2.SavedModel.FromString(graph)
    functions = content.meta_graphs[0].graph_def.library.function
    assert functions
    assert not [function for function in functions if function.attr["_XlaMustCompile"].b]
    assert b"_tf_keras" not in graph
    count = sum(int(tf.size(weight)) for weight in cvae.trainable_variables)
    stored = (version / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert 4 * count <= stored < 4 * count + 20_000
    # With all else that is in the folder.
    assert sum(file.stat().st_size for file in version.rglob("*") if file.is_file()) < 1.3 * 4 * count


MISTAKES = [
    ({"num_importance_samples": 0}, ValueError, "num_importance_samples: expected an integer >= 1, got 0"),
    (
        {"num_importance_samples": 2**31},
        ValueError,
        "num_importance_samples: expected an integer >= 1 and < 2147483648",
    ),
    ({"num_importance_samples": 1.5}, TypeError, "num_importance_samples: expected an integer"),
    ({"class_probabilities": [1, 2]}, ValueError, "class_probabilities: expected 3 numbers >= 0, not all 0"),
    ({"class_probabilities": [1, 2, -1]}, ValueError, "class_probabilities: expected 3 numbers"),
    ({"class_probabilities": [1, 2, np.nan]}, ValueError, "class_probabilities: expected 3 numbers"),
    ({"class_probabilities": [0, 0, 0]}, ValueError, "class_probabilities: expected 3 numbers"),
    ({"class_probabilities": 1.0}, ValueError, "class_probabilities: expected 3 numbers >= 0, not all 0, got 1.0"),
    ({"class_probabilities": ["a", "b", "c"]}, TypeError, "class_probabilities: expected 3 numbers, got .'a', 'b'"),
]


@pytest.mark.parametrize("base", ["gs://bucket/cvae", pathlib.Path("gs://bucket/cvae"), "my model", "a:b", ""])
def test_folders_that_no_server_can_name(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="base_path: expected a"):
        export_saved_model(model(), base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "kind", "message"), MISTAKES)
def test_mistakes(tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        export_saved_model(model(), tmp_path / "cvae", **options)
    assert not (tmp_path / "cvae").exists()


def test_a_model_that_is_not_finite_is_not_exported(tmp_path):
    cvae = model()
    cvae.decoder.trainable_variables[0].assign(cvae.decoder.trainable_variables[0] * np.nan)
    with pytest.raises(ValueError, match="cvae: expected finite numbers, got NaN or infinity as image of generate"):
        export_saved_model(cvae, tmp_path / "cvae")
    assert [path.name for path in (tmp_path / "cvae").iterdir()] == ["models.config"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "cvae").write_text("notes")
    with pytest.raises(ValueError, match=r"base_path: expected a folder, got .*cvae', which is a file"):
        export_saved_model(model(), tmp_path / "cvae")
    assert (tmp_path / "cvae").read_text() == "notes"


@pytest.mark.usefixtures("no_figures")
def test_run(tmp_path, npz):
    from tfp_cvae.training import train

    images, labels = stripes()
    keep = (labels != 2) | (np.arange(len(labels)) % 4 == 0)
    np.savez(npz, images=images[keep], labels=labels[keep])
    run = train(TrainConfig(dataset=str(npz), epochs=1, width=8, latent_size=2), tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"base_path: expected a folder for versions alone, got .*run', which holds a run"
    ):
        export_run(run, run.path)
    version = export_run(Run.load(run.path), tmp_path / "cvae")
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert card["classes"] == ["0", "1", "2"]
    assert card["config"]["latent_size"] == 2
    assert card["evaluation"]["elbo"] == run.evaluation()["elbo"]
    assert card["evaluation"]["protocol"]["unit"] == "nats per image"
    train_split = make_dataset("stripes", ["0", "1", "2"], (images[keep], labels[keep])).train
    np.testing.assert_allclose(card["class_probabilities"], np.bincount(train_split.labels) / len(train_split))
    assert card["class_probabilities"][2] < 0.2
    # Of an earlier model, as the training went on.
    evaluation = run.evaluation()
    run.write_evaluation({**evaluation, "protocol": {**evaluation["protocol"], "weights_sha256": "0"}})
    version = export_run(run, tmp_path / "cvae")
    assert "evaluation" not in json.loads((version / "assets.extra" / "model_card.json").read_text())


KILLED = """
import os, pathlib, signal, sys
import tensorflow as tf
from test_export import model
from tfp_cvae import export

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_after(function):
    def both(*arguments, **options):
        function(*arguments, **options)
        kill()
    return both

cvae = model()
point = sys.argv[2]
if point == "before what is beside the model":
    tf.saved_model.save = kill_after(tf.saved_model.save)
elif point == "in the middle of the warm-up":
    write = tf.io.TFRecordWriter.write
    tf.io.TFRecordWriter.write = lambda self, record: (write(self, record), self.flush(), kill())
elif point == "before the rename":
    pathlib.Path.rename = kill
elif point == "after the rename":
    pathlib.Path.rename = kill_after(pathlib.Path.rename)
print(export.export_saved_model(cvae, sys.argv[1]), flush=True)
"""


def test_killed_at_any_moment_shows_no_part_of_a_version(tmp_path):
    """Four exports into one folder are killed, each at another point, while two others go through."""
    base = tmp_path / "cvae"
    points = [
        "before what is beside the model",
        "in the middle of the warm-up",
        "before the rename",
        "after the rename",
        "never",
        "never",
    ]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(base), point], env=environment, stdout=subprocess.PIPE, text=True
        )
        for point in points
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 4 + [0, 0]
    # What the first three were writing is left, and is no version; the fourth had its version.
    names = sorted(path.name for path in base.iterdir())
    assert len([name for name in names if name.startswith(".tfp-cvae-tmp-")]) == 3
    assert [name for name in names if not name.startswith(".")] == ["1", "2", "3", "models.config"]
    assert {line.strip() for line in printed[4:]} < {str(base / number) for number in "123"}
    cvae, label, seed = model(), tf.constant([1], tf.int64), tf.constant([0], tf.int64)
    for number in "123":
        image = call(tf.saved_model.load(str(base / number)), "generate", label=label, seed=seed)["image"]
        np.testing.assert_allclose(image, cvae.generate([1], [0]), atol=1e-6)
    assert export_saved_model(cvae, base) == base / "4"


def test_another_export_takes_the_number_meanwhile(tmp_path, monkeypatch):
    rename = pathlib.Path.rename

    def late(self, target):
        if target.name == "1":
            (target / "variables").mkdir(parents=True)
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", late)
    version = write_next_version(tmp_path, lambda folder: (folder / "saved_model.pb").write_text("model"))
    assert version == tmp_path / "2"
    assert (version / "saved_model.pb").read_text() == "model"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(("value", "error"), [(np.float32(1), TypeError), (float("nan"), ValueError)])
def test_a_card_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value, error):
    with pytest.raises(error, match="card: expected what JSON can hold, got another value"):
        export_saved_model(model(), tmp_path / "cvae", card={"accuracy": value})
    assert not (tmp_path / "cvae").exists()


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import tf_keras as keras
from tfp_cvae.export import export_saved_model
from test_export import model
cvae = model()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
try:
    export_saved_model(cvae, "cvae")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [2_000, 20_000])
def test_full_disk(tmp_path, room):
    """A limit on the size of files stands for it: a write fails half way, as it does on a full disk."""
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(room)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(f"{tmp_path / 'cvae'}: expected to write it, got: File too large"), found.stdout
    assert [path.name for path in (tmp_path / "cvae").iterdir()] == ["models.config"]
