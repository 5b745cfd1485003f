"""A trained model as a SavedModel that TensorFlow Serving runs as it is, in a folder of numbered versions."""

import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfp_cvae import array_checks, checks
from tfp_cvae.atomic import make_folder, write_atomically, write_next_version
from tfp_cvae.model import CVAE
from tfp_cvae.model_files import weights_sha256
from tfp_cvae.protocol import versions
from tfp_cvae.run import Run
from tfp_cvae.run_folder import checked_versions_folder
from tfp_cvae.semi_supervised import SemiSupervisedCVAE
from tfp_cvae.signatures import signatures

_CONFIG = "models.config"
# What of an evaluation is in the model card, if it was measured.
_IN_CARD = (
    "elbo",
    "rate",
    "distortion",
    "iwae",
    "effective_sample_size",
    "log_p_x_given_y",
    "log_p_x",
    "bayes_accuracy",
    "label_posterior_accuracy",
    "protocol",
)


def export_saved_model(
    cvae: CVAE,
    base_path: str | os.PathLike[str],
    *,
    num_importance_samples: int = 100,
    class_probabilities: Sequence[float] | None = None,
    card: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Exports the next version of a model.

    The folder holds named signatures over one copy of the weights, without XLA, and needs neither Keras nor TFP:

        generate = serving_default   label, seed -> image            decode           latent, label -> image
        generate_png                 label, seed -> image_bytes      encode           image, label -> mean, stddev
        classify                     image, seed -> probabilities, label
        log_likelihood               image, label, seed -> elbo, log_likelihood
        reconstruct                  image, label -> image
        classify_fast                image -> probabilities, label, by q(y|x), if the model has it

    with image `[n, height, width, channels]` float32 in [0, 1], latent, mean and stddev `[n, latent_size]` float32,
    label and seed `[n]` int64, probabilities `[n, num_classes]` float32, elbo and log_likelihood `[n]` float32 in nats.
    Answers are functions of their inputs: `generate` gives the image of `cvae.generate` for the same label and seed.
    Without classes there is no `label` and no `classify`. `generate_png` is left out for more than 4 channels.

    Beside it are `assets.extra/tf_serving_warmup_requests`, `assets.extra/model_card.json` and, in `base_path`,
    `models.config` for the server, unless there is one. The version appears whole, after it was loaded and answered,
    or not at all.

    Args:
        cvae: The model.
        base_path: Local folder of the versions, made if it does not exist; its name is the name of the served model.
        num_importance_samples: K of `log_likelihood` and of `classify`, >= 1.
        class_probabilities: p(y) for `classify`, `[num_classes]`, >= 0 and scaled to sum 1; None for equal ones.
        card: What else `model_card.json` is to say.

    Returns:
        The folder of the version, `base_path/N` with N one more than the highest so far.

    Raises:
        TypeError: If `cvae` is not a model, a number of another kind, or JSON cannot hold the card.
        ValueError: If a value is out of range, or the model gives numbers that are not finite.
        OSError: If the folder cannot be written.
    """
    if not isinstance(cvae, CVAE):
        raise TypeError(
            f"cvae: expected a CVAE, got {cvae!r:.80}; for a run folder, use export_run(Run.load(folder), ...)"
        )
    num_importance_samples = checks.num_samples("num_importance_samples", num_importance_samples)
    probabilities = (
        np.full(cvae.num_classes, 1 / max(1, cvae.num_classes))
        if class_probabilities is None
        else array_checks.probabilities("class_probabilities", class_probabilities, cvae.num_classes)
    )
    base = checked_versions_folder("base_path", base_path)
    functions = signatures(cvae, num_importance_samples, probabilities)
    requests = {name: _warmup_inputs(function) for name, function in functions.items()}
    content = {
        **(card or {}),
        "name": base.name,
        "image_shape": cvae.image_shape,
        "latent_size": cvae.latent_size,
        "num_classes": cvae.num_classes,
        "class_probabilities": probabilities.tolist(),
        "num_importance_samples": num_importance_samples,
        "signatures": {name: _described(function) for name, function in functions.items()},
        "versions": versions(),
    }

    try:
        text_of_card = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"card: expected what JSON can hold, got another value ({error})") from error

    def write(folder: pathlib.Path) -> None:
        try:
            tf.saved_model.save(_weights(cvae), str(folder), {**functions, "serving_default": functions["generate"]})
            extra = folder / "assets.extra"
            extra.mkdir()
            (extra / "model_card.json").write_text(text_of_card + "\n")
            _write_warmup(extra / "tf_serving_warmup_requests", base.name, requests)
        except tf.errors.OpError as error:
            # The last part of the message is the reason; before it are temporary names.
            raise OSError(error.message.rpartition("; ")[2]) from error
        _check_answers(folder, requests)

    make_folder(base)
    if not (base / _CONFIG).exists():
        # Once: the server's owner may have written policies and labels into it since.
        text = text_format.MessageToString(_server_config(base))
        write_atomically(base / _CONFIG, lambda file: file.write_text(text))
    return write_next_version(base, write)


def export_run(run: Run, base_path: str | os.PathLike[str], *, num_importance_samples: int = 100) -> pathlib.Path:
    """Exports the model of a run as `export_saved_model` does.

    `classify` weighs the classes by `Run.model_class_probabilities`, and the card tells the names of the classes,
    the settings of the training and, if this model was evaluated, its results.

    Args:
        run: A run that has a model.
        base_path: As for `export_saved_model`.
        num_importance_samples: As for `export_saved_model`.

    Returns:
        The folder of the new version.

    Raises:
        TypeError: As of `export_saved_model`.
        ValueError: If the run has no model yet, and as of `export_saved_model`.
    """
    card = {"classes": run.class_names, "config": run.config.to_dict(), "trained_with": run.versions}
    cvae = run.model()
    evaluation = run.evaluation() if run.has_evaluation() else None
    # Not that of an earlier model, which an unfinished training can have.
    if evaluation and evaluation["protocol"].get("weights_sha256") in (None, weights_sha256(cvae)):
        card["evaluation"] = {name: evaluation[name] for name in _IN_CARD if evaluation.get(name) is not None}
    return export_saved_model(
        cvae,
        base_path,
        num_importance_samples=num_importance_samples,
        class_probabilities=run.model_class_probabilities,
        card=card,
    )


def server_commands(version: pathlib.Path) -> str:
    """Commands that serve an exported version, and ask it for images.

    Args:
        version: Folder of a version, as `export_saved_model` returns it.

    Returns:
        A line for each command.
    """
    base = version.parent
    name = _served_name(base)
    # The configuration may be of another folder, of which this one is a copy.
    by_name = [] if name else ["-e", f"MODEL_NAME={base.name}", "-e", f"MODEL_BASE_PATH={base.parent}"]
    flags = [f"--model_name={base.name}", f"--model_base_path={base}"]
    config = [f"--model_config_file={base / _CONFIG}"] if name else []
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    label = ["--label", "0"] if card["num_classes"] else []
    url = f"http://localhost:8501/v1/models/{name or base.name}"
    ports = ["-p", "8500:8500", "-p", "8501:8501"]
    commands = [
        ["docker", "run", "--rm", *ports, "-v", f"{base}:{base}:ro", *by_name, "tensorflow/serving", *config],
        ["tensorflow_model_server", "--port=8500", "--rest_api_port=8501", *(config or flags)],
        ["tfp-cvae", "request", "--url", url, *label, "--count", "16", "--output", "images.png"],
    ]
    return "\n".join(map(shlex.join, commands))


def _served_name(base: pathlib.Path) -> str | None:
    """Name under which the configuration in a folder has that folder served; None if it does not."""
    try:
        text = (base / _CONFIG).read_text()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, ValueError, text_format.ParseError):
        return None
    return next((entry.name for entry in config.model_config_list.config if entry.base_path == str(base)), None)


def _weights(cvae: CVAE) -> tf.Module:
    """Holds the weights, and nothing that would need Keras."""
    networks = [cvae.encoder, cvae.decoder, *([cvae.prior_network] if cvae.prior_network else [])]
    networks += [cvae.classifier] if isinstance(cvae, SemiSupervisedCVAE) else []
    module = tf.Module()
    module.weights = [weight for network in networks for weight in network.weights]
    return module


def _warmup_inputs(function: Any) -> dict[str, np.ndarray]:
    """A row for each input of a signature: zeros, which are in the range of all of them."""
    specs = function.structured_input_signature[0]
    return {spec.name: np.zeros([1, *spec.shape[1:]], spec.dtype.as_numpy_dtype) for spec in specs}


def _described(function: Any) -> dict[str, dict[str, str]]:
    def shape(spec: tf.TensorSpec) -> str:
        return f"{spec.dtype.name} [{', '.join(['n', *map(str, spec.shape[1:])])}]"

    inputs = {spec.name: shape(spec) for spec in function.structured_input_signature[0]}
    return {"inputs": inputs, "outputs": {name: shape(spec) for name, spec in function.structured_outputs.items()}}


def _write_warmup(path: pathlib.Path, model_name: str, requests: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, array in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def _check_answers(folder: pathlib.Path, requests: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Loads what was written, and asks it everything once."""
    served = tf.saved_model.load(str(folder))
    for name, inputs in requests.items():
        answer = served.signatures[name](**{key: tf.constant(array) for key, array in inputs.items()})
        for output, tensor in answer.items():
            if tensor.dtype.is_floating and not np.all(np.isfinite(tensor)):
                raise ValueError(f"cvae: expected finite numbers, got NaN or infinity as {output} of {name}")


def _server_config(base: pathlib.Path) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=base.name, base_path=str(base), model_platform="tensorflow")
    return config
