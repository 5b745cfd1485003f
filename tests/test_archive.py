"""The worst that a `.keras` file, an `.npz` file or a JSON text can hold. `test_fuzz` draws the rest."""

import contextlib
import io
import json
import resource
import signal
import struct
import sys
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import tf_keras as keras
from conftest import perturb, small_cvae, unpickling

from tfp_cvae import archive, model_files
from tfp_cvae.build import build_cvae
from tfp_cvae.losses import ELBO, NegativeELBO
from tfp_cvae.model import CVAE


@contextlib.contextmanager
def limited(seconds=10, size=2**29):
    """Fails a block that takes too long, or too much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"more than {seconds} s"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < size


def refused(path, message):
    with limited(), pytest.raises(ValueError, match=message) as caught:
        model_files.load_keras(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected a whole model of this package")
    assert len(text) < 1000
    assert text.isprintable()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Members of a file that is whole."""
    model = build_cvae((4, 4, 1), 2, latent_size=2, width=4, depth=1, prior="flow")
    model.compile("adam", NegativeELBO(), [ELBO()])
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(name, content)
    return path


def with_config(path, saved, change):
    """The file with its configuration changed."""
    config = json.loads(saved["config.json"])
    change(config)
    return write(path, {**saved, "config.json": json.dumps(config)})


def layers(config, network="encoder"):
    return {layer["name"]: layer for layer in config["config"][network]["config"]["layers"]}


def dense(config):
    return next(layer for layer in layers(config).values() if layer["class_name"] == "Dense")


@pytest.mark.parametrize("prior", ["standard", "label", "flow"])
@pytest.mark.parametrize("network", ["mlp", "residual", "conv"])
def test_what_the_package_saves_is_loaded(tmp_path, network, prior):
    model = small_cvae(network, prior, image_shape=(6, 5, 3), latent_size=3)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    model.compile(keras.optimizers.Adam(schedule), NegativeELBO(free_bits=0.1), [ELBO(), "mse"])
    perturb(model)
    model.save(tmp_path / "model.keras")
    loaded = model_files.load_keras(tmp_path / "model.keras")
    assert isinstance(loaded, CVAE)
    assert len(loaded.weights) == len(model.weights)
    for given, found in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(given, found)


def test_networks_of_users_are_loaded(tmp_path):
    @keras.saving.register_keras_serializable("test_archive")
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    @keras.saving.register_keras_serializable("test_archive")
    def bent(inputs):
        return keras.activations.elu(inputs)

    donor = build_cvae((4, 4, 1), 2, latent_size=2, width=4, depth=1)
    image, one_hot = keras.Input((4, 4, 1), name="image"), keras.Input((2,), name="one_hot")
    tensor = keras.layers.Conv2D(2, 3, kernel_regularizer="l2", kernel_constraint="max_norm", activation=bent)(image)
    tensor = keras.layers.BatchNormalization()(keras.layers.Dropout(0.1)(keras.layers.LeakyReLU()(tensor)))
    shared = keras.Sequential([keras.Input((2, 2, 2)), keras.layers.Flatten(), keras.layers.Dense(4)])
    tensor = keras.layers.Concatenate()([shared(tensor), Doubled()(shared(tensor)), one_hot])
    tensor = keras.layers.Dense(4, dtype=keras.mixed_precision.Policy("float32"))(tensor)
    encoder = keras.Model([image, one_hot], type(donor.encoder.layers[-1])(2)(tensor), name="encoder")
    model = CVAE(encoder, donor.decoder)
    model.save(tmp_path / "model.keras")
    loaded = model_files.load_keras(tmp_path / "model.keras")
    for given, found in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(given, found)
    # Registered, or not.
    objects = keras.saving.get_custom_objects()
    for name in ("test_archive>Doubled", "test_archive>bent"):
        found = objects.pop(name)
        refused(tmp_path / "model.keras", f"{name[-4:]}, which .*; register it with")
        objects[name] = found


EVIL = [
    {"module": "archive_canary", "class_name": "Dense", "config": {}, "registered_name": None},
    {"module": "archive_canary", "class_name": "Dense", "config": {}, "registered_name": "Dense"},
    {"module": "archive_canary", "class_name": "Dense", "config": {}},
    {"module": "archive_canary", "class_name": "function", "config": "Dense", "registered_name": "function"},
    {
        "module": "archive_canary",
        "class_name": "__typespec__",
        "spec_name": "Dense",
        "config": [],
        "registered_name": "x",
    },
    {"module": "builtins", "class_name": "function", "config": "input", "registered_name": "function"},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
    {"module": "keras.src.utils.data_utils", "class_name": "function", "config": "get_file", "registered_name": "x"},
    {"module": "keras.src.utils.data_utils", "class_name": "os", "config": {}, "registered_name": None},
    {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"function": ["", None, None]},
        "registered_name": None,
    },
    {
        "module": "keras.layers",
        "class_name": "TFOpLambda",
        "config": {"function": "io.write_file"},
        "registered_name": None,
    },
    {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
    {"module": "keras.layers", "class_name": "TextVectorization", "config": {"vocabulary": "/etc/passwd"}},
    {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}, "module": None},
    {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U2000000000"}, "module": None},
    {"class_name": "__numpy__", "config": {"value": ["a"]}, "module": None, "registered_name": "tfp_cvae>CVAE"},
    {"class_name": "__lambda__", "config": {"value": []}, "module": None, "registered_name": "tfp_cvae>PixelBias"},
    {"class_name": "Lambda", "config": {"function": ["", None, None]}},
    {"class_name": ["Dense"], "config": {}, "module": "keras.layers"},
    *(
        {
            "module": "x",
            "class_name": "DistributionLambda",
            "registered_name": name,
            "config": unpickling("archive_canary"),
        }
        for name in ("DistributionLambda", "tfp_cvae>PixelBias", "IndependentNormal", None)
    ),
    {"module": "x", "class_name": "function", "registered_name": "function", "config": "DistributionLambda"},
]


@pytest.mark.parametrize("evil", EVIL, ids=lambda evil: f"{evil.get('module')}-{evil['class_name']}")
@pytest.mark.parametrize("place", ["initializer", "activation", "layer", "network", "tensor"])
def test_no_code_is_executed(tmp_path, monkeypatch, saved, evil, place):
    (tmp_path / "archive_canary.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n\n\nclass Dense: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def change(config):
        if place in ("initializer", "activation"):
            dense(config)["config"]["kernel_initializer" if place == "initializer" else "activation"] = evil
        elif place == "layer":
            dense(config).update(evil)
            if "module" not in evil:
                del dense(config)["module"]
        elif place == "tensor":
            last = next(layer for layer in layers(config).values() if layer["class_name"] == "MultivariateNormalDiag")
            last["config"]["convert_to_tensor_fn"] = evil
        else:
            config["config"]["prior"] = evil

    refused(with_config(tmp_path / "evil.keras", saved, change), "the (class|object|function)")
    assert not (tmp_path / "executed").exists()
    assert "archive_canary" not in sys.modules


def test_a_layer_takes_no_function_from_a_file(tmp_path, saved):
    def change(config):
        last = next(layer for layer in layers(config).values() if layer["class_name"] == "MultivariateNormalDiag")
        last["config"]["convert_to_tensor_fn"] = "stddev"

    refused(with_config(tmp_path / "evil.keras", saved, change), "convert_to_tensor_fn: expected none")


def test_what_compile_was_given_is_not_read(tmp_path, saved):
    def change(config):
        config["compile_config"] = {"optimizer": EVIL[0], "loss": EVIL[3]}

    model_files.load_keras(with_config(tmp_path / "evil.keras", saved, change))
    refused(
        with_config(
            tmp_path / "evil.keras", saved, lambda c: c["config"]["encoder"].update(compile_config={"loss": "mse"})
        ),
        "which a model of this package does not hold",
    )


def many_units(config):
    dense(config)["config"]["units"] = 10**12
    del dense(config)["build_config"]


def large_image(config):
    layers(config)["image"]["config"]["batch_input_shape"] = [None, 10**6, 10**6, 1]


def flow(config):
    return next(layer for layer in layers(config, "prior").values() if layer["class_name"] == "CouplingFlow")


def large_build(config):
    flow(config)["build_config"] = {"input_shape": [None, 10**7]}


def many_couplings(config):
    flow(config)["config"]["depth"] = 10**9


def absent_layer(config):
    dense(config)["inbound_nodes"] = [[["one_hot", 0, 0, {}]], [["nowhere", 0, 0, {}]]]


def absent_call(config):
    dense(config)["inbound_nodes"][0][0][1] = 7 if dense(config)["inbound_nodes"][0][0][0] != "one_hot" else 0
    adding = next(layer for layer in layers(config).values() if layer["class_name"] == "Add")
    adding["inbound_nodes"][0][0][1] = 7


def waiting_for_itself(config):
    dense(config)["inbound_nodes"] = [[[dense(config)["name"], 0, 0, {}]]]


def waiting_in_an_argument(config):
    dense(config)["inbound_nodes"][0][0][3] = {"mask": [dense(config)["name"], 0, 0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (many_units, "layers that ask for more weights than the file holds"),
        (large_build, "layers that ask for more weights than the file holds"),
        (large_image, "'batch_input_shape' of more than"),
        (many_couplings, "layers that ask for more weights than the file holds"),
        (absent_layer, "layers that wait for each other, or for one that is not there"),
        (absent_call, "layers that wait for each other, or for one that is not there"),
        (waiting_for_itself, "layers that wait for each other, or for one that is not there"),
        (waiting_in_an_argument, "layers that wait for each other, or for one that is not there"),
        (lambda config: config.update(name=10**30), "not of 64 bits"),
        (lambda config: config.update(name=float("nan")), "not finite"),
        (lambda config: config.update(registered_name=None), "one that is not a tfp_cvae.CVAE"),
        (lambda config: config.update(zeros=[EVIL[0] | {"module": "keras"}] * 3), "the class keras.Dense"),
        (lambda config: config["config"].pop("encoder"), "KeyError"),
        (lambda config: config["config"].update(seed="\ud800" * 9), "seed"),
    ],
)
def test_configurations_that_ask_too_much(tmp_path, saved, change, message):
    refused(with_config(tmp_path / "evil.keras", saved, change), message)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, f"{'[' * 70}{']' * 70}", " " * 10**7])
def test_deep_and_long_json(tmp_path, saved, text):
    with limited(), pytest.raises(ValueError, match="JSON"):
        archive.parse_json(text)
    refused(write(tmp_path / "evil.keras", {**saved, "config.json": text}), "JSON|than a model has")


def link(name, mode):
    """A member that is a symbolic link, or a folder."""
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([("../outside", b"x")], "the member '../outside', which Keras does not write"),
        ([("/outside", b"x")], "which Keras does not write"),
        ([("assets/../../outside", b"x")], "which Keras does not write"),
        ([("assets/C:\\outside", b"x")], "which Keras does not write"),
        ([("model.weights.npz", b"x")], "which Keras does not write"),
        ([("config.json", b"{}")], "two members of the name 'config.json'"),
        ([(link("assets/a", 0o120777), b"/etc/passwd")], "a link or a folder"),
        ([(f"assets/{number}", b"x") for number in range(2000)], "more than are in the file or than a model has"),
    ],
)
def test_members_that_keras_does_not_write(tmp_path, saved, added, message):
    refused(write(tmp_path / "evil.keras", [*saved.items(), *added]), message)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.keras"]


def patched(path, name, field, value):
    """A zip file in whose directory a number of a member is replaced."""
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(name.encode()))
    offset, form = {"flags": (8, "<H"), "packed": (20, "<I"), "size": (24, "<I"), "offset": (42, "<I")}[field]
    struct.pack_into(form, data, at + offset, value)
    path.write_bytes(data)
    return path


def test_zip_bombs_and_lies(tmp_path, saved):
    path = tmp_path / "evil.keras"
    bomb = {**saved, "model.weights.h5": bytes(2**24)}
    refused(write(path, bomb, zipfile.ZIP_DEFLATED), "compressed in another way than NumPy and Keras write")
    refused(patched(write(path, saved), "config.json", "flags", 1), "'config.json', encrypted or compressed")
    refused(patched(write(path, saved), "config.json", "size", 2**31), "whose sizes do not agree")
    large = patched(write(path, saved), "model.weights.h5", "size", 2**31)
    refused(patched(large, "model.weights.h5", "packed", 2**31), "more than are in the file")
    data = bytearray(write(path, saved).read_bytes())
    data[data.find(b"glorot") if b"glorot" in data else data.find(b"Glorot")] ^= 1
    path.write_bytes(data)
    refused(path, "CRC")
    path.write_bytes(data[: len(data) // 2])
    refused(path, "BadZipFile")
    refused(write(path, {"config.json": b"{}"}), "one without config.json, metadata.json or model.weights.h5")
    refused(
        write(path, {**saved, "metadata.json": '{"keras_version": "3.9.0"}'}), "one of Keras 3.9.0, not of tf_keras"
    )
    for content in (b"", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"an empty file|one without config.json"):
            model_files.load_keras(path)
    for absent in (tmp_path / "absent.keras", tmp_path, tmp_path / "other.name"):
        (tmp_path / "other.name").write_bytes(data)
        with pytest.raises(ValueError, match=r"an existing .keras file|got a folder|ends in .keras"):
            model_files.load_keras(absent)


def external_link(file):
    file["layers/link"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file):
    file["layers/link"] = h5py.SoftLink("/vars")


def external_storage(file):
    file.create_dataset("layers/data", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("layers/data", layout)


def compressed(file):
    file.create_dataset("layers/data", (10**4, 10**4), "f4", compression="gzip", fillvalue=1)


def never_written(file):
    file.create_dataset("layers/data", (10**6, 10**6), "f4")


def into_itself(file):
    file["layers/again"] = file["layers"]


def text(file):
    file["layers/data"] = "text"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "a link, which could lead to another file"),
        (soft_link, "a link, which could lead to another file"),
        (external_storage, "compressed, or in another file"),
        (virtual, "compressed, or in another file"),
        (compressed, "compressed, or in another file"),
        (never_written, "claim another size than is stored"),
        (into_itself, "weights that hold themselves"),
        (text, "not arrays of numbers"),
    ],
)
def test_weights_that_keras_does_not_write(tmp_path, saved, change, message):
    buffer = io.BytesIO(saved["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        change(file)
    refused(write(tmp_path / "evil.keras", {**saved, "model.weights.h5": buffer.getvalue()}), message)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Malice:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def header(text, version=b"\x01\x00"):
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text


def test_messages_are_of_one_line():
    assert archive.one_line(" a\n  b\tc\x00\ud800  d ") == "a b c\\x00\\ud800  d"
    assert len(archive.one_line("x" * 10**6)) == 300
