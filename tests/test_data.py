import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
import tensorflow as tf
from conftest import stripes

from tfp_cvae.config import TrainConfig
from tfp_cvae.data import Split, make_dataset
from tfp_cvae.run import Run
from tfp_cvae.sources import load_dataset


def epochs(dataset, count):
    """`count` passes over a tf.data set: image and one_hot of each, and the sizes of the batches."""
    passes = []
    for _ in range(count):
        batches = [(image.numpy(), one_hot.numpy()) for (image, one_hot), _ in dataset]
        image, one_hot = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        passes.append((image, one_hot, [len(batch[0]) for batch in batches]))
    return passes


def test_batches_are_a_function_of_seed_and_epoch(dataset):
    first = epochs(dataset.train.batches(50, seed=1), 3)
    # Whatever ran before: global seeds, other data sets, earlier draws.
    tf.random.set_seed(99)
    np.random.seed(99)
    epochs(dataset.train.batches(50, seed=2), 2)
    second = epochs(dataset.train.batches(50, seed=1), 3)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    resumed = epochs(dataset.train.batches(50, seed=1, initial_epoch=2), 1)[0]
    np.testing.assert_array_equal(resumed[0], first[2][0])
    assert not np.array_equal(first[0][0], first[1][0])
    assert not np.array_equal(first[0][0], epochs(dataset.train.batches(50, seed=2), 1)[0][0])


def test_an_epoch_shows_every_image_once_with_its_label():
    # The image tells its index, so that the pairing can be checked after the shuffle.
    images = np.zeros((100, 8, 8, 1), np.uint8)
    bits = (np.arange(100)[:, None] >> np.arange(7)) & 1
    images.reshape(100, 64)[:, :7] = bits * 255
    labels = np.arange(100) % 3
    split = Split("train", images, labels, 3)
    for image, one_hot, sizes in epochs(split.batches(32), 2):
        index = (image.reshape(100, 64)[:, :7] @ (2 ** np.arange(7))).astype(int)
        assert sorted(index) == list(range(100))
        assert list(index) != list(range(100))
        np.testing.assert_array_equal(one_hot.argmax(axis=1), labels[index])
        assert sizes == [32, 32, 32, 4]
    assert epochs(split.batches(32, drop_remainder=True), 1)[0][2] == [32, 32, 32]


@pytest.mark.parametrize(("size", "parts"), [(8, 2), (8, 4), (3, 2), (3, 8)])
@pytest.mark.parametrize("binarization", ["dynamic", "none"])
def test_shares_together_are_the_batches(size, parts, binarization):
    images, labels = stripes(60, size=size, num_classes=1)
    split = Split("train", images, labels, 1)
    options = {"drop_remainder": True, "seed": 3, "binarization": binarization}
    whole = epochs(split.batches(16, **options), 2)
    shares = [epochs(split.batches(16, share=(index, parts), **options), 2) for index in range(parts)]
    for epoch, (image, one_hot, sizes) in enumerate(whole):
        assert sizes == [16, 16, 16]
        for array, position in ((image, 0), (one_hot, 1)):
            rows = [share[epoch][position].reshape(3, 16 // parts, *array.shape[1:]) for share in shares]
            np.testing.assert_array_equal(np.concatenate(rows, axis=1).reshape(array.shape), array)


@pytest.mark.parametrize(
    ("split", "arguments"),
    [
        ("train", {"share": (2, 2), "drop_remainder": True}),
        ("train", {"share": (0, 3), "drop_remainder": True}),
        ("train", {"share": (0, 2)}),
        ("validation", {"share": (0, 2), "drop_remainder": True}),
    ],
)
def test_shares_that_there_are_not(dataset, split, arguments):
    with pytest.raises(ValueError, match=r"share: expected \(i, n\) with 0 <= i < n"):
        getattr(dataset, split).batches(16, **arguments)


@pytest.mark.parametrize(
    ("share", "error", "message"),
    [
        (3, TypeError, r"share: expected a pair \(i, n\) of integers, got 3"),
        ((0, 1, 2), TypeError, r"share: expected a pair \(i, n\) of integers, got \(0, 1, 2\)"),
        ((0.0, 2), TypeError, "share: expected an integer >= 0, got 0.0"),
        ((0, 0), ValueError, "share: expected an integer >= 1, got 0"),
    ],
)
def test_shares_of_another_kind(dataset, share, error, message):
    with pytest.raises(error, match=message):
        dataset.train.batches(16, share=share, drop_remainder=True)


def test_keras_sees_how_many_batches_there_are(dataset):
    assert dataset.train.batches(50).cardinality().numpy() == -(-len(dataset.train) // 50)
    assert dataset.train.batches(50, drop_remainder=True).cardinality().numpy() == len(dataset.train) // 50


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_no_iterator_waits_for_a_thread_that_tunes(dataset, name):
    batches = getattr(dataset, name).batches(8)
    assert batches.options().autotune.enabled is False
    assert batches.map(lambda *batch: batch).repeat().options().autotune.enabled is False


@pytest.mark.parametrize("name", ["train", "validation"])
def test_dynamic_binarization_draws_ink_with_the_probability_of_the_pixel(name):
    # Ink stays ink, and each grey level has its own frequency. No two levels add up to 255, or one could stand for the
    # other.
    levels = np.array([0, 1, 51, 128, 230, 255], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (6, 100, 100, 1))
    # The label says which level an image has, whatever the order.
    split = Split(name, images, np.arange(6), 6)
    ((image, one_hot), target), *others = split.batches(6)
    assert not others
    np.testing.assert_array_equal(image, target)
    assert set(np.unique(image)) == {0.0, 1.0}
    label = one_hot.numpy().argmax(axis=1)
    assert sorted(label) == list(range(6))
    seen = np.empty(6)
    seen[label] = image.numpy().mean(axis=(1, 2, 3))
    expected = levels / 255
    standard_error = np.sqrt(expected * (1 - expected) / 10_000)
    assert np.all(np.abs(seen - expected) <= 5 * standard_error)
    assert seen[0] == 0
    assert seen[-1] == 1


def test_training_is_binarized_afresh_and_held_out_images_once(dataset):
    train = [image.sum() for image, _, _ in epochs(dataset.train.batches(30), 3)]
    assert len(set(train)) == 3
    held_out = epochs(dataset.test.batches(5), 2)
    np.testing.assert_array_equal(held_out[0][0], held_out[1][0])
    # The draw does not depend on the batch size, and keeps the order.
    np.testing.assert_array_equal(held_out[0][0], epochs(dataset.test.batches(24), 1)[0][0])
    np.testing.assert_array_equal(held_out[0][0], dataset.test.binarized())
    np.testing.assert_array_equal(held_out[0][1].argmax(axis=1), dataset.test.labels)
    assert not np.array_equal(dataset.test.binarized(seed=0), dataset.test.binarized(seed=1))


def test_each_batch_has_a_draw_of_its_own():
    split = Split("train", np.full((64, 28, 28, 1), 128, np.uint8), np.zeros(64, int), 1)
    drawn = [image.numpy() for (image, _), _ in split.batches(16)]
    assert len(drawn) == 4
    for one, other in itertools.combinations(drawn, 2):
        # Of independent coins half are the same, within five standard errors.
        assert abs(np.mean(one == other) - 0.5) < 5 * 0.5 / np.sqrt(one.size)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def test_splits_and_draws_are_functions_of_seeds_on_every_machine():
    """And in every version: others would be other numbers for the same command, and another data set for a run."""
    data = load_dataset("mnist5k")
    assert data.fingerprint() == "b6bb65dc517b3c3e5c694b98b29a2cb29df5079b25b60e6847bfe909f1b1d410"
    assert sha256(data.test.binarized()) == "f42487f77838e95fea0ecc9c7448b78ab842563f583a60a99531735fafda2cb1"
    (image, one_hot), _ = next(iter(data.train.batches(128, seed=0)))
    assert sha256(image) == "d850ae08f94ad3657d2ccb0d3e9910cf175cfa76c4b78a9f6c3f1c7f0d3150ca"
    assert sha256(one_hot) == "998e01cc5a8c8cfd9a2a3adfe1f1c8592e2e58d152e4eca703594d25b88bac10"


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_threshold_is_128(name):
    images = np.repeat([0, 127, 128, 255], 9).astype(np.uint8).reshape(4, 3, 3, 1)
    split = Split(name, images, np.arange(4), 4)
    (image, one_hot), _ = next(iter(split.batches(4, binarization="threshold")))
    found = image.numpy()[np.argsort(one_hot.numpy().argmax(axis=1))]
    expected = np.repeat([0, 0, 1, 1], 9).reshape(4, 3, 3, 1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(split.binarized("threshold"), expected)


@pytest.mark.parametrize("name", ["train", "test"])
def test_threshold_and_none(dataset, name):
    split = getattr(dataset, name)
    grey = epochs(split.batches(8, binarization="none"), 1)[0][0]
    np.testing.assert_allclose(np.sort(grey, axis=None), np.sort(split.images / 255, axis=None), rtol=1e-6)
    binary = epochs(split.batches(8, binarization="threshold"), 1)[0][0]
    assert binary.sum() == (split.images >= 128).sum()


def test_batches_without_labels(dataset):
    image, target = next(iter(dataset.train.batches(8, conditional=False)))
    assert image.shape == (8, 8, 8, 1)
    np.testing.assert_array_equal(image, target)


def test_splits_keep_the_share_of_each_class_and_share_no_image():
    images, labels = stripes(300)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(300) % 250, np.arange(300) // 250
    data = make_dataset("stripes", ["a", "b", "c"], (images, labels))
    splits = (data.train, data.validation, data.test)
    assert [np.bincount(split.labels).tolist() for split in splits] == [[81] * 3, [9] * 3, [10] * 3]
    identities = np.concatenate(
        [split.images[:, 0, 0, 0] + 250 * split.images[:, 0, 1, 0].astype(int) for split in splits]
    )
    assert sorted(identities) == list(range(300))
    again = make_dataset("stripes", ["a", "b", "c"], (images, labels))
    np.testing.assert_array_equal(data.test.images, again.test.images)
    # Nor are they the first or the last images of a class, which some sources sort by who wrote them.
    for split in splits[1:]:
        for label in range(3):
            rows = split.images[split.labels == label].reshape(-1, 1, 64)
            place = np.argmax(np.all(rows == images[labels == label].reshape(-1, 64), axis=2), axis=1)
            assert place.max() - place.min() > len(place)


def test_a_data_set_cannot_be_changed(dataset):
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.images[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.train.labels = None


def test_kinds_of_images():
    grey, labels = stripes()
    expected = make_dataset("x", "abc", (grey, labels)).train.images
    np.testing.assert_array_equal(make_dataset("x", "abc", (grey / 255, labels)).train.images, expected)
    np.testing.assert_array_equal(make_dataset("x", "abc", (grey[..., 0].astype(int), labels)).train.images, expected)
    binary = make_dataset("x", "abc", (grey >= 128, labels)).train.images
    np.testing.assert_array_equal(binary, np.where(expected >= 128, 255, 0))


IMAGES, LABELS = stripes(60)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES[0, 0], LABELS, ValueError, r"train images: expected shape \[n, height, width\] or"),
        (IMAGES[:0], LABELS[:0], ValueError, r"expected at least one image and one pixel, got shape \[0, 8, 8, 1\]"),
        (IMAGES.astype(str), LABELS, TypeError, "expected integers in .* got dtype <U"),
        (IMAGES.astype(float), LABELS, ValueError, r"expected floats in \[0, 1\], got 0.0 to 255.0; divide"),
        (np.where(IMAGES > 250, np.nan, 0.5), LABELS, ValueError, r"expected floats in \[0, 1\], got nan to nan"),
        (IMAGES.astype(int) - 1, LABELS, ValueError, r"expected integers in \[0, 255\], got -1 to 254"),
        ((IMAGES > 128).astype(int), LABELS, ValueError, "got only 0 and 1; give binary images as bool"),
        (IMAGES, LABELS.astype(float), TypeError, r"train labels: expected an .*, got an array of float64 \[60\]"),
        (IMAGES, LABELS[:-1], ValueError, r"train labels: expected shape \[60\], one for each image, got \[59\]"),
        (IMAGES, LABELS + 1, ValueError, "train labels: expected 0 to 2, got 3"),
        (IMAGES, LABELS - 2, ValueError, "train labels: expected 0 to 2, got -2"),
        (IMAGES, LABELS % 2, ValueError, "expected at least one training image of each class, got none of 'right'"),
        (
            IMAGES[:3],
            LABELS[:3],
            ValueError,
            "expected at least 6 images to split off a tenth .*, got 3 that are in no",
        ),
        (
            np.ma.masked_less(IMAGES, 9),
            LABELS,
            ValueError,
            r"train images: expected no masked values, got [\d,]+; fill",
        ),
        (IMAGES, np.ma.masked_less(LABELS, 1), ValueError, "train labels: expected no masked values, got 20; fill"),
    ],
)
def test_mistakes(images, labels, error, message):
    with pytest.raises(error, match=message):
        make_dataset("stripes", ["left", "middle", "right"], (images, labels))


@pytest.mark.parametrize(
    ("class_names", "error", "message"),
    [
        (["a", "b", None], TypeError, "class_names: expected text or integers, got None of type NoneType"),
        (["a", "b", 3.0], TypeError, "class_names: expected text or integers, got 3.0 of type float"),
        (["a", "b", True], TypeError, "class_names: expected text or integers, got True of type bool"),
        ([["a", "b", "c"]], TypeError, "class_names: expected text or integers, got .'a', 'b', 'c'. of type list"),
        (["a", "b", ""], ValueError, "class_names: expected 1 to 200 printable characters, got ''; rename the class"),
        (["a", "b", "c\n"], ValueError, r"class_names: expected 1 to 200 printable characters, got 'c\\n'; rename"),
        ([], ValueError, r"class_names: expected a list of at least one class, got \[\]"),
        (np.array("a"), ValueError, "class_names: expected a list of at least one class, got 'a'"),
        (None, TypeError, "class_names: expected a list of them, one for each class, got NoneType"),
        (3, TypeError, "class_names: expected a list of them, one for each class, got int"),
        ({"a", "b", "c"}, TypeError, "class_names: expected a list of them, one for each class, got set"),
        ([1, "1", 2], ValueError, "expected class names that differ, got '1' more than once"),
    ],
)
def test_class_names_that_cannot_be(class_names, error, message):
    with pytest.raises(error, match=f"^stripes: {message}"):
        make_dataset("stripes", class_names, (IMAGES, LABELS))


def test_class_names_are_text_however_they_are_given(tmp_path):
    expected = make_dataset("stripes", ["0", "1", "2"], (IMAGES, LABELS))
    for class_names in ("012", [0, 1, 2], range(3), np.arange(3), np.array(["0", "1", "2"]), [np.str_("0"), 1, "2"]):
        data = make_dataset("stripes", class_names, (IMAGES, LABELS))
        assert {type(name) for name in data.class_names} == {str}
        assert data.fingerprint() == expected.fingerprint()
        # Which a run keeps.
        run = Run.create(tmp_path / "run", TrainConfig(), data, overwrite=True)
        assert Run.load(run.path).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"train": None}, TypeError, r"train: expected a pair \(images, labels\), got NoneType"),
        ({"train": IMAGES}, TypeError, r"train: expected a pair \(images, labels\), got ndarray"),
        ({"train": (IMAGES, LABELS, LABELS)}, TypeError, r"train: expected a pair \(images, labels\), got 3 of them"),
        ({"test": IMAGES[:2]}, TypeError, r"test: expected a pair \(images, labels\), got ndarray"),
        ({"train": ([[[1, 2]], [[1]]], [0, 1])}, ValueError, "train images: expected an array, or lists of the same"),
        ({"train": (IMAGES, [[0, 1], [2]])}, ValueError, "train labels: expected an array, or lists of the same len"),
    ],
)
def test_splits_that_are_none(given, error, message):
    with pytest.raises(error, match=f"^stripes: {message}"):
        make_dataset("stripes", "abc", **{"train": (IMAGES, LABELS), **given})


def test_a_class_that_is_split_off():
    message = "expected at least one training image of each class, got none of 'a', as its 1 are in other splits; add"
    with pytest.raises(ValueError, match=message):
        make_dataset("ten", "abcdefghij", (IMAGES[:10], np.arange(10)))


def test_splits_of_different_shape():
    with pytest.raises(ValueError, match=r"test images: expected the shape of the train images, \(8, 8, 1\), got"):
        make_dataset("stripes", "abc", (IMAGES, LABELS), test=(IMAGES[:, :4], LABELS))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
        (
            {"batch_size": 10_000, "drop_remainder": True},
            ValueError,
            "batch_size: expected at least one batch of .* train images, got none of 10000; use a smaller batch, or drop_",
        ),
        ({"batch_size": 32.0}, TypeError, "batch_size: expected an integer >= 1, got 32.0"),
        ({"batch_size": 32, "seed": 1.5}, TypeError, "seed: expected an integer >= 0, got 1.5"),
        # It would be that of another seed.
        ({"batch_size": 32, "seed": 2**32 + 1}, ValueError, "seed: expected an integer >= 0 and < 2147483648"),
        (
            {"batch_size": 32, "labelled_per_batch": "4"},
            TypeError,
            "labelled_per_batch: expected an integer >= 1, got '4'",
        ),
        ({"batch_size": 32, "initial_epoch": -1}, ValueError, "initial_epoch: expected an integer >= 0, got -1"),
    ],
)
def test_batches_that_cannot_be_made(dataset, settings, error, message):
    with pytest.raises(error, match=message):
        dataset.train.batches(**settings)


def test_few_labels_in_fewer_images_than_a_batch(dataset):
    """The labelled ones, which may be repeated, are no larger a share of the batch than of the images."""
    train = dataset.with_few_labels(12, seed=0).train
    ((_, one_hot), _) = next(iter(train.batches(10_000)))
    has_label = np.asarray(one_hot).any(axis=1)
    num_unlabelled = int(np.sum(train.labels == -1))
    assert np.sum(~has_label) == num_unlabelled
    assert np.sum(has_label) == max(12, len(train) // 16)
    message = "batch_size: expected at least one batch of .* train images, got none of"
    with pytest.raises(ValueError, match=message):
        train.batches(len(train), drop_remainder=True, labelled_per_batch=5)
    with pytest.raises(ValueError, match=f"{message} 8; give more images"):
        dataset.train.rows([]).batches(8)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_fewer_images_than_a_batch_are_one_batch(dataset, name):
    split = getattr(dataset, name)
    ((image, one_hot), target) = next(iter(split.batches(10_000, binarization="none")))
    assert split.num_batches(10_000) == len(split.batches(10_000)) == 1
    np.testing.assert_array_equal(image, target)
    found = sorted((np.argmax(label), pixels.tobytes()) for label, pixels in zip(one_hot, image.numpy(), strict=True))
    grey = (split.images / np.float32(255)).astype(np.float32)
    assert found == sorted((label, pixels.tobytes()) for label, pixels in zip(split.labels, grey, strict=True))


def test_numbers_of_batches_and_rows_that_cannot_be(dataset):
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got 0"):
        dataset.train.num_batches(0)
    with pytest.raises(TypeError, match="rows: expected integers or a mask of bool, got float64"):
        dataset.test.binarized(rows=[0.9])
    assert dataset.test.binarized(rows=[]).shape == (0, 8, 8, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (3, r"expected \[m\] numbers of images, or a mask \[24\] of bool, got int64 \[\]"),
        ([[1, 2]], r"expected \[m\] numbers of images, or a mask \[24\] of bool, got int64 \[1, 2\]"),
        ([True, False], r"expected \[m\] numbers of images, or a mask \[24\] of bool, got bool \[2\]"),
        ([0, 24], "expected numbers below 24, as there are 24 test images, got 0 to 24"),
        ([[1], [1, 2]], "expected an array, or lists of the same length in lists, got none that NumPy takes"),
    ],
)
def test_rows_that_there_are_not(dataset, rows, message):
    with pytest.raises((IndexError, ValueError), match=f"^rows: {message}"):
        dataset.test.binarized(rows=rows)
    with pytest.raises((IndexError, ValueError), match=f"^index: {message}"):
        dataset.test.rows(rows)


def test_labels_that_are_not_looked_at_decide_nothing():
    """Neither which images keep a label, nor which are for validation."""
    images, labels = stripes(200)
    test = stripes(20, seed=1)
    few = make_dataset("some", ["a", "b", "c"], (images, labels), test=test).with_few_labels(6, seed=4)
    changed = labels.copy()
    order = np.random.default_rng(4).permutation(200)
    changed[order[60:]] = np.random.default_rng(0).permutation(changed[order[60:]])
    other = make_dataset("some", ["a", "b", "c"], (images, changed), test=test).with_few_labels(6, seed=4)
    assert np.sum(changed != labels) > 60
    assert few.fingerprint() == other.fingerprint()


def test_few_labels_are_of_each_class_as_many_and_a_function_of_the_seed(dataset):
    few = dataset.with_few_labels(12, seed=1)
    kept = few.train.labels != -1
    np.testing.assert_array_equal(np.bincount(few.train.labels[kept]), [4, 4, 4])
    label_of = {image.tobytes(): label for image, label in zip(*dataset._source(), strict=True)}
    assert [label_of[image.tobytes()] for image in few.train.images[kept]] == few.train.labels[kept].tolist()
    assert set(few.validation.labels) == {-1}
    np.testing.assert_array_equal(few.test.labels, dataset.test.labels)
    # The validation images are others, as those of before were chosen by their labels.
    assert all(len(getattr(few, split)) == len(getattr(dataset, split)) for split in ("train", "validation", "test"))
    pools = [np.concatenate([data.train.images, data.validation.images]) for data in (few, dataset)]
    assert {image.tobytes() for image in pools[0]} == {image.tobytes() for image in pools[1]}
    np.testing.assert_array_equal(few.class_probabilities(), [1 / 3] * 3)
    np.testing.assert_array_equal(few.train.labels, dataset.with_few_labels(12, seed=1).train.labels)
    assert np.any(few.train.labels != dataset.with_few_labels(12, seed=2).train.labels)
    assert few.fingerprint() != dataset.fingerprint()
    np.testing.assert_array_equal(few.train.one_hot().sum(axis=1), kept)
    assert len(few.train.labelled()) == 12
    assert repr(few).endswith("3 classes, 12 labels")


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (10, ValueError, "num_labels: expected a multiple of 3, the same number of each class, got 10"),
        (3000, ValueError, r"num_labels: expected at most 2\d\d, as there are \d\d training images with the label"),
        (0, ValueError, "num_labels: expected an integer >= 1, got 0"),
        (3.0, TypeError, "num_labels: expected an integer >= 1, got 3.0"),
    ],
)
def test_numbers_of_labels_that_cannot_be(dataset, number, error, message):
    with pytest.raises(error, match=message):
        dataset.with_few_labels(number)


def test_images_without_label_are_left_for_validation_and_training():
    images, labels = stripes(90)
    split_off = make_dataset("some", "abc", (images, labels), test=(images, labels))
    for num_labels in (81, 90):
        message = "expected at most 78, so that of 90 training images 9 for validation and one for training have no"
        with pytest.raises(ValueError, match=f"^num_labels: {message} label, got {num_labels}; lower it"):
            split_off.with_few_labels(num_labels)
    few = split_off.with_few_labels(78)
    assert few.validation.labels.tolist() == [-1] * 9
    assert np.sum(few.train.labels == -1) == 3
    given = make_dataset("some", "abc", (images, labels), (images, labels), (images, labels))
    with pytest.raises(ValueError, match="expected at most 87, so that of 90 training images one for training have"):
        given.with_few_labels(90)
    assert np.sum(given.with_few_labels(87).train.labels == -1) == 3


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_batches_of_labelled_and_unlabelled_images(dataset, drop_remainder):
    split = dataset.with_few_labels(9).train
    # Each image tells its own number.
    split = dataclasses.replace(split, images=np.arange(len(split), dtype=np.uint8).reshape(-1, 1, 1, 1))
    assert len(split) < 256
    options = {"binarization": "none", "labelled_per_batch": 4, "drop_remainder": drop_remainder}
    batches = split.batches(16, **options)
    num_unlabelled = len(split) - 9
    expected = num_unlabelled // 12 + (not drop_remainder and num_unlabelled % 12 > 0)
    assert split.num_batches(16, labelled_per_batch=4, drop_remainder=drop_remainder) == expected
    orders = []
    for _ in range(2):
        seen_labelled, seen = [], []
        for (image, one_hot), _ in batches:
            number = np.rint(255 * image.numpy().ravel()).astype(int)
            np.testing.assert_array_equal(one_hot, split.one_hot()[number])
            assert np.all(one_hot[:4].numpy().sum(axis=1) == 1)
            assert np.all(one_hot[4:] == 0)
            seen_labelled.extend(number[:4])
            seen.extend(number[4:])
        assert len(set(seen)) == len(seen) == (expected * 12 if drop_remainder else num_unlabelled)
        counts = np.bincount(seen_labelled)[split.labels[: max(seen_labelled) + 1] != -1]
        assert len(counts) == 9
        assert counts.max() - counts.min() <= 1
        orders.append(seen)
    assert orders[0] != orders[1]


def test_a_share_of_mixed_batches_is_that_part_of_each(dataset):
    split = dataset.with_few_labels(9).train
    options = {"labelled_per_batch": 4, "drop_remainder": True}
    whole = list(split.batches(16, **options))
    for index in range(2):
        for (part, _), (batch, _) in zip(split.batches(16, share=(index, 2), **options), whole, strict=True):
            for array, other in zip(part, batch, strict=True):
                np.testing.assert_array_equal(array, other[8 * index : 8 * index + 8])


@pytest.mark.parametrize(("labels", "expected"), [(12, 1), (90, 7), (150, 12)])
def test_labelled_images_have_their_share_of_a_batch(dataset, labels, expected):
    batches = dataset.with_few_labels(labels).train.batches(16)
    assert batches.epochs.settings.labelled_per_batch == expected


@pytest.mark.parametrize("number", [0, 16])
def test_batches_without_labelled_or_without_unlabelled_images(dataset, number):
    with pytest.raises(ValueError, match="labelled_per_batch: expected"):
        dataset.with_few_labels(9).train.batches(16, labelled_per_batch=number)


def test_images_without_label_in_the_source():
    images, labels = stripes(60)
    some = np.where(np.arange(60) < 9, labels, -1)
    data = make_dataset("some", ["a", "b", "c"], (images, some), test=(images, labels))
    assert np.sum(data.train.labels != -1) == 9
    assert set(data.validation.labels) == {-1}
    with pytest.raises(ValueError, match="expected test images and their labels where training images have none"):
        make_dataset("some", ["a", "b", "c"], (images, some))
    with pytest.raises(ValueError, match="test labels: expected 0 to 2, got -1"):
        make_dataset("some", ["a", "b", "c"], (images, labels), test=(images, some))
    with pytest.raises(ValueError, match="expected at least one training image of each class, got none of 'c'"):
        make_dataset("some", ["a", "b", "c"], (images, np.where(labels == 2, -1, labels)), test=(images, labels))


def test_binarized_rows_by_number_and_by_mask(dataset):
    whole, wanted = dataset.train.binarized(), dataset.train.labels == 1
    np.testing.assert_array_equal(dataset.train.binarized(rows=wanted), whole[wanted])
    np.testing.assert_array_equal(dataset.train.binarized(rows=[5, -1, 5]), whole[[5, -1, 5]])
    assert dataset.train.binarized(rows=[]).shape == (0, 8, 8, 1)
