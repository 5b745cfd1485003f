"""A folder with a subfolder of pictures for each class."""

import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import PIL.ExifTags
import PIL.Image

from tfp_cvae import cache, checks
from tfp_cvae.archive import check_packing, file_size, one_line
from tfp_cvae.array_files import map_arrays
from tfp_cvae.data import Dataset, make_dataset

# Those of the formats that Pillow knows in which pictures are kept; for others it runs a program, or trusts the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY = ("1", "L", "LA")
_MODES = (*_GREY, "P", "RGB", "RGBA", "CMYK", "YCbCr")
# Of a progressive JPEG, which has about ten; each costs the time of a whole picture, however short it is.
_MAX_SCANS = 50
# By the orientation of EXIF.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
_TILE_WIDTH, _TILE_LENGTH = 322, 323

# Names of subfolders that are splits, not classes.
_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")

_Taken = TypeVar("_Taken")


def load_pictures(path: pathlib.Path) -> Dataset:
    """Loads the pictures of a folder: into memory, or, if they are too large for it, into files.

    Args:
        path: An existing folder.

    Returns:
        The data set.

    Raises:
        ValueError: If it is not as expected.
        OSError: If there is no room for the files.
    """
    try:
        folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        members = {
            folder: sorted(child for child in folder.iterdir() if not child.name.startswith(".")) for folder in folders
        }
    except OSError as error:
        raise ValueError(
            f"{one_line(path)}: expected a folder of classes that can be read, got {one_line(error)}; "
            "change its permissions"
        ) from error
    if not folders:
        raise ValueError(f"{one_line(path)}: expected a subfolder of pictures for each class, got no subfolder")
    if len(folders) > 1 and all(folder.name.lower() in _SPLITS for folder in folders):
        raise ValueError(
            f"{one_line(path)}: expected a subfolder of pictures for each class, got subfolders for splits: "
            f"{', '.join(folder.name for folder in folders)}; put all pictures of a class into one subfolder, which is "
            "split when it is loaded, or make an .npz file with images, labels, test_images and test_labels"
        )
    for folder in folders:
        # Before the pictures are decoded, which takes its time.
        checks.class_name(one_line(path), folder.name)
        if not members[folder]:
            raise ValueError(f"{one_line(folder)}: expected at least one picture of the class, got an empty folder")
    files = [file for folder in folders for file in members[folder]]
    labels = np.repeat(np.arange(len(folders)), [len(members[folder]) for folder in folders])
    width, height = next(_each(files[:1], _size))
    # As if there were colours: which there are is not known before all have been looked at.
    large = 3 * len(files) * height * width > cache.MAX_BYTES_IN_MEMORY
    images = _on_disk(path, files, (height, width)) if large else _stacked(list(_each(files, _decoded)))
    return make_dataset(one_line(path), [folder.name for folder in folders], (images, labels))


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1) for picture in pictures]
    return np.stack(pictures)


def _on_disk(path: pathlib.Path, files: Sequence[pathlib.Path], size: tuple[int, int]) -> np.ndarray:
    """The pictures as a memory map of a file, into which they are decoded if they have not been before."""

    def write(folder: pathlib.Path) -> None:
        shape = (*size, 1 if all(_each(files, _is_grey)) else 3)
        pictures = (np.broadcast_to(np.atleast_3d(picture), shape) for picture in _each(files, _decoded))
        cache.write_images(folder / "images.npy", (len(files), *shape), pictures)

    kept = [(file.parent.name, file.name, file_size(file, "picture"), os.stat(file).st_mtime_ns) for file in files]
    arrays = cache.decoded(one_line(path), ("pictures", os.path.abspath(path)), kept, ["images"], write)
    return map_arrays(arrays, ["images"])["images"]


def _decoded(picture: Any) -> np.ndarray:
    """`[height, width]` or `[height, width, 3]` uint8, upright, on white where it is transparent, as on paper."""
    kind, (width, height) = "L" if _is_grey(picture) else "RGB", _size(picture)
    turn = _turn(picture)
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(paper, picture)
    array = np.asarray(picture.convert(kind))
    if array.shape[:2] != (height, width):
        raise ValueError(f"{array.shape[1]}x{array.shape[0]} pixels instead of {width}x{height}")
    return array


def _is_grey(picture: Any) -> bool:
    return picture.mode in _GREY


def _mode(picture: Any) -> str:
    """As Pillow names it, but also of colours of 16 bits, of which it reads 8."""
    if picture.format == "PPM":
        cut = any(isinstance(tile[3], tuple) and tile[3][1] > 255 for tile in picture.tile)
    else:
        cut = picture.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in picture.tile)
    return f"{picture.mode};16" if cut and picture.mode in _MODES else picture.mode


def _turn(picture: Any) -> PIL.Image.Transpose | None:
    """How a picture is turned to be upright, of the formats of cameras; Pillow turns a TIFF itself."""
    if picture.format not in ("JPEG", "MPO", "WEBP"):
        return None
    try:
        return _TURNS.get(picture.getexif().get(PIL.ExifTags.Base.Orientation))
    except Exception:
        # Of what is no EXIF, Pillow raises anything; the picture itself may be whole.
        return None


def _size(picture: Any) -> tuple[int, int]:
    """Width and height as it is seen."""
    width, height = picture.size
    return (height, width) if _turn(picture) in _ON_ITS_SIDE else (width, height)


def _each(files: Sequence[pathlib.Path], take: Callable[[Any], _Taken]) -> Iterator[_Taken]:
    """What a function takes of each picture; all are of one size, and looked at before anything of them is decoded."""
    first_size = None
    for file in files:
        on_disk = file_size(file, "picture")
        try:
            # By its name, Pillow would map a TIFF that lies on its side as if it did not.
            with file.open("rb") as opened, PIL.Image.open(opened, formats=_FORMATS) as picture:
                mode, size = _mode(picture), _size(picture)
                first_size = first_size or size
                decoded = size[0] * size[1] * (1 if _is_grey(picture) else 3)
                if mode in _MODES and size == first_size:
                    check_packing(decoded, on_disk)
                    _check_work(file, picture)
                    taken = take(picture)
        # Pillow lets through whatever a decoder stumbles over.
        except Exception as error:
            reason = one_line(error) or type(error).__name__
            raise ValueError(
                f"{one_line(file)}: expected a picture, got an unreadable file: {reason}; mend or remove it"
            ) from error
        _check_kind(file, mode, size, files[0], first_size)
        yield taken


def _check_kind(
    file: pathlib.Path, mode: str, size: tuple[int, int], first: pathlib.Path, first_size: tuple[int, int]
) -> None:
    if mode not in _MODES:
        raise ValueError(f"{one_line(file)}: expected 8 bits a channel, got the mode {mode}; convert it")
    if size != first_size:
        raise ValueError(
            f"{one_line(file)}: expected pictures of one size, {first_size[0]}x{first_size[1]} as {one_line(first)}, "
            f"got {size[0]}x{size[1]}; resize them"
        )


def _check_work(file: pathlib.Path, picture: Any) -> None:
    """Refuses a picture that takes much more time or memory to decode than its size says."""
    # With a header for further pictures, Pillow names it MPO.
    if picture.format in ("JPEG", "MPO") and picture.info.get("progressive"):
        scans = file.read_bytes().count(b"\xff\xda")
        if scans > _MAX_SCANS:
            raise ValueError(f"{scans} scans, more than {_MAX_SCANS}; save it again")
    if picture.format == "TIFF":
        tile = picture.tag_v2.get(_TILE_WIDTH, 0) * picture.tag_v2.get(_TILE_LENGTH, 0)
        if tile > max(2**20, 4 * math.prod(picture.size)):
            raise ValueError(f"tiles of {tile:,} pixels, more than the picture has; save it again")
