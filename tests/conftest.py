import base64
import importlib
import os
import pathlib
import pickle
import signal
import statistics

import numpy as np
import pytest

from tfp_cvae import commands

# As the command line has it: the same kernels, and no notes on the machine that would hide what a test prints.
commands.import_tensorflow()
import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

from tfp_cvae import figures, importance, recognition  # noqa: E402
from tfp_cvae.build import build_cvae  # noqa: E402
from tfp_cvae.data import Dataset, make_dataset  # noqa: E402
from tfp_cvae.flows import CouplingFlow  # noqa: E402
from tfp_cvae.model import CVAE  # noqa: E402

# Which a shell takes from what it starts in the background, and that from the trainings that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files of tests, the longest first: a worker that began one of them last would be waited for by those that are done.
LONGEST = (
    "test_crash",
    "test_training",
    "test_run",
    "test_backup",
    "test_semi_supervised",
    "test_workers",
    "test_readme",
    "test_notebooks",
    "test_docs",
    "test_distribution",
    "test_model",
    "test_execution",
    "test_export",
    "test_callbacks",
    "test_evaluation",
    "test_sources",
    "test_soak",
    "test_serving",
    "test_precision",
    "test_cli",
    "test_bad_requests",
    "test_importance",
    "test_layers",
    "test_fuzz",
    "test_networks",
)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=4, help="trainings that are killed; long: 200")
    parser.addoption("--crash-seed", type=int, default=0, help="which trainings are killed, and when")
    parser.addoption("--soak-minutes", type=float, default=0.5, help="training in one process; long: 60")
    parser.addoption("--fuzz-inputs", type=int, default=2000, help="inputs for all readers in test_fuzz; long: 20000")
    parser.addoption("--bad-requests", type=int, default=500, help="malformed requests to exported models; long: 10000")


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name in ("fuzz", "kills") and report.when == "teardown":
                terminalreporter.write_line(f"{name}: {value}")


def pytest_collection_modifyitems(items):
    assert set(LONGEST) <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    # The others come after them, in their order.
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", pathlib.Path.home() / "tensorflow_datasets"))
    if not (folder / "mnist").is_dir():
        for item in items:
            if item.get_closest_marker("mnist"):
                item.add_marker(pytest.mark.skipif(True, reason="the full MNIST is not prepared in TFDS_DATA_DIR"))


@pytest.fixture(autouse=True)
def no_autograph_warning(caplog):
    """Fails a test in which AutoGraph could not convert a function: it would run differently in a graph."""
    yield
    # Fixtures trace functions, too.
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert not [record for record in records if "AutoGraph could not" in record.getMessage()]


class _Import:
    """A pickle of it imports a module."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __reduce__(self) -> tuple:
        return importlib.import_module, (self.module,)


def unpickling(module: str) -> dict:
    """Configuration of a layer that TensorFlow Probability registers, and that imports a module as it unpickles."""
    return {
        "function": "x",
        "function_type": "raw",
        "output_shape": None,
        "output_shape_type": "raw",
        "make_distribution_fn": base64.encodebytes(pickle.dumps(_Import(module))).decode("ascii"),
    }


def threefry_normal(key, rows, size):
    """Rows of the noise of training, with Python's integers and quantiles, one number after the other."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    half = -(-size // 2)
    samples = np.empty((len(rows), 2 * half))
    for index, row in enumerate(rows):
        for column in range(half):
            left, right = (row + keys[0]) % 2**32, (column + keys[1]) % 2**32
            for number in range(20):
                distance = (13, 15, 26, 6, 17, 29, 16, 24)[number % 8]
                left = (left + right) % 2**32
                right = ((right << distance | right >> 32 - distance) % 2**32) ^ left
                if number % 4 == 3:
                    group = number // 4 + 1
                    left = (left + keys[group % 3]) % 2**32
                    right = (right + keys[(group + 1) % 3] + group) % 2**32
            for place, word in ((column, left), (half + column, right)):
                samples[index, place] = statistics.NormalDist().inv_cdf((2 * (word >> 9) + 1) / 2**24)
    return samples[:, :size]


def stripes(count: int = 240, num_classes: int = 3, size: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy grey images with a bright stripe that is in another place for each class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    images = generator.integers(0, 60, (count, size, size, 1))
    for index, label in enumerate(labels):
        images[index, :, 2 * label : 2 * label + 2] = generator.integers(180, 256, (size, 2, 1))
    return images.astype(np.uint8), labels


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset("stripes", ["left", "middle", "right"], stripes())


@pytest.fixture
def npz(tmp_path) -> pathlib.Path:
    images, labels = stripes()
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    return tmp_path / "stripes.npz"


@pytest.fixture
def cvae() -> CVAE:
    """A small model whose prior has another location and scale for each class."""
    keras.utils.set_random_seed(0)
    model = build_cvae((8, 8, 1), 3, latent_size=4, width=16, prior="label")
    spread_prior(model)
    return model


def small_cvae(network: str, prior: str, image_shape=(8, 8, 1), num_classes: int = 3, latent_size: int = 4) -> CVAE:
    """As small as it can be, as a test is long for the graphs that it makes: one layer, or block, and two couplings."""
    if prior != "flow":
        return build_cvae(image_shape, num_classes, latent_size, network, width=8, depth=1, prior=prior)
    cvae = small_cvae(network, "standard", image_shape, num_classes, latent_size)
    one_hot = keras.Input((num_classes,), name="one_hot")
    return CVAE(cvae.encoder, cvae.decoder, keras.Model(one_hot, CouplingFlow(latent_size, depth=2, width=8)(one_hot)))


def spread_prior(model: CVAE) -> None:
    """Moves a label-conditional prior away from N(0, I), at which it starts."""
    kernel = model.prior_network.trainable_variables[0]
    kernel.assign(np.random.default_rng(1).standard_normal(kernel.shape))


def perturb(model: keras.Model, scale: float = 0.05, seed: int = 0) -> None:
    """Moves all weights, some of which start at zero and would hide what uses them."""
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign_add(scale * generator.standard_normal(variable.shape))


@pytest.fixture
def quick_judge(monkeypatch):
    """No more epochs of classifiers than are asked for, and a short look at the speed, where neither matters."""
    monkeypatch.setattr(recognition, "_MIN_STEPS", 1)
    monkeypatch.setitem(importance.products_per_second.__kwdefaults__, "seconds", 0.01)


@pytest.fixture
def no_figures(monkeypatch):
    """No figures at the end of a training, where nobody looks at them."""
    monkeypatch.setattr(figures, "draw", lambda *given: [])


@pytest.fixture
def batch(dataset) -> tuple[np.ndarray, np.ndarray]:
    """All training images, binarized, with their labels."""
    return dataset.train.binarized(), dataset.train.one_hot()


@pytest.fixture(autouse=True)
def clear_keras():
    yield
    keras.backend.clear_session()
    tf.compat.v1.reset_default_graph()
