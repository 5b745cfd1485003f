"""Files that came from elsewhere: each is checked before anything acts on what it says.

A `.keras` file is a program as much as it is data: Keras imports every module that its `config.json` names, with
`safe_mode` on as well, calls what it finds there, and allocates what the layers ask for before it looks at the weights.
An `.npz` file can claim terabytes. What is read here costs no more memory and time than its size on disk accounts for.
"""

import importlib
import io
import json
import math
import os
import pathlib
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tfp_cvae.model import CVAE

# Of arrays or pictures, decoded: all that is read into memory at once.
MAX_DECODED_BYTES = 8 * 2**30

# Blank pictures and arrays of zeros are small on disk, up to 1,000 times; only beyond this many bytes it is a trick.
_FREE_BYTES = 64 * 2**20
_MAX_RATIO = 1000

_MAX_MODEL_BYTES = 2**30
_MAX_JSON_BYTES = 8 * 2**20
_MAX_JSON_DEPTH = 64
_MAX_OBJECTS = 10_000
_MAX_IMAGE_SIZE = 2**26
# Through the layers of a network, which Keras writes in the order in which they are called.
_MAX_PASSES = 100
_MAX_NPY_HEADER = 16 * 2**10

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


def one_line(value: object, limit: int = 300) -> str:
    """Text for a message: on one line, printable, and not endless."""
    text = re.sub(r"\s*[\r\n\t]\s*", " ", str(value)[: 4 * limit].strip())
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def file_size(path: str | os.PathLike[str], kind: str) -> int:
    """Size of a file that can be opened without harm: a pipe would wait for ever, and a device has no end.

    Args:
        path: The file, or a symbolic link to it.
        kind: What it should be, for the message.

    Raises:
        ValueError: If it does not exist, cannot be looked at, is empty or is no regular file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{one_line(path)}: expected an existing {kind}, got none; check the path") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{one_line(path)}: expected a readable {kind}, got {one_line(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        got = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{one_line(path)}: expected a {kind}, which is a regular file, got {got}")
    if not status.st_size:
        raise ValueError(f"{one_line(path)}: expected a {kind}, got an empty file; get or make it again")
    return status.st_size


def check_decoded_size(decoded: int, on_disk: int) -> None:
    """Refuses what would take too much memory, or more than any true picture or array is packed.

    Raises:
        ValueError: With the reason alone, as the name is known to the caller.
    """
    if decoded > MAX_DECODED_BYTES:
        raise ValueError(
            f"{decoded / 2**30:.3g} GiB decoded, more than the {MAX_DECODED_BYTES / 2**30:g} GiB that are held in "
            "memory; use fewer or smaller images"
        )
    if decoded > _FREE_BYTES and decoded > _MAX_RATIO * on_disk:
        raise ValueError(f"{decoded / 2**20:.4g} MiB decoded from {on_disk:,} bytes, as only a trick would be packed")


def load_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file after a look at what each claims to be; no pickles.

    Args:
        path: The file.
        names: Arrays to read, if they are there; others are not touched.

    Returns:
        Arrays of numbers, bool or text by name.

    Raises:
        ValueError: If the file is absent, is no `.npz`, is spoilt, or would take too much memory.
    """
    size = file_size(path, ".npz file")
    try:
        with zipfile.ZipFile(path) as file:
            members = _members(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            known = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
            check_decoded_size(sum(_claimed_size(file, member) for member in known.values()), size)
            return {name: _read_array(file, member) for name, member in known.items()}
    except Exception as error:
        raise ValueError(
            f"{one_line(path)}: expected an .npz file of plain arrays, got an unreadable one: {_reason(error)}; "
            "get it again, or write it again with numpy.savez"
        ) from error


def load_keras(path: str | os.PathLike[str]) -> "CVAE":
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
    # Registers the classes of the package.
    importlib.import_module("tfp_cvae.model")
    size = file_size(path, ".keras file")
    if pathlib.Path(path).suffix != ".keras":
        raise ValueError(f"{one_line(path)}: expected a file that ends in .keras, got another name; rename it")
    try:
        with zipfile.ZipFile(path) as file:
            contents = _model_contents(file, size)
        variables = _stored_variables(contents.pop(_WEIGHTS))
        _check_metadata(parse_json(contents.pop(_METADATA)))
        _check_config(parse_json(contents.pop(_CONFIG)))
        return _load_checked(path, *variables)
    except Exception as error:
        raise ValueError(
            f"{one_line(path)}: expected a whole model of this package, got an unreadable one: {_reason(error)}; "
            "get it again from where it was trained, or train again"
        ) from error


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that came from elsewhere.

    Raises:
        ValueError: If it is none, is too large or too deep, or holds a number that is not finite or not of 64 bits.
    """
    if len(text) > _MAX_JSON_BYTES:
        raise ValueError(f"JSON of {len(text):,} bytes, more than {_MAX_JSON_BYTES:,}")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    for value, depth in _walk(content):
        if depth > _MAX_JSON_DEPTH:
            raise ValueError("JSON that is nested too deep")
        if isinstance(value, (int, float)) and not -(2**63) <= value < 2**63:
            raise ValueError("a number in JSON that is not finite or not of 64 bits")
    return content


def _reason(error: Exception) -> str:
    text = one_line(error)
    return text if type(error) is ValueError and text else f"{type(error).__name__} {text}".rstrip()


def _members(file: zipfile.ZipFile, compressions: Sequence[int]) -> dict[str, zipfile.ZipInfo]:
    """Members by name; refuses two of one name, and what neither NumPy nor Keras writes."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        name = one_line(member.orig_filename, 100)
        if member.filename in members or member.filename != member.orig_filename:
            raise ValueError(f"two members of the name {name!r}, or a name that hides another")
        # bzip2 and LZMA cannot be unpacked in small parts, which would let a few bytes become gigabytes.
        if member.flag_bits & 1 or member.compress_type not in compressions:
            raise ValueError(f"the member {name!r}, encrypted or compressed in another way than NumPy and Keras write")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"the member {name!r}, which is a link or a folder")
        members[member.filename] = member
    return members


def _claimed_size(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of an array, by its header, which has to agree with the zip."""
    with file.open(member) as opened:
        # Not all that the header claims for itself, which can be 4 GB.
        start = io.BytesIO(opened.read(_MAX_NPY_HEADER))
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(start)
    if version not in readers:
        raise ValueError(f"{member.filename} of the .npy version {version}")
    shape, _, dtype = readers[version](start)
    if dtype.kind not in "biufcSU":
        raise ValueError(f"{member.filename} of dtype {one_line(dtype, 100)}, which is neither numbers nor text")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or start.tell() + size != member.file_size:
        raise ValueError(f"{member.filename}, whose header claims another size than there is")
    return size


def _read_array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with file.open(member) as opened:
        return np.lib.format.read_array(opened, allow_pickle=False)


def _model_contents(file: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """Bytes of the members that Keras reads, whose checksums are thereby verified."""
    # Keras does not compress, so that nothing can be larger than the file.
    members = _members(file, (zipfile.ZIP_STORED,))
    for name, member in members.items():
        parts = name.split("/")
        asset = parts[0] == "assets" and len(parts) > 1 and not {"", ".", ".."} & set(parts)
        if name not in (_CONFIG, _METADATA, _WEIGHTS) and (not asset or set(name) & set("\\:")):
            raise ValueError(f"the member {one_line(name, 100)!r}, which Keras does not write")
        if member.file_size != member.compress_size:
            raise ValueError(f"the member {one_line(name, 100)!r}, whose sizes do not agree")
    total = sum(member.file_size for member in members.values())
    if not {_CONFIG, _METADATA, _WEIGHTS} <= set(members):
        raise ValueError(f"one without {_CONFIG}, {_METADATA} or {_WEIGHTS}; save it with tf_keras")
    if total > min(size, _MAX_MODEL_BYTES) or members[_CONFIG].file_size > _MAX_JSON_BYTES or len(members) > 1000:
        raise ValueError(f"members of {total:,} bytes, more than are in the file or than a model has")
    return {name: file.read(name) for name in (_CONFIG, _METADATA, _WEIGHTS)}


def _stored_variables(weights: bytes) -> tuple[int, int]:
    """Number of arrays in an HDF5 file, and of elements in all; refuses what Keras does not write."""
    import h5py  # type: ignore[import-untyped]

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
    import h5py

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
        raise ValueError(f"one of Keras {one_line(version, 20)}, not of tf_keras, which is Keras 2")


def _check_config(config: Any) -> None:
    """Refuses a configuration that names anything else than the classes of a model."""
    if not isinstance(config, dict) or config.get("registered_name") != "tfp_cvae>CVAE":
        raise ValueError("one that is not a tfp_cvae.CVAE")
    objects, networks = 0, []
    # What `compile` was given is not read, as Keras is told.
    for value, _ in _walk({**config, "compile_config": None}):
        if not isinstance(value, dict):
            continue
        for key, sizes in value.items():
            if key.endswith("shape") and _largest_product(sizes) > _MAX_IMAGE_SIZE:
                raise ValueError(f"{one_line(repr(key), 100)} of more than {_MAX_IMAGE_SIZE:,} elements")
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
    import tf_keras as keras

    name, module, registered = value["class_name"], value.get("module", ""), value.get("registered_name")
    shown = f"{one_line(module, 100)}.{one_line(name, 100)}"
    advice = "; register it with keras.saving.register_keras_serializable first, if it is yours"
    if not isinstance(name, str) or not isinstance(registered, (str, type(None))):
        raise ValueError(f"the object {shown}, which has no name")
    # Tensors, lambdas and type specifications.
    if name.startswith("__") or value.get("compile_config") is not None or "module" not in value:
        raise ValueError(f"the object {shown}, which a model of this package does not hold")
    if name == "function":
        function = value.get("config")
        if not isinstance(function, str) or keras.saving.get_registered_object(function) is None:
            raise ValueError(f"the function {one_line(function, 100)}, which is not registered{advice}")
    elif _found_class(value) is None:
        raise ValueError(f"the class {shown}, which could run any code{advice}")


def _found_class(value: dict[str, Any]) -> type | None:
    """The class that Keras will find, if it is registered or one of Keras that computes with weights."""
    import tf_keras as keras

    found = keras.saving.get_registered_object(value.get("registered_name"))
    if found is not None:
        return found
    # As Keras, which calls itself by both names.
    module = value["module"]
    module = f"tf_{module}" if isinstance(module, str) and module.split(".")[0] == "keras" else module
    if module not in _NAMESPACES:
        return None
    found = vars(importlib.import_module(module)).get(value["class_name"])
    source = f"{getattr(found, '__module__', '')}."
    harmless = isinstance(found, type) and any(source.startswith(f"tf_keras.src.{allowed}.") for allowed in _SOURCES)
    return found if harmless else None


def _check_order(layers: Any) -> None:
    """Refuses layers that wait for each other or for one that is not there: Keras would try for ever."""
    import tf_keras as keras

    network = importlib.import_module("tf_keras.src.engine.functional").Functional
    waiting: dict[str, list[list[tuple[str, Any]]]] = {}
    made: set[tuple[str, Any]] = set()
    counts: dict[str, int] = {}
    for layer in layers:
        name, found = layer["name"], _found_class(layer)
        if not name or name in waiting or name != layer["config"]["name"]:
            raise ValueError(f"layers of one name, {one_line(repr(name), 100)}, or of none")
        waiting[name] = [list(_references(node)) for node in layer["inbound_nodes"]]
        functional = isinstance(found, type) and issubclass(found, network)
        # A network has been called once before, on its own inputs.
        counts[name] = int(functional)
        if isinstance(found, type) and issubclass(found, keras.layers.InputLayer):
            made.add((name, None))
        elif functional and layer["config"]["layers"][0]["class_name"] != "InputLayer":
            raise ValueError(f"the network {one_line(repr(name), 100)}, which has no input")
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


def _load_checked(path: str | os.PathLike[str], count: int, elements: int) -> "CVAE":
    """Loads a file whose configuration is harmless; stops before more variables are made than are stored."""
    import tensorflow as tf
    import tf_keras as keras

    from tfp_cvae.model import CVAE

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


def _walk(content: Any) -> Iterator[tuple[Any, int]]:
    """All values in parsed JSON, with their depth."""
    rest = [(content, 0)]
    while rest:
        value, depth = rest.pop()
        yield value, depth
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        rest.extend((child, depth + 1) for child in children)


def _largest_product(sizes: Any) -> int:
    """Of the numbers in a list, or in one of the lists in it."""
    if not isinstance(sizes, list):
        return abs(sizes) if isinstance(sizes, int) else 0
    here = math.prod(abs(size) for size in sizes if isinstance(size, int) and size)
    return max([here, *(_largest_product(size) for size in sizes if isinstance(size, list))])
