import json
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import requests
import stand_ins
import tf_keras as keras

from tfp_cvae.build import build_cvae
from tfp_cvae.cli import main
from tfp_cvae.client import request_images
from tfp_cvae.export import export_saved_model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two versions of one model, a model without classes, and the addresses of REST and gRPC."""
    folder = tmp_path_factory.mktemp("serving")
    cvaes = []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        cvaes.append(build_cvae((8, 8, 1), 3, 4, width=8))
        export_saved_model(cvaes[-1], folder / "cvae")
    plain = build_cvae((8, 8, 1), 0, 4, width=8)
    export_saved_model(plain, folder / "plain")
    models = stand_ins.Models(folder / "cvae", folder / "plain", labels={"stable": 1})
    with stand_ins.rest_server(models) as rest, stand_ins.grpc_server(models) as grpc:
        yield cvaes, plain, {"http": f"http://{rest}", "grpc": f"grpc://{grpc}"}


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_images_are_those_of_the_model(served, scheme):
    (first, second), plain, address = served
    label, seed = np.array([2, 0, 1]), np.array([5, 9, 2**40])
    url = f"{address[scheme]}/v1/models/cvae"
    np.testing.assert_allclose(request_images(url, label, seed), second.generate(label, seed), atol=1e-6)
    found = request_images(f"{url}/versions/1", label, seed)
    np.testing.assert_allclose(found, first.generate(label, seed), atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(request_images(f"{url}/labels/stable", label, seed), found)
    # More than one request.
    many = np.arange(70)
    np.testing.assert_allclose(request_images(url, many % 3, many), second.generate(many % 3, many), atol=1e-6)
    np.testing.assert_array_equal(request_images(url, 2, 5), request_images(url, [2], [5]))
    found = request_images(f"{address[scheme]}/v1/models/plain", None, seed)
    np.testing.assert_allclose(found, plain.generate(seed=seed), atol=1e-6)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize(
    ("path", "label", "kind", "message"),
    [
        ("/v1/models/cvae", [0, 3], ValueError, r"^label: expected 0 to 2, got \[3\]$"),
        ("/v1/models/other", [0, 1], ValueError, r"url: expected a model or version that the server has, got .*other"),
        (
            "/v1/models/cvae/versions/9",
            [0, 1],
            ValueError,
            r"that the server has, got .*versions/9.*Specific\(cvae, 9\)",
        ),
        ("/v1/models/plain", [0, 1], ValueError, "request: refused by .*plain: input size does not match signature"),
        ("/v1/models/cvae", None, ValueError, "request: refused by .*cvae: input size does not match signature"),
    ],
)
def test_what_the_server_refuses(served, scheme, path, label, kind, message):
    _, _, address = served
    with pytest.raises(kind, match=message):
        request_images(address[scheme] + path, label, [0, 1])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server(scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}/v1/models/cvae"
    with pytest.raises(ConnectionError, match=f"url: expected an answer from {url}, got .*is the server running?"):
        request_images(url, [0], [0])


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "got HTTP 200 without JSON; the REST"),
        (200, b'{"predictions": []}', "with other JSON than that of"),
        (200, b"[1]", "with other JSON than that of"),
        (200, b'{"outputs": {"a": [1], "b": [2]}}', "got outputs that are no array of numbers"),
        (200, b'{"outputs": null}', r"got one of the shape \[\], not 1 images"),
        (200, b'{"outputs": []}', r"got one of the shape \[0\], not 1 images"),
        (200, b'{"outputs": [[[[]]]]}', r"got one of the shape \[1, 1, 1, 0\], not 1 images"),
        (200, b'{"outputs": [[[[NaN]]]]}', "got values of nan to nan, not probabilities"),
        (200, b'{"outputs": [[[[null]]]]}', "got values of nan to nan, not probabilities"),
        (200, b'{"outputs": [[[["-7"]]]]}', "got values of -7 to -7, not probabilities"),
        (200, b'{"outputs": [[[[255]]]]}', "got values of 255 to 255, not probabilities"),
        (200, b'{"outputs": [[[[1%s]]]]}' % (400 * b"0"), "got outputs that are no array of numbers"),
        (200, b'{"outputs": [[[[1%s]]]]}' % (5000 * b"0"), r"got JSON that cannot be read|no array of numbers"),
        (200, 100_000 * b"[", "got JSON that cannot be read"),
        (503, b'{"error": "loading"}', "got HTTP 503: loading"),
    ],
)
def test_something_else_answers(status, body, message):
    server = stand_ins.http_server(lambda path, sent: (status, body))
    with server as address, pytest.raises(ConnectionError, match=message):
        request_images(f"http://{address}/v1/models/cvae", [0], [0])


def test_answers_of_two_sizes():
    def answer(path, sent):
        rows = len(json.loads(sent)["inputs"]["seed"])
        return 200, json.dumps({"outputs": np.zeros([rows, rows, 2, 1]).tolist()}).encode()

    server = stand_ins.http_server(answer)
    with (
        server as address,
        pytest.raises(ConnectionError, match=r"got one of the shape \[8, 8, 2, 1\], not 8 images of"),
    ):
        request_images(f"http://{address}/v1/models/cvae", np.zeros(40, int), np.arange(40))


def test_a_server_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}/v1/models/cvae"
        with pytest.raises(ConnectionError, match=r"got none in 0.5 s"):
            request_images(f"http://{address}", [0], [0], timeout=0.5)
        with pytest.raises(ConnectionError, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
            request_images(f"grpc://{address}", [0], [0], timeout=0.5)


def test_rows_and_columns_of_rest_agree(served):
    """The other format of the interface, which clients in other languages use, and a signature of two outputs."""
    _, _, address = served
    image = np.zeros((2, 8, 8, 1)).tolist()
    url = f"{address['http']}/v1/models/cvae:predict"
    rows = {"instances": [{"image": image[0], "seed": 0}, {"image": image[1], "seed": 1}]}
    columns = {"inputs": {"image": image, "seed": [0, 1]}}
    by_row = requests.post(url, json={"signature_name": "classify", **rows}).json()["predictions"]
    by_column = requests.post(url, json={"signature_name": "classify", **columns}).json()["outputs"]
    assert [row["label"] for row in by_row] == by_column["label"]
    np.testing.assert_allclose([row["probabilities"] for row in by_row], by_column["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("label", "seed", "timeout", "message"),
    [
        # More than one request: the first would have been answered.
        (np.arange(40) % 3, np.arange(32), 1, "label: expected as many as there are seeds, 32, got 40"),
        (0, np.array([2**64 - 1], np.uint64), 1, r"seed: expected integers < 2\*\*63, got 18446744073709551615"),
        (0, 0, 0, "timeout: expected a number > 0, got 0"),
    ],
)
def test_what_is_not_asked_for(served, label, seed, timeout, message):
    _, _, address = served
    with pytest.raises(ValueError, match=message):
        request_images(f"{address['http']}/v1/models/cvae", label, seed, timeout=timeout)


@pytest.mark.parametrize("url", ["localhost:8501", "http://localhost:8501", "ftp://host/v1/models/cvae", ""])
def test_urls(url):
    with pytest.raises(ValueError, match="url: expected http://HOST:8501/v1/models/NAME or grpc://HOST:8500"):
        request_images(url, [0], [0])


def test_command(served, tmp_path, capfd):
    _, _, address = served
    url = f"{address['http']}/v1/models/cvae"
    picture = tmp_path / "two.png"
    assert main(["request", "--url", url, "--label", "2", "--count", "10", "--output", str(picture)]) == 0
    assert PIL.Image.open(picture).size[0] > 100
    assert capfd.readouterr().out == f"10 images, seeds 0 to 9, from {url}: {picture}\n"
    for arguments, message in [
        (["--label", "7"], "error: label: expected 0 to 2, got [7 7 7 ... 7 7 7]\n"),
        (
            ["--label", "1", "--seed", "9223372036854775808"],
            "error: seed: expected an integer >= 0 and < 2147483648, got 9",
        ),
        (["--label", "-1"], "error: label: expected the number of a class, from 0 (model_card.json), got '-1'\n"),
        (
            ["--label", "circle"],
            "error: label: expected the number of a class, from 0 (model_card.json), got 'circle'\n",
        ),
        (["--label", "1", "--output", "no/where.png"], "error: output: expected a file in an existing folder"),
        (["--label", "1", "--count", "0"], "error: count: expected an integer >= 1, got 0\n"),
        (["--label", "1", "--count", "5000"], "error: count: expected at most 1,000 images in a picture, got 5,000; "),
        (["--label", "1", "--output", "two.xyz"], "error: output: expected a picture format as suffix"),
    ]:
        assert main(["request", "--url", url, "--output", str(picture), *arguments]) == 2
        assert capfd.readouterr().err.startswith(message)


def test_rest_needs_no_tensorflow(served, tmp_path):
    _, _, address = served
    url = f"{address['http']}/v1/models/cvae"
    words = ["request", "--url", url, "--label", "1", "--output", str(tmp_path / "one.png")]
    code = f"import sys; from tfp_cvae.cli import main; assert main({words!r}) == 0; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
