import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras
from conftest import stripes

from tfp_cvae import on_disk
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import Split, make_dataset
from tfp_cvae.on_disk import RowsOnDisk
from tfp_cvae.recognition import nearest
from tfp_cvae.training import build_model, compile_model

CLASSES = ["left", "middle", "right"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """So that what goes through all images does it in many steps."""
    monkeypatch.setattr(on_disk, "_PART_BYTES", 1000)


def on_disk_too(tmp_path, images, name="images"):
    np.save(tmp_path / f"{name}.npy", images)
    return np.load(tmp_path / f"{name}.npy", mmap_mode="r")


@pytest.fixture
def both(tmp_path):
    """The same images as a data set in memory and as one on disk."""
    images, labels = stripes()
    in_memory = make_dataset("stripes", CLASSES, (images, labels))
    mapped = make_dataset("stripes", CLASSES, (on_disk_too(tmp_path, images), labels))
    assert all(isinstance(split.images, RowsOnDisk) for split in (mapped.train, mapped.validation, mapped.test))
    return in_memory, mapped


def assert_equal_batches(one, other, passes=1):
    for _ in range(passes):
        first, second = list(one), list(other)
        assert len(first) == len(second)
        for ((image, one_hot), target), ((other_image, other_one_hot), other_target) in zip(first, second, strict=True):
            np.testing.assert_array_equal(image, other_image)
            np.testing.assert_array_equal(one_hot, other_one_hot)
            np.testing.assert_array_equal(target, other_target)
    assert one.cardinality() == other.cardinality()
    assert one.element_spec == other.element_spec


@pytest.mark.parametrize("shape", [(40, 5, 7, 3), (3, 90, 80, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("skipped", [0, 1])
def test_rows_are_read_as_from_an_array(tmp_path, shape, skipped):
    """Of less and of more than a page, and not from the beginning of the file."""
    whole = np.random.default_rng(0).integers(0, 256, (shape[0] + skipped, *shape[1:]), np.uint8)
    images, rows = whole[skipped:], RowsOnDisk(on_disk_too(tmp_path, whole)[skipped:])
    generator = np.random.default_rng(1)
    some = generator.integers(0, len(images), (4, 3))
    for index in (
        0,
        -1,
        slice(None),
        slice(1, 2),
        some,
        some[0].astype(np.int32),
        some[:0],
        np.arange(len(images)) > 1,
    ):
        np.testing.assert_array_equal(rows[index], images[index])
    order = generator.permutation(len(images))
    view = on_disk.rows_of(rows, order)
    np.testing.assert_array_equal(view[some[0]], images[order][some[0]])
    np.testing.assert_array_equal(np.asarray(on_disk.rows_of(view, order > 0)), images[order][order > 0])
    assert rows.shape == images.shape
    assert rows.dtype == images.dtype
    with pytest.raises(IndexError):
        rows[len(images)]
    rows[0][...] = 0
    np.testing.assert_array_equal(rows[0], images[0])


def test_a_data_set_on_disk_is_the_one_in_memory(both):
    in_memory, mapped = both
    assert in_memory.fingerprint() == mapped.fingerprint()
    assert repr(in_memory) == repr(mapped)
    for name in ("train", "validation", "test"):
        one, other = getattr(in_memory, name), getattr(mapped, name)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        for binarization in ("dynamic", "threshold", "none"):
            np.testing.assert_array_equal(one.binarized(binarization), other.binarized(binarization))
            np.testing.assert_array_equal(one.mean_image(binarization), other.mean_image(binarization))


def test_few_labels_are_the_same(both):
    few = [data.with_few_labels(12, seed=1) for data in both]
    assert few[0].fingerprint() == few[1].fingerprint()
    assert isinstance(few[1].train.images, RowsOnDisk)
    assert isinstance(few[1].train.labelled().images, RowsOnDisk)
    np.testing.assert_array_equal(few[0].train.labelled().images, few[1].train.labelled().images)


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("conditional", [True, False])
def test_batches_are_the_same(both, binarization, drop_remainder, conditional):
    options = {"binarization": binarization, "drop_remainder": drop_remainder, "conditional": conditional}
    for name in ("train", "validation", "test"):
        one, other = (getattr(data, name).batches(7, seed=3, **options) for data in both)
        if conditional:
            assert_equal_batches(one, other, passes=2)
        else:
            for first, second in zip(one, other, strict=True):
                np.testing.assert_array_equal(first, second)
    assert len(both[0].train) % 7
    assert len(both[0].test) % 7


def test_shares_and_resumed_epochs_are_the_same(both):
    for index in range(2):
        options = {"drop_remainder": True, "share": (index, 2), "initial_epoch": 5}
        assert_equal_batches(*(data.train.batches(16, **options) for data in both), passes=2)


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_batches_with_images_without_label_are_the_same(both, drop_remainder):
    few = [data.with_few_labels(12) for data in both]
    options = {"labelled_per_batch": 3, "drop_remainder": drop_remainder}
    assert_equal_batches(*(data.train.batches(10, **options) for data in few), passes=2)
    assert_equal_batches(*(data.validation.batches(10) for data in few))
    shares = {**options, "drop_remainder": True, "share": (1, 2)}
    assert_equal_batches(*(data.train.batches(10, **shares) for data in few))


def test_a_training_from_disk_ends_with_the_same_weights(both):
    config = TrainConfig(width=16, latent_size=4, epochs=3, batch_size=32)
    found = []
    for data in both:
        keras.utils.set_random_seed(config.seed)
        cvae = build_model(config, data)
        compile_model(cvae, config, steps_per_epoch=len(data.train) // 32)
        batches = data.train.batches(32, drop_remainder=True)
        history = cvae.fit(batches, validation_data=data.validation.batches(9), epochs=3, verbose=0).history
        found.append((cvae.get_weights(), history))
    for one, other in zip(*(weights for weights, _ in found), strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[0][1] == found[1][1]


def test_nearest_images_are_found_part_by_part(both):
    wanted = both[0].test.binarized("none")
    (distance, index), (other_distance, other_index) = (nearest(wanted, data.train, count=3) for data in both)
    np.testing.assert_allclose(distance, other_distance, rtol=1e-6)
    np.testing.assert_array_equal(index, other_index)


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (lambda images: images, True),
        (lambda images: images[..., 0], True),
        (lambda images: images / np.float32(255), False),
        (lambda images: images >= 128, False),
        (lambda images: np.asfortranarray(images), False),
    ],
)
def test_which_memory_maps_stay_on_disk(tmp_path, change, stays):
    """The others are read, and are what they would be as arrays."""
    images, labels = stripes(60)
    mapped = on_disk_too(tmp_path, change(images))
    data = make_dataset("stripes", CLASSES, (mapped, labels))
    assert isinstance(data.train.images, RowsOnDisk) == stays
    assert data.fingerprint() == make_dataset("stripes", CLASSES, (change(images), labels)).fingerprint()


def test_mistakes(tmp_path):
    images, labels = stripes(60)
    for spoilt, message in (
        (images // 128, "train images: expected integers .* got only 0 and 1; give binary images as bool"),
        (images[0, 0], r"train images: expected shape \[n, height, width\] or"),
        (images[:0], r"expected at least one image and one pixel, got shape \[0, 8, 8, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make_dataset("stripes", CLASSES, (on_disk_too(tmp_path, spoilt), labels))
    # One brighter pixel at the end is enough.
    spoilt = images // 128
    spoilt[-1, 0, 0] = 2
    make_dataset("stripes", CLASSES, (on_disk_too(tmp_path, spoilt), labels))
    mixed = (on_disk_too(tmp_path, images[:9, :4], "test_images"), labels[:9])
    with pytest.raises(ValueError, match=r"test images: expected the shape of the train images, \(8, 8, 1\), got"):
        make_dataset("stripes", CLASSES, (on_disk_too(tmp_path, images), labels), test=mixed)


def test_a_single_image_is_drawn_as_among_all():
    """Also where the number of pixels is odd, and so half a step of the generator."""
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 1), np.uint8)
    split = Split("test", images, np.zeros(30, int), 1)
    rows = np.array([29, 3, 4, 5, 0, 7, -1])
    for binarization in ("dynamic", "threshold", "none"):
        whole = split.binarized(binarization, seed=2)
        np.testing.assert_array_equal(split.binarized(binarization, seed=2, rows=rows), whole[rows])
    drawn = np.random.default_rng(2).random(images.shape, np.float32) * 255 < images
    np.testing.assert_array_equal(split.binarized(seed=2), drawn)
    assert split.binarized(rows=[]).shape == (0, 3, 5, 1)
    with pytest.raises(IndexError):
        split.binarized(rows=[30])


def test_the_mean_image_is_that_of_numpy(dataset):
    grey = dataset.train.binarized("none")
    np.testing.assert_array_equal(dataset.train.mean_image(), grey.mean(axis=0))
    binary = dataset.train.binarized("threshold")
    np.testing.assert_array_equal(dataset.train.mean_image("threshold"), binary.mean(axis=0))


MEMORY = """
import pathlib
import sys
import threading

import numpy as np

from tfp_cvae import TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.training import build_model


def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def use(images):
    data = make_dataset("large", [str(number) for number in range(10)], (images, np.arange(len(images)) % 10))
    build_model(TrainConfig(width=8, latent_size=2), data)
    few = data.with_few_labels(100)
    few.fingerprint()
    for batches in (data.train.batches(500), few.train.batches(500), data.test.batches(500)):
        for _ in batches:
            pass
    return data


# What TensorFlow itself takes is not measured.
use(np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), np.uint8))
before, highest, ended = anonymous(), 0, threading.Event()


def watch():
    global highest
    while not ended.wait(0.01):
        highest = max(highest, anonymous())


watcher = threading.Thread(target=watch)
watcher.start()
data = use(np.load(sys.argv[1], mmap_mode="r"))
ended.set()
watcher.join()
in_memory = np.asarray(data.train.images)
print(highest - before, anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_images_on_disk_take_no_memory(tmp_path):
    """299 MiB of images, of which the training split, 239 MiB, is read in the end, to see that the measurement sees it."""
    path = tmp_path / "images.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (400_000, 28, 28))
    for part in np.split(images, 40):
        part[...] = np.random.default_rng(0).integers(0, 256, part.shape, np.uint8)
    images.flush()
    result = subprocess.run([sys.executable, "-c", MEMORY, str(path)], check=False, capture_output=True, text=True)
    path.unlink()
    assert result.returncode == 0, result.stderr
    highest, read = map(float, result.stdout.split())
    print(f"{highest:.0f} MiB, {read:.0f} MiB after reading")
    assert highest < 100
    assert read > 239
