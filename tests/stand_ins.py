"""Servers on loopback that answer from a SavedModel as TensorFlow Serving is documented to, as it cannot be had here."""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import pathlib
import re
import threading

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/(\w+))?:predict")


class MissingError(Exception):
    """There is no such model, version or signature."""


# Of docs/serving.md.
_MAX_BATCH_SIZE = 64


class Models:
    """The versions in base folders, by the name of the folder; `labels` are names of versions."""

    def __init__(self, *bases, labels=None):
        self._labels = labels or {}
        self._loaded = {
            (base.name, int(folder.name)): tf.saved_model.load(str(folder))
            for base in bases
            for folder in base.iterdir()
            if folder.name.isdecimal()
        }

    def predict(self, name, version, label, signature, inputs):
        if label:
            version = self._labels.get(label, -1)
        versions = [number for found, number in self._loaded if found == name]
        number = version or max(versions, default=0)
        if number not in versions:
            raise MissingError(
                f"Servable not found for request: {f'Specific({name}, {version})' if version else f'Latest({name})'}"
            )
        signatures = self._loaded[name, number].signatures
        if signature not in signatures:
            raise ValueError(f'Serving signature name: "{signature}" not found in signature def')
        function = signatures[signature]
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise ValueError(f"input size does not match signature: {sorted(inputs)} and {sorted(specs)}")
        if any(np.ndim(value) and len(value) > _MAX_BATCH_SIZE for value in inputs.values()):
            raise ValueError(f"Batch size is greater than max_batch_size {_MAX_BATCH_SIZE}")
        for key, value in inputs.items():
            # Over gRPC a type is sent, over REST a number that becomes what the signature asks for.
            if isinstance(value, np.ndarray) and value.dtype != specs[key].dtype.as_numpy_dtype:
                raise ValueError(f"Expects {key} to be {specs[key].dtype.name} but {value.dtype} is provided")
        tensors = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}
        return {key: tensor.numpy() for key, tensor in function(**tensors).items()}


@contextlib.contextmanager
def grpc_server(models):
    """Serves the official PredictionService, and yields its address."""

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            spec = request.model_spec
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            signature = spec.signature_name or "serving_default"
            try:
                found = models.predict(spec.name, spec.version.value, spec.version_label, signature, inputs)
            except MissingError as error:
                context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            answer = predict_pb2.PredictResponse(model_spec=spec)
            for name, array in found.items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
            return answer

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def http_server(answer):
    """Answers each POST with the status and body that `answer` gives for its path and body, and yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            status, body = answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def rest_server(models):
    """Serves the predict calls of the REST interface, as a context that yields its address."""

    def answer(path, body):
        found = _PATH.fullmatch(path)
        try:
            if found is None:
                raise MissingError("Malformed request: POST " + path)
            content, status = _answer(models, (found[1], int(found[2] or 0), found[3]), json.loads(body)), 200
        except MissingError as error:
            content, status = {"error": str(error)}, 404
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            content, status = {"error": str(error)}, 400
        return status, json.dumps(content).encode()

    return http_server(answer)


def _answer(models, model, body):
    signature = body.get("signature_name", "serving_default")
    if "instances" in body:
        rows = body["instances"]
        inputs = {key: [row[key] for row in rows] for key in rows[0]}
        found = {key: _plain(key, array) for key, array in models.predict(*model, signature, inputs).items()}
        if len(found) == 1:
            return {"predictions": next(iter(found.values()))}
        return {"predictions": [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]}
    found = {key: _plain(key, array) for key, array in models.predict(*model, signature, body["inputs"]).items()}
    return {"outputs": next(iter(found.values())) if len(found) == 1 else found}


def _plain(name, array):
    if not name.endswith("_bytes"):
        return array.tolist()
    return [{"b64": base64.b64encode(value).decode()} for value in array]


def merged(requests, allowed_batch_sizes=(1, 2, 4, 8, 16)):
    """Several requests in one, as the server's batching makes it: joined, and padded with the first row."""
    joined = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    rows = sum(_sizes(requests))
    padding = min(size for size in allowed_batch_sizes if size >= rows) - rows
    return {name: np.concatenate([array, np.repeat(array[:1], padding, axis=0)]) for name, array in joined.items()}


def split(answer, requests):
    """The answer to each of the requests that were merged, without the padding."""
    sizes = _sizes(requests)
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in answer.items()} for size, end in zip(sizes, ends, strict=True)
    ]


def _sizes(requests):
    return [len(next(iter(request.values()))) for request in requests]


def signature_tensors(folder):
    """Names of the tensors of each signature: inputs and outputs by their names, as a client of the C API needs them."""
    content = saved_model_pb2.SavedModel.FromString(pathlib.Path(folder, "saved_model.pb").read_bytes())
    (graph,) = content.meta_graphs
    return {
        signature: tuple(
            {key: info.name for key, info in sorted(part.items())} for part in (found.inputs, found.outputs)
        )
        for signature, found in graph.signature_def.items()
        if not signature.startswith("__")
    }
