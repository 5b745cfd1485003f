"""The exported folder under everything that can be had of a server: its loader, its protos, its clients."""

import json
import pathlib
import subprocess
import sys

import grpc
import keras as keras_3
import numpy as np
import pytest
import stand_ins
import tensorflow as tf
import tf_keras as keras
from conftest import perturb, small_cvae
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

from tfp_cvae.build import build_cvae
from tfp_cvae.export import export_saved_model
from tfp_cvae.importance import importance_estimate
from tfp_cvae.likelihood import likelihood_under_each_label
from tfp_cvae.noise import standard_normal

LOADER = pathlib.Path(__file__).resolve().parents[1] / "cpp_loader.py"
# More than one block of samples.
K = 130
# Of the samples behind `log_likelihood` and `classify`, where the Python model takes one for all images.
SEED = 11
PROBABILITIES = np.array([0.2, 0.5, 0.3])


def _export(base, network="mlp", prior="flow", num_classes=3):
    keras.utils.set_random_seed(0)
    if prior == "flow":
        cvae = small_cvae(network, prior)
    else:
        cvae = build_cvae((8, 8, 1), num_classes, 4, network, width=8, prior=prior)
    perturb(cvae)
    probabilities = PROBABILITIES if num_classes else None
    export_saved_model(cvae, base, num_importance_samples=K, class_probabilities=probabilities)
    return cvae


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and the folder of its first version."""
    base = tmp_path_factory.mktemp("serving") / "cvae"
    return _export(base), base / "1"


def _inputs(cvae, count=5):
    generator = np.random.default_rng(0)
    inputs = {
        "image": generator.integers(0, 2, (count, *cvae.image_shape)).astype(np.float32),
        "latent": generator.standard_normal((count, cvae.latent_size)).astype(np.float32),
        "seed": generator.integers(0, 2**31, count),
    }
    return {**inputs, **({"label": np.arange(count) % cvae.num_classes} if cvae.num_classes else {})}


def _expected(cvae, inputs):
    """What the Python model answers, by signature and output."""
    image, latent, seed, label = (inputs.get(name) for name in ("image", "latent", "seed", "label"))
    one_hot = cvae.one_hot(label, len(image))
    posterior = cvae.posterior(image, one_hot)
    generated = cvae.generate(label, seed).numpy()
    weighed = importance_estimate(cvae, image, label, num_samples=K, seed=SEED)
    expected = {
        "serving_default": {"image": generated},
        "generate": {"image": generated},
        "decode": {"image": cvae.likelihood(latent, one_hot).mean()},
        "encode": {"mean": posterior.mean(), "stddev": posterior.stddev()},
        "reconstruct": {"image": cvae.reconstruct(image, label)},
        "log_likelihood": {
            "elbo": weighed.elbo,
            "log_likelihood": weighed.log_likelihood,
        },
    }
    if label is not None:
        each = likelihood_under_each_label(cvae, image, num_samples=K, label_margin=1e9, seed=SEED).log_likelihood
        joint = np.exp(each - each.max(axis=1, keepdims=True)) * PROBABILITIES
        probabilities = joint / joint.sum(axis=1, keepdims=True)
        expected["classify"] = {"probabilities": probabilities, "label": np.argmax(joint, axis=1)}
    return expected


def _through_the_cpp_loader(folder, requests, tmp_path):
    """Answers of (signature, inputs) through the C++ loader: outputs by name, or the code and text of an error."""
    tensors, arrays, calls = stand_ins.signature_tensors(folder), {}, []
    for number, (signature, inputs) in enumerate(requests):
        names, fetches = tensors[signature]
        arrays.update({f"{number}.{name}": inputs[name] for name in names})
        calls.append({"feeds": {tensor: f"{number}.{name}" for name, tensor in names.items()}, "fetches": fetches})
    np.savez(tmp_path / "inputs.npz", **arrays)
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    files = [str(tmp_path / name) for name in ("inputs.npz", "calls.json", "outputs.npz")]
    subprocess.run([sys.executable, str(LOADER), str(folder), *files], check=True, capture_output=True)
    found = np.load(tmp_path / "outputs.npz", allow_pickle=True)
    return [
        {key.partition(".")[2]: found[key] for key in found if key.partition(".")[0] == str(number)}
        for number in range(len(requests))
    ]


@pytest.mark.parametrize(
    ("network", "prior", "num_classes"),
    [("mlp", "label", 3), ("residual", "standard", 3), ("conv", "flow", 3), ("mlp", "standard", 0)],
)
def test_cpp_loader_answers_as_the_model(tmp_path, network, prior, num_classes):
    cvae = _export(tmp_path / "cvae", network, prior, num_classes)
    inputs = _inputs(cvae)
    expected = _expected(cvae, inputs)
    weighed = {**inputs, "seed": np.full(len(inputs["seed"]), SEED)}
    requests = [
        (signature, weighed if signature in ("log_likelihood", "classify") else inputs)
        for signature in [*expected, "generate_png"]
    ]
    *answers, pictures = _through_the_cpp_loader(tmp_path / "cvae" / "1", requests, tmp_path)
    for (signature, _), answer in zip(requests, answers, strict=False):
        assert set(answer) == set(expected[signature]), (signature, answer)
        for name, value in expected[signature].items():
            np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{signature} {name}")
    if prior != "standard":
        # The prior has its say.
        noise = cvae.likelihood(standard_normal(inputs["seed"], [4]), cvae.one_hot(inputs["label"], 5)).mean()
        assert np.abs(expected["generate"]["image"] - noise).max() > 1e-3
    for picture, image in zip(pictures["image_bytes"], expected["generate"]["image"], strict=True):
        decoded = tf.io.decode_png(picture.tobytes()).numpy().astype(int)
        assert np.abs(decoded - 255 * image).max() < 0.51


def test_a_row_is_the_same_alone_in_a_batch_and_after_a_restart(exported, tmp_path):
    cvae, folder = exported
    inputs = _inputs(cvae, 7)
    last = {name: array[-1:] for name, array in inputs.items()}
    requests = [
        (signature, rows) for signature in ("generate", "classify", "log_likelihood") for rows in (inputs, last)
    ]
    answers = _through_the_cpp_loader(folder, requests, tmp_path)
    for together, alone in zip(answers[::2], answers[1::2], strict=True):
        for name in together:
            np.testing.assert_allclose(together[name][-1:], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
    restarted = _through_the_cpp_loader(folder, requests, tmp_path)
    for first, second in zip(answers, restarted, strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


BAD = [
    ("generate", {"label": np.array([0, 1, 2, 3, 1])}, "label: expected 0 to 2, got [3]"),
    ("generate", {"label": np.array([0, -1, 2, 1, 1])}, "label: expected 0 to 2, got [-1]"),
    ("generate", {"label": np.array([0])}, "label, seed: expected one of each for each row, got [1 5]"),
    ("generate", {"label": np.array(1)}, "label: expected shape [n], got []"),
    ("generate", {"label": np.zeros(5, np.float32)}, "to be int64 but float is provided"),
    ("generate", {"seed": np.arange(5)[:, None]}, "seed: expected shape [n], got [5 1]"),
    ("decode", {"latent": np.full((5, 4), np.nan, np.float32)}, "latent: expected finite values, got [nan"),
    ("decode", {"latent": np.zeros((5, 3), np.float32)}, "latent: expected shape [n, 4], got [5 3]"),
    ("encode", {"image": np.full((5, 8, 8, 1), 255, np.float32)}, "image: expected values in [0, 1], got [255"),
    ("encode", {"image": np.full((5, 8, 8, 1), np.nan, np.float32)}, "image: expected values in [0, 1], got [nan"),
    ("encode", {"image": np.zeros((5, 8, 8), np.float32)}, "image: expected shape [n, 8, 8, 1], got [5 8 8]"),
    # As many pixels as ten images: without a check they would be ten.
    ("classify", {"image": np.zeros((5, 8, 8, 2), np.float32)}, "image: expected shape [n, 8, 8, 1], got [5 8 8 2]"),
    ("reconstruct", {"image": np.full((5, 8, 8, 1), -0.1, np.float32)}, "image: expected values in [0, 1], got [-0.1"),
    (
        "log_likelihood",
        {"image": np.zeros((4, 8, 8, 1), np.float32)},
        "expected one of each for each row, got [4 5 5]",
    ),
]


def test_bad_requests_get_invalid_argument_and_a_sentence(exported, tmp_path):
    cvae, folder = exported
    good = _inputs(cvae)
    requests = [(signature, {**good, **bad}) for signature, bad, _ in BAD]
    *answers, after = _through_the_cpp_loader(folder, [*requests, ("generate", good)], tmp_path)
    for (_, _, message), answer in zip(BAD, answers, strict=True):
        assert answer["code"] == 3
        assert message in str(answer["error"]), answer["error"]
    np.testing.assert_allclose(after["image"], cvae.generate(good["label"], good["seed"]), atol=1e-6)


def test_rows_of_merged_requests_are_those_of_single_ones(exported, tmp_path):
    cvae, folder = exported
    inputs, by_signature, calls = _inputs(cvae, 6), {}, []
    for signature in ("generate", "generate_png", "decode", "encode", "reconstruct", "log_likelihood", "classify"):
        names, _ = stand_ins.signature_tensors(folder)[signature]
        # Three clients with 1, 3 and 2 rows, whose 6 rows the server pads to 8.
        requests = [{name: inputs[name][rows] for name in names} for rows in (slice(1), slice(1, 4), slice(4, 6))]
        # A row that is out of range fails all that it is merged with, as the documentation says.
        wrong = "label" if "label" in names else "image"
        spoilt = [requests[0], {**requests[1], wrong: requests[1][wrong] + 3}, requests[2]]
        calls += [(signature, rows) for rows in (stand_ins.merged(requests), stand_ins.merged(spoilt), *requests)]
        by_signature[signature] = requests, wrong
    answers = iter(_through_the_cpp_loader(folder, calls, tmp_path))
    for signature, (requests, wrong) in by_signature.items():
        together, failed, *single = (next(answers) for _ in range(5))
        for answer, alone in zip(stand_ins.split(together, requests), single, strict=True):
            assert set(answer) == set(alone)
            for name, array in alone.items():
                if name == "image_bytes":
                    for pair in zip(answer[name], array, strict=True):
                        found, grey = (tf.io.decode_png(each.tobytes()).numpy().astype(int) for each in pair)
                        assert np.abs(found - grey).max() <= 1
                else:
                    np.testing.assert_allclose(answer[name], array, rtol=1e-5, atol=1e-6, err_msg=f"{signature} {name}")
        assert failed["code"] == 3, signature
        assert f"{wrong}: expected " in str(failed["error"])


def test_no_rows(exported, tmp_path):
    cvae, folder = exported
    tensors = stand_ins.signature_tensors(folder)
    nothing = {name: array[:0] for name, array in _inputs(cvae).items()}
    for answer in _through_the_cpp_loader(folder, [(signature, nothing) for signature in tensors], tmp_path):
        assert {array.shape[0] for array in answer.values()} == {0}, answer


def test_session_of_tensorflow_1(exported):
    cvae, folder = exported
    inputs = _inputs(cvae)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = graph.signature_def["generate"]
        feeds = {signature.inputs[name].name: inputs[name] for name in ("label", "seed")}
        image = session.run(signature.outputs["image"].name, feeds)
    np.testing.assert_allclose(image, cvae.generate(inputs["label"], inputs["seed"]), atol=1e-6)


def test_saved_model_cli(exported, tmp_path):
    cvae, folder = exported
    command = [str(pathlib.Path(sys.executable).with_name("saved_model_cli"))]
    options = ["--dir", str(folder), "--tag_set", "serve"]
    shown = subprocess.run([*command, "show", *options], check=True, capture_output=True, text=True).stdout
    assert all(f'"{name}"' in shown for name in ("generate", "classify", "serving_default"))
    subprocess.run(
        [
            *command,
            "run",
            *options,
            *("--signature_def", "generate", "--outdir", str(tmp_path)),
            *("--input_exprs", "label=[2, 0];seed=[7, 8]"),
        ],
        check=True,
        capture_output=True,
    )
    np.testing.assert_allclose(np.load(tmp_path / "image.npy"), cvae.generate([2, 0], [7, 8]), atol=1e-6)


def test_layer_of_keras_3(exported):
    cvae, folder = exported
    inputs = _inputs(cvae)

    class Generate(keras_3.layers.TFSMLayer):
        def call(self, inputs):
            return self.call_endpoint_fn(**inputs)

    layer = Generate(str(folder), call_endpoint="generate")
    image = layer({name: tf.constant(inputs[name]) for name in ("label", "seed")})["image"]
    np.testing.assert_allclose(image, cvae.generate(inputs["label"], inputs["seed"]), atol=1e-6)


def test_warmup_is_answered_by_the_grpc_service(exported):
    _, folder = exported
    records = tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests"))
    with (
        stand_ins.grpc_server(stand_ins.Models(folder.parent)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
        assert len(logs) == 7
        for log in logs:
            answer = stub.Predict(log.predict_log.request)
            assert all(tensor.tensor_shape.dim[0].size == 1 for tensor in answer.outputs.values())
