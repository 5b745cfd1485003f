"""Asks a server of an exported model for images, over REST or gRPC. Imports no TensorFlow for REST."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import requests

from tfp_cvae import array_checks, checks

_URL = re.compile(
    r"(?P<scheme>https?|grpc)://(?P<address>[^/]+)/v1/models/(?P<model>[^/:]+)"
    r"(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?/?"
)
_SIGNATURE = "generate"
_ROWS = 32


def request_images(url: str, label: np.ndarray | None, seed: np.ndarray, *, timeout: float = 60.0) -> np.ndarray:
    """Asks the signature `generate` of a served model.

    Args:
        url: `http://HOST:8501/v1/models/NAME` (or https) for REST, `grpc://HOST:8500/v1/models/NAME` for gRPC without
            encryption; for one version add `/versions/N` or `/labels/LABEL`.
        label: Class of each image, `[n]` integer; None for a model without classes.
        seed: Seed of each image, `[n]` integer.
        timeout: Seconds to wait for an answer; there is one request for each 32 images.

    Returns:
        Pixel probabilities, `[n, height, width, channels]` float32.

    Raises:
        TypeError: If label, seed or timeout is of the wrong kind.
        ValueError: If the URL is not one of these, there are not as many labels as seeds, or the server refuses what it
            is asked.
        ConnectionError: If no server answers there, or not with images.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError(
            f"url: expected http://HOST:8501/v1/models/NAME or grpc://HOST:8500/v1/models/NAME, got {url!r}"
        )
    inputs = {"seed": np.atleast_1d(array_checks.integers("seed", seed))}
    if label is not None:
        inputs["label"] = np.atleast_1d(array_checks.integers("label", label))
        sizes = [len(array) for array in inputs.values()]
        if sizes[0] != sizes[1]:
            raise ValueError(f"label: expected as many as there are seeds, {sizes[0]}, got {sizes[1]}")
    checks.number("timeout", timeout, 0, above=True)
    # A server refuses requests that are larger than its batches.
    starts = range(0, len(inputs["seed"]), _ROWS)
    requested = [{name: array[start : start + _ROWS] for name, array in inputs.items()} for start in starts]
    over_grpc = parts["scheme"] == "grpc"
    answers: list[np.ndarray] = []
    for rows in requested:
        image = _over_grpc(url, parts, rows, timeout) if over_grpc else _over_rest(url, rows, timeout)
        _check_images(url, image, len(rows["seed"]), answers)
        answers.append(image)
    return np.concatenate(answers)


def _check_images(url: str, image: np.ndarray, count: int, before: Sequence[np.ndarray]) -> None:
    """Raises unless an answer has as many images as were asked for, of the size of those before."""
    of_one_size = all(image.shape[1:] == other.shape[1:] for other in before)
    if image.ndim != 4 or len(image) != count or not image.size or not of_one_size:
        raise _no_answer(url, f"one of the shape {list(image.shape)}, not {count} images of one size")
    # Not for NaN either.
    if not np.all((image >= 0) & (image <= 1)):
        raise _no_answer(url, f"values of {image.min():g} to {image.max():g}, not probabilities in [0, 1]")


def _over_rest(url: str, inputs: Mapping[str, np.ndarray], timeout: float) -> np.ndarray:
    body = {"signature_name": _SIGNATURE, "inputs": {name: array.tolist() for name, array in inputs.items()}}
    try:
        answer = requests.post(f"{url.rstrip('/')}:predict", json=body, timeout=timeout)
        content = answer.json()
    except requests.Timeout:
        raise _no_answer(url, f"none in {timeout:g} s") from None
    except requests.JSONDecodeError:
        raise _no_answer(url, f"HTTP {answer.status_code} without JSON; the REST port is 8501 by default") from None
    except requests.RequestException as error:
        raise _no_answer(url, f"no connection ({type(error).__name__}); is the server running?") from None
    except (RecursionError, ValueError) as error:
        # Of lists in lists, or a number of thousands of digits.
        raise _no_answer(url, f"JSON that cannot be read ({type(error).__name__})") from None
    if not isinstance(content, dict) or (answer.ok and "outputs" not in content):
        raise _no_answer(url, f"HTTP {answer.status_code} with other JSON than that of TensorFlow Serving")
    if answer.ok:
        return _numbers(url, content["outputs"])
    if answer.status_code in (400, 404):
        raise _refused(url, str(content.get("error", content)), missing=answer.status_code == 404)
    raise _no_answer(url, f"HTTP {answer.status_code}: {content.get('error', content)}")


def _over_grpc(url: str, parts: re.Match[str], inputs: Mapping[str, np.ndarray], timeout: float) -> np.ndarray:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = parts["model"]
    request.model_spec.signature_name = _SIGNATURE
    if parts["version"]:
        request.model_spec.version.value = int(parts["version"])
    if parts["label"]:
        request.model_spec.version_label = parts["label"]
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    # By default answers of more than 4 MB are refused.
    with grpc.insecure_channel(parts["address"], [("grpc.max_receive_message_length", -1)]) as channel:
        try:
            answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                raise _refused(url, error.details(), missing=code == grpc.StatusCode.NOT_FOUND) from None
            hint = "; the gRPC port is 8500 by default; is the server running?"
            raise _no_answer(url, f"{code.name}: {error.details()}{hint}") from None
    if "image" not in answer.outputs:
        raise _no_answer(url, f"the outputs {sorted(answer.outputs)} without 'image'")
    return _numbers(url, tf.make_ndarray(answer.outputs["image"]))


def _numbers(url: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float32)
    except (OverflowError, RecursionError, TypeError, ValueError):
        raise _no_answer(url, "outputs that are no array of numbers") from None


def _no_answer(url: str, got: str) -> ConnectionError:
    return ConnectionError(f"url: expected an answer from {url}, got {got}")


def _refused(url: str, message: str, *, missing: bool) -> ValueError:
    if missing:
        return ValueError(f"url: expected a model or version that the server has, got {url}: {message}")
    # What a check of the served model says, without its place in the graph.
    said = re.search(r"assertion failed: \[(.*)\]", message)
    return ValueError(said[1] if said else f"request: refused by {url}: {message}")
