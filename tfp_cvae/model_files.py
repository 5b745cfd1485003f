"""Models that came from elsewhere: a `.keras` file is checked before Keras reads it.

It is a program as much as it is data: Keras imports every module that its `config.json` names, with `safe_mode` on as
well, calls what it finds there, and allocates what the layers ask for before it looks at the weights.
"""

import hashlib
import importlib
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import h5py  # type: ignore[import-untyped]
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.functional import Functional

from tfp_cvae import archive
from tfp_cvae.model import CVAE
from tfp_cvae.semi_supervised import SemiSupervisedCVAE

_MAX_OBJECTS = 10_000
_MAX_IMAGE_SIZE = 2**26
# Passes through the layers of a network, which Keras writes in the order in which they are called.
_MAX_PASSES = 100

# Libraries that register objects of their own.
_LIBRARIES = ("keras", "tensorflow", "tensorflow_probability", "tf_keras")
_MODELS = tuple(map(keras.saving.get_registered_name, (CVAE, SemiSupervisedCVAE)))
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

# Where a configuration may find a class of Keras, and the sources of those that neither run code nor read files. Left
# out are Lambda and the layers of TensorFlow's functions, and those that read vocabularies or whole models from files.
_NAMESPACES = (
    "tf_keras",
    "tf_keras.constraints",
    "tf_keras.initializers",
    "tf_keras.layers",
    "tf_keras.mixed_precision",
    "tf_keras.models",
    "tf_keras.regularizers",
    "tf_keras.src.engine.functional",
    "tf_keras.src.engine.sequential",
)
_SOURCES = (
    "constraints",
    "engine.functional",
    "engine.input_layer",
    "engine.sequential",
    "initializers",
    "layers.activation",
    "layers.attention",
    "layers.convolutional",
    "layers.core.activation",
    "layers.core.dense",
    "layers.core.einsum_dense",
    "layers.core.embedding",
    "layers.core.identity",
    "layers.core.masking",
    "layers.merging",
    "layers.normalization",
    "layers.pooling",
    "layers.regularization",
    "layers.reshaping",
    "mixed_precision.policy",
    "regularizers",
)


def load_keras(path: str | os.PathLike[str]) -> CVAE:
    """Loads a model from a `.keras` file as `keras.models.load_model(path, compile=False)`, after checks.

    The file may name the layers of Keras that compute with weights, initializers and their like, the classes of this
    package, and what the caller has registered with `keras.saving.register_keras_serializable`. What `compile` was
    given is not read.

    Args:
        path: The file.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: If the file is absent, is no model of this package, is spoilt, names other code, or asks for more
            weights than it holds.
    """
    size = archive.file_size(path, ".keras file")
    if pathlib.Path(path).suffix != ".keras":
        raise ValueError(f"{archive.one_line(path)}: expected a file that ends in .keras, got another name; rename it")
    try:
        with zipfile.ZipFile(path) as file:
            contents = _model_contents(file, size)
        variables = _stored_variables(contents.pop(_WEIGHTS))
        _check_metadata(archive.parse_json(contents.pop(_METADATA)))
        _check_config(archive.parse_json(contents.pop(_CONFIG)))
        return _load_checked(path, *variables)
    except Exception as error:
        raise ValueError(
            f"{archive.one_line(path)}: expected a whole model of this package, got an unreadable one: "
            f"{archive.reason(error)}; get it again from where it was trained, or train again"
        ) from error


def weights_sha256(cvae: CVAE) -> str:
    """SHA-256 of the weights, in hexadecimal digits: what tells a trained model from another, whenever it was saved."""
    digest = hashlib.sha256()
    for weight in cvae.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _model_contents(file: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """Bytes of the members that Keras reads, whose checksums are thereby verified."""
    # Keras does not compress, so that nothing can be larger than the file.
    members = archive.zip_members(file, (zipfile.ZIP_STORED,))
    for name, member in members.items():
        parts = name.split("/")
        asset = parts[0] == "assets" and len(parts) > 1 and not {"", ".", ".."} & set(parts)
        if name not in (_CONFIG, _METADATA, _WEIGHTS) and (not asset or set(name) & set("\\:")):
            raise ValueError(f"the member {archive.one_line(name, 100)!r}, which Keras does not write")
        if member.file_size != member.compress_size:
            raise ValueError(f"the member {archive.one_line(name, 100)!r}, whose sizes do not agree")
    total = sum(member.file_size for member in members.values())
    if not {_CONFIG, _METADATA, _WEIGHTS} <= set(members):
        raise ValueError(f"one without {_CONFIG}, {_METADATA} or {_WEIGHTS}; save it with tf_keras")
    if total > size or members[_CONFIG].file_size > archive.MAX_JSON_BYTES or len(members) > 1000:
        raise ValueError(f"{len(members)} members of {total:,} bytes, more than are in the file or than a model has")
    return {name: file.read(name) for name in (_CONFIG, _METADATA, _WEIGHTS)}


def _stored_variables(weights: bytes) -> tuple[int, int]:
    """Number of arrays in an HDF5 file, and of elements in all; refuses what Keras does not write."""
    count, elements, stored = 0, 0, 0
    with h5py.File(io.BytesIO(weights), "r") as file:
        groups, seen = [file], {h5py.h5o.get_info(file.id).addr}
        while groups:
            group = groups.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError("weights with a link, which could lead to another file")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if address in seen or len(seen) > 5 * _MAX_OBJECTS:
                    raise ValueError("weights that hold themselves, or too many parts")
                seen.add(address)
                if isinstance(item, h5py.Group):
                    groups.append(item)
                    continue
                count, elements, stored = count + 1, elements + item.size, stored + _stored_bytes(item)
    if stored > len(weights):
        raise ValueError(f"weights of {stored:,} bytes in a file of {len(weights):,}")
    return count, elements


def _stored_bytes(dataset: Any) -> int:
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or dataset.dtype.kind not in "biuf":
        raise ValueError("weights that are not arrays of numbers")
    properties = dataset.id.get_create_plist()
    plain = properties.get_layout() in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS)
    # Lists of filters and of external files.
    if not plain or properties.get_nfilters() or properties.get_external_count():
        raise ValueError("weights that are compressed, or in another file")
    if dataset.id.get_storage_size() != dataset.size * dataset.dtype.itemsize:
        raise ValueError("weights that claim another size than is stored")
    return dataset.size * dataset.dtype.itemsize


def _check_metadata(metadata: Any) -> None:
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version.startswith("2."):
        raise ValueError(f"one of Keras {archive.one_line(version, 20)}, not of tf_keras, which is Keras 2")


def _check_config(config: Any) -> None:
    """Refuses a configuration that names anything else than the classes of a model."""
    if not isinstance(config, dict) or config.get("registered_name") not in _MODELS:
        raise ValueError("one that is not a tfp_cvae.CVAE")
    objects, networks = 0, []
    # What `compile` was given is not read, as Keras is told.
    for value, _ in archive.walk({**config, "compile_config": None}):
        if not isinstance(value, dict):
            continue
        for key, sizes in value.items():
            if key.endswith("shape") and _largest_product(sizes) > _MAX_IMAGE_SIZE:
                raise ValueError(f"{archive.one_line(repr(key), 100)} of more than {_MAX_IMAGE_SIZE:,} elements")
        if "class_name" in value:
            objects += 1
            _check_object(value)
        if {"name", "layers", "input_layers", "output_layers"} <= set(value):
            networks.append(value)
    if objects > _MAX_OBJECTS:
        raise ValueError(f"one of {objects:,} objects, more than {_MAX_OBJECTS:,}")
    for network in networks:
        _check_order(network["layers"])


def _check_object(value: dict[str, Any]) -> None:
    """Refuses what Keras would find elsewhere than among the classes that a model may use."""
    name, module, registered = value["class_name"], value.get("module", ""), value.get("registered_name")
    shown = f"{archive.one_line(module, 100)}.{archive.one_line(name, 100)}"
    advice = "; register it with keras.saving.register_keras_serializable first, if it is yours"
    if not isinstance(name, str) or not isinstance(registered, (str, type(None))):
        raise ValueError(f"the object {shown}, which has no name")
    # Tensors, lambdas and type specifications.
    if name.startswith("__") or value.get("compile_config") is not None or "module" not in value:
        raise ValueError(f"the object {shown}, which a model of this package does not hold")
    if name == "function":
        function = value.get("config")
        if not isinstance(function, str) or not _is_registered(keras.saving.get_registered_object(function)):
            raise ValueError(f"the function {archive.one_line(function, 100)}, which is not registered{advice}")
    elif _found_class(value) is None:
        raise ValueError(f"the class {shown}, which could run any code{advice}")


def _found_class(value: dict[str, Any]) -> type | None:
    """The class that Keras will find, if it is registered or one of Keras that computes with weights."""
    found = keras.saving.get_registered_object(value.get("registered_name"))
    if found is None:
        # As Keras, which calls itself by both names.
        module = value["module"]
        module = f"tf_{module}" if isinstance(module, str) and module.split(".")[0] == "keras" else module
        if module not in _NAMESPACES:
            return None
        found = vars(importlib.import_module(module)).get(value["class_name"])
    # Some layers look up what they wrap by class_name alone, and would find another class.
    if not isinstance(found, type) or found.__name__ != value["class_name"]:
        return None
    harmless = any(f"{found.__module__}.".startswith(f"tf_keras.src.{source}.") for source in _SOURCES)
    return found if harmless or _is_registered(found) else None


def _is_registered(found: Any) -> bool:
    """Whether it is this package or the caller who has registered what Keras finds.

    TensorFlow Probability registers, among others, a layer that unpickles a function.
    """
    return found is not None and getattr(found, "__module__", "").split(".")[0] not in _LIBRARIES


def _check_order(layers: Any) -> None:
    """Refuses layers that wait for each other or for one that is not there: Keras would try for ever."""
    waiting: dict[str, list[list[tuple[str, Any]]]] = {}
    made: set[tuple[str, Any]] = set()
    counts: dict[str, int] = {}
    for layer in layers:
        name, found = layer["name"], _found_class(layer)
        if not name or name in waiting or name != layer["config"]["name"]:
            raise ValueError(f"layers of one name, {archive.one_line(repr(name), 100)}, or of none")
        waiting[name] = [list(_references(node)) for node in layer["inbound_nodes"]]
        functional = isinstance(found, type) and issubclass(found, Functional)
        # A network has been called once before, on its own inputs.
        counts[name] = int(functional)
        if isinstance(found, type) and issubclass(found, keras.layers.InputLayer):
            made.add((name, None))
        elif functional and layer["config"]["layers"][0]["class_name"] != "InputLayer":
            raise ValueError(f"the network {archive.one_line(repr(name), 100)}, which has no input")
    for _ in range(_MAX_PASSES):
        for name, calls in waiting.items():
            while calls and all({(other, None), (other, index)} & made for other, index in calls[0]):
                del calls[0]
                made.add((name, counts[name]))
                counts[name] += 1
    if any(waiting.values()):
        raise ValueError("layers that wait for each other, or for one that is not there")


def _references(node: Any) -> Iterator[tuple[str, Any]]:
    """Name and number of each call whose result another call takes, as Keras reads them."""
    if isinstance(node, list) and len(node) in (3, 4) and isinstance(node[0], str):
        yield node[0], node[1]
        node = node[3:]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _references(child)


def _load_checked(path: str | os.PathLike[str], count: int, elements: int) -> CVAE:
    """Loads a file whose configuration is harmless; stops before more variables are made than are stored."""
    # Scalars are left out, as each model has counters that are not saved.
    made = {"arrays": 0, "elements": 0}

    def create(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
        shape = kwargs.get("shape")
        shape = tf.TensorShape(getattr(kwargs.get("initial_value"), "shape", ()) if shape is None else shape)
        if shape.rank:
            made["arrays"] += 1
            made["elements"] += shape.num_elements() or 0
        if made["arrays"] > count or made["elements"] > elements:
            raise ValueError("layers that ask for more weights than the file holds")
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        model = keras.models.load_model(os.fspath(path), compile=False, safe_mode=True)
    if not isinstance(model, CVAE):
        raise ValueError("one that is not a tfp_cvae.CVAE")
    return model


def _largest_product(sizes: Any) -> int:
    """Of the numbers in a list, or in one of the lists in it."""
    if not isinstance(sizes, list):
        return abs(sizes) if isinstance(sizes, int) else 0
    here = math.prod(abs(size) for size in sizes if isinstance(size, int) and size)
    return max([here, *(_largest_product(size) for size in sizes if isinstance(size, list))])
