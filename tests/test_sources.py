import os
import socket
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from conftest import stripes

from tfp_cvae.sources import list_datasets, load_dataset


def write_folder(folder, size=(12, 10), mode="L", count=12):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            array = generator.integers(0, 256, (*size[::-1], 3), np.uint8)
            PIL.Image.fromarray(array).convert(mode).save(folder / name / f"{index:02}.png")
    return folder


def test_embedded_mnist():
    data = load_dataset("mnist5k")
    assert data.image_shape == (28, 28, 1)
    assert data.class_names == tuple("0123456789")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4050, 450, 500]
    for split in (data.train, data.validation, data.test):
        assert len(set(np.bincount(split.labels))) == 1
    # Ink is bright: the corners are empty, the middle is not.
    assert data.train.images[:, :3].mean() < 5 < 50 < data.train.images[:, 10:18, 10:18].mean()


@pytest.mark.mnist
def test_prepared_mnist():
    data = load_dataset("mnist")
    assert data.image_shape == (28, 28, 1)
    assert [len(data.train), len(data.validation)] == [55_000, 5_000]
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert any(name == "mnist" and "prepared" in source for name, source in list_datasets())


def test_npz(tmp_path, npz):
    data = load_dataset(npz)
    assert data.class_names == ("0", "1", "2")
    images, labels = stripes()
    path = tmp_path / "given.npz"
    np.savez(
        path, images=images, labels=labels, test_images=images[:9], test_labels=labels[:9], class_names=["a", "b", "c"]
    )
    given = load_dataset(path)
    assert given.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(given.test.images, images[:9])
    assert len(given.train) + len(given.validation) == len(images)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3)])
def test_folder(tmp_path, mode, channels):
    folder = write_folder(tmp_path / "pets", mode=mode)
    (folder / "cat" / ".hidden").write_text("not a picture")
    data = load_dataset(folder)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (10, 12, channels)
    assert np.bincount(data.train.labels).tolist() == [10, 10]


def test_folder_with_grey_and_colour_pictures(tmp_path):
    folder = write_folder(tmp_path / "pets", mode="L")
    PIL.Image.new("RGB", (12, 10), "red").save(folder / "cat" / "red.png")
    assert load_dataset(folder).image_shape == (10, 12, 3)


def corrupt(folder):
    (folder / "dog" / "03.png").write_bytes((folder / "dog" / "03.png").read_bytes()[:60])


def resize(folder):
    PIL.Image.new("L", (5, 5)).save(folder / "dog" / "03.png")


def deepen(folder):
    PIL.Image.fromarray(np.full((10, 12), 40_000, np.uint16)).save(folder / "dog" / "03.png")


def empty(folder):
    (folder / "fish").mkdir()


def strange(folder):
    (folder / "dog" / "03.png").write_text("a note")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (corrupt, r"dog/03.png: expected a picture, got an unreadable file"),
        (strange, r"dog/03.png: expected a picture, got an unreadable file"),
        (resize, r"dog/03.png: expected pictures of one size, 12x10 as .*cat/00.png, got 5x5"),
        (deepen, r"dog/03.png: expected 8 bits a channel, got the mode I;16; convert it"),
        (empty, r"fish: expected at least one picture of the class, got an empty folder"),
    ],
)
def test_spoilt_folders(tmp_path, spoil, message):
    folder = write_folder(tmp_path / "pets")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_dataset(folder)


def test_mistakes(tmp_path):
    np.savez(tmp_path / "nolabels.npz", images=stripes()[0])
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    np.savez(tmp_path / "far.npz", images=stripes()[0], labels=stripes()[1] * 30_000_000)
    (tmp_path / "flat").mkdir()
    for name, message in (
        (tmp_path / "nolabels.npz", r"expected the arrays 'images' and 'labels', got \['images'\]"),
        (tmp_path / "broken.npz", "broken.npz: expected an .npz file of plain arrays, got an unreadable one"),
        (
            tmp_path / "far.npz",
            "labels: expected 0 to the number of classes - 1, with an image of each, got 0 to 60000000",
        ),
        (tmp_path / "absent.npz", "expected an existing .npz file"),
        (tmp_path / "flat", "expected a subfolder of pictures for each class, got no subfolder"),
        (tmp_path / "absent", "dataset: expected a folder with a subfolder for each class or an .npz file"),
        (
            "no_such_set",
            "dataset: expected mnist5k, a TFDS name, an .npz file or a folder of classes, got 'no_such_set'",
        ),
        ("emnist/nope", "BuilderConfig nope not found"),
        ("glue", "expected an image-classification set with 'image' and 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(name)


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_without_a_connection_the_error_comes_within_20_seconds(tmp_path, answers):
    """A proxy that refuses connections, or takes them and never answers, stands for a dead network."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path), "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy}
        environment = {key: value for key, value in environment.items() if key.lower() != "no_proxy"}
        code = (
            "import time\nfrom tfp_cvae.sources import load_dataset\nimport tensorflow_datasets\nstart = time.time()\n"
            "try:\n    load_dataset('kmnist')\nexcept ConnectionError as error:\n    print(error)\n"
            "print(time.time() - start)"
        )
        start = time.time()
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
    message, seconds = result.stdout.strip().splitlines()
    assert "point TFDS_DATA_DIR at the folder, or use mnist5k" in message
    assert "tfds build kmnist" in message
    assert float(seconds) < 20
    # Nothing keeps the process alive after the error.
    assert time.time() - start < 90
