"""Whatever a reader is given: it returns, or it raises one clear error, soon, in little memory, and does nothing else.

What is good it reads, and a clear error says what was expected. The inputs are drawn by Hypothesis: values, and real files that are spoilt. `--fuzz-inputs N` says how many in all.
"""

import collections
import contextlib
import copy
import io
import json
import math
import os
import pathlib
import pickle
import re
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib

import numpy as np
import PIL.Image
import pytest
import tf_keras as keras
from conftest import stripes, unpickling
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tfp_cvae import cli, commands, model_files
from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
from tfp_cvae.config import TrainConfig
from tfp_cvae.data import make_dataset
from tfp_cvae.layers import dtype_policy
from tfp_cvae.losses import NegativeELBO, SemiSupervisedNegativeELBO
from tfp_cvae.run import Run
from tfp_cvae.sources import load_dataset

_SECONDS = 10
# More than the process had before the input.
_BYTES = 2**30
_LONGEST_MESSAGE = 1000
# What each message says, of which a text of NumPy or of the system has nothing.
_EXPECTED = ": expected "
# Of the command line, as tyro has its own words for a flag that there is not.
_EXPECTED_OR_HELP = f"{_EXPECTED}|; (did you mean .*)?see tfp-cvae .*--help"

# Of all inputs, what each reader is given.
_SHARES = {
    "settings": 0.22,
    "names": 0.04,
    "npz": 0.15,
    "arrays": 0.05,
    "pictures": 0.22,
    "folders": 0.06,
    "junk files": 0.03,
    "run folders": 0.08,
    "models": 0.09,
    "command line": 0.06,
}

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "socket.connect")


class Long(str):
    """A text that is not printed when a test fails."""

    __slots__ = ()

    def __repr__(self):
        return f"Long({self[:9]!r} ..., {len(self)} characters)"


_DEEP = Long("[" * 100_000)


class HungError(BaseException):
    """No reader catches it."""


class Watch:
    """Runs a reader on an input, and looks at all that it does.

    Args:
        folder: Where it may write.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.canary = folder / "executed"
        self.active = False
        self.deeds = []
        self.tried = collections.Counter()
        self.refused = collections.Counter()
        self.slowest = collections.defaultdict(float)
        self.largest = collections.defaultdict(int)
        # Cannot be taken back, hence `active`.
        sys.addaudithook(self._audit)

    def _audit(self, event, arguments):
        if not self.active:
            return
        if event in _RUNS:
            self.deeds.append((event, repr(arguments)[:200]))
        writes = event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & _WRITES
        if not writes and event not in _CHANGES:
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path != os.devnull and not path.startswith(f"{self.folder}{os.sep}"):
            self.deeds.append((event, path))

    def __call__(self, reader, function, *arguments, also=(), expected=_EXPECTED):
        """What `function` returns, or None after an error."""
        self.tried[reader] += 1
        before = _reset_peak()
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
        self.active, result = True, None
        try:
            result = function(*arguments)
        except (OSError, TypeError, ValueError) as error:
            self.refused[reader] += 1
            check_message(str(error), expected)
        except HungError:
            raise AssertionError(f"more than {_SECONDS} s") from None
        except also:
            pass
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds, grown = time.monotonic() - start, _peak() - before
        self.slowest[reader] = max(self.slowest[reader], seconds)
        self.largest[reader] = max(self.largest[reader], grown)
        assert seconds < _SECONDS
        assert grown < _BYTES
        assert not self.canary.exists(), "code in the input was executed"
        assert not self.deeds, self.deeds.pop()
        return result


def check_message(message, expected):
    assert message, "no message"
    assert len(message) < _LONGEST_MESSAGE
    assert message.isprintable(), f"more than one line, or not printable: {message!r}"
    assert re.search(expected, message), f"nothing of what was expected: {message!r}"


def _status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _peak():
    try:
        return _status("VmHWM")
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak():
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "fuzz_canary.py").write_text(
        f"import pathlib\npathlib.Path({str(folder / 'executed')!r}).touch()\n\n\nclass Dense: pass\n"
    )
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder / "work")
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)
        previous = signal.signal(signal.SIGALRM, _hung)
        watch = Watch(folder)
        yield watch
        watch.active = False
        signal.signal(signal.SIGALRM, previous)
    assert not list((folder / "work").iterdir())


def _hung(number, frame):
    raise HungError


@pytest.fixture
def fuzz(request, watch, record_property):
    """Draws as many inputs for a reader as its share, and reports them."""
    readers = []

    def draw(reader, strategy, check, *, some_good=True):
        readers.append(reader)
        tried, refused = watch.tried[reader], watch.refused[reader]
        count = max(10, round(_SHARES[reader] * request.config.getoption("--fuzz-inputs")))

        @settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(strategy)
        def run(value):
            check(value)

        start = time.monotonic()
        run()
        readers.append(time.monotonic() - start)
        if some_good:
            assert watch.refused[reader] - refused < watch.tried[reader] - tried, "all that was drawn was refused"

    yield draw
    for reader, seconds in zip(readers[::2], readers[1::2], strict=False):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        record_property(
            "fuzz",
            f"{reader:12} {watch.tried[reader]:6,} inputs, {watch.refused[reader]:6,} refused, {seconds:5.0f} s, "
            f"slowest {watch.slowest[reader]:.2f} s, at most {watch.largest[reader] / 2**20:.0f} MiB more; "
            f"peak of the process {peak:.2f} GiB",
        )


# Spoilt bytes: what to do, where in the file, and with what.
_NUMBERS = st.sampled_from([0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
_PLACE = st.floats(0, 1, exclude_max=True)
_SPOILING = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), _PLACE, st.integers(1, 255)),
        st.tuples(st.just("cut"), _PLACE, st.none()),
        st.tuples(st.just("insert"), _PLACE, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("repeat"), _PLACE, st.integers(1, 400)),
        st.tuples(st.just("remove"), _PLACE, st.integers(1, 40)),
        st.tuples(st.just("number"), _PLACE, st.tuples(_NUMBERS, st.sampled_from([1, 2, 4, 8]), st.booleans())),
        st.tuples(st.just("swap"), _PLACE, _PLACE),
    ),
    min_size=1,
    max_size=6,
)


def spoil(data, spoiling, keep=0):
    """Spoils bytes, all but the first."""
    data = bytearray(data)
    for what, place, value in spoiling:
        at = keep + int(place * max(0, len(data) - keep))
        if what == "flip" and at < len(data):
            data[at] ^= value
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = value
        elif what == "repeat":
            data[at:at] = data[at : at + value]
        elif what == "remove":
            del data[at : at + value]
        elif what == "number":
            number, size, big = value
            data[at : at + size] = (number % 256**size).to_bytes(size, "big" if big else "little")
        elif what == "swap":
            other = keep + int(value * max(0, len(data) - keep))
            data[at : at + 8], data[other : other + 8] = data[other : other + 8], data[at : at + 8]
    return bytes(data)


# Spoilt JSON: a place in the tree, and what comes there.
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([2**31, 2**63, 10**400, -(10**18), Long("x" * 5000), "\ud800", "\n\x00", 1e308, [[]], {"": {}}]),
)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)


def places(value, path=()):
    """Paths of all values in a tree."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(tree, changes):
    """A tree with some of its values replaced, removed, or put in each other's place."""
    tree = copy.deepcopy(tree)
    for place, how, new in changes:
        paths = list(places(tree))[1:]
        if not paths:
            return new
        *way, last = paths[int(place * len(paths))]
        parent, new = tree, copy.deepcopy(new)
        for key in way:
            parent = parent[key]
        if how == "remove":
            del parent[last]
        elif how == "move":
            parent[last] = copy.deepcopy(tree)
        elif how == "rename" and isinstance(parent, dict):
            parent[str(new)[:20]] = parent.pop(last)
        else:
            parent[last] = new
    return tree


def changes(values):
    how = st.sampled_from(["replace", "replace", "replace", "remove", "rename", "move"])
    return st.lists(st.tuples(_PLACE, how, values), min_size=1, max_size=3)


def json_text(tree):
    # Deeper than Python can write, after a few moves.
    try:
        return json.dumps(tree)
    except (RecursionError, ValueError):
        return _DEEP


# Zip files: members, and fields of their headers that lie.
_CENTRAL_FIELDS = {"version": (6, 2), "flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4)} | {
    "size": (24, 4),
    "name": (28, 2),
    "extra": (30, 2),
    "attributes": (38, 4),
    "offset": (42, 4),
}
_LIES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(sorted(_CENTRAL_FIELDS)), _NUMBERS), min_size=0, max_size=2
)


def zipped(members, lies=(), compression=zipfile.ZIP_STORED):
    """A zip file of pairs of name and bytes, in whose directory some numbers are replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        # Two of one name are meant.
        warnings.simplefilter("ignore")
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    data = bytearray(buffer.getvalue())
    for number, field, value in lies:
        at = -1
        for _ in range(number % len(members) + 1):
            at = data.find(b"PK\x01\x02", at + 1)
        offset, size = _CENTRAL_FIELDS[field]
        if at >= 0:
            data[at + offset : at + offset + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(data)


class Malice:
    """Opening it as a pickle touches a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


_FIELDS = {
    "dataset": "mnist5k",
    "binarization": "none",
    "conditional": True,
    "network": "conv",
    "latent_size": 3,
    "width": None,
    "depth": 2,
    "prior": "flow",
    "precision": "float32",
    "objective": "iwae",
    "num_samples": 3,
    "kl_weight": 1.0,
    "kl_warmup_epochs": 0,
    "free_bits": 0.0,
    "epochs": 9,
    "batch_size": 16,
    "learning_rate": 0.001,
    "learning_rate_schedule": "cosine",
    "ema_momentum": 0.5,
    "seed": 3,
}


def test_settings(fuzz, watch):
    text = json.dumps(_FIELDS)
    assert watch("settings", TrainConfig.from_json, text) == TrainConfig(**_FIELDS)
    keys = st.one_of(st.sampled_from(sorted(_FIELDS)), st.text(max_size=8), st.integers(), st.none())
    values = st.one_of(
        st.tuples(st.just("dict"), st.dictionaries(keys, _JSON, max_size=4)),
        st.tuples(st.just("dict"), _JSON),
        st.tuples(st.just("json"), st.one_of(st.text(max_size=30), _JSON.map(json_text))),
        st.tuples(st.just("json"), changes(_JSON).map(lambda new: json_text(replaced(_FIELDS, new)))),
        st.tuples(st.just("json"), _SPOILING.map(lambda how: spoil(text.encode(), how).decode(errors="replace"))),
        st.tuples(st.just("json"), st.sampled_from([_DEEP, Long('{"a":' * 100_000), Long("9" * 10_000), "-Infinity"])),
    )

    def check(value):
        kind, content = value
        found = watch("settings", TrainConfig.from_json if kind == "json" else TrainConfig.from_dict, content)
        assert found is None or isinstance(found, TrainConfig)

    fuzz("settings", values, check)


def test_names(fuzz, watch):
    tricks = [
        *("../x", "/etc/passwd", "/dev/zero", "/dev/stdin", "mnist:99.0.0", "mnist/../..", "gs://bucket/mnist", ""),
        *(
            Long("x" * 100_000),
            Long("a/" * 5000),
            "http://127.0.0.1/mnist",
            "huggingface:mnist",
            "kaggle:mnist",
            "mnist:",
            "~root",
        ),
        *(
            "mnist/data_dir=..",
            "mnist?",
            "file:///etc",
            "\ud800",
            "a\x00b.npz",
            "\n.npz",
            ".npz",
            "/proc/self/mem",
            ".",
        ),
    ]
    characters = st.characters(codec=None)
    names = st.one_of(
        st.sampled_from(tricks),
        st.text(characters, max_size=30),
        st.text(characters, max_size=20).map(lambda text: f"{text}.npz"),
        st.from_regex(r"qz[a-z_]{0,8}(/[a-z0-9.]{0,8})?(:[0-9.*]{0,6})?", fullmatch=True),
        st.one_of(st.none(), st.integers(), st.binary(max_size=5), st.lists(st.text(max_size=3), max_size=2)),
    )
    assert len(watch("names", load_dataset, "mnist5k").train) == 4050
    fuzz("names", names, lambda name: watch("names", load_dataset, name), some_good=False)


def npz_members(watch):
    """Good and evil arrays, as pairs of name and bytes of the .npy format."""
    images, labels = stripes(60)
    arrays = {
        "images.npy": (images, images[..., 0] / 255, images > 99, images.astype(np.float16), images[:0], images[0]),
        "labels.npy": (labels, labels.astype(np.uint8), labels.astype(float), labels[:7], np.array(2), labels - 1),
        "class_names.npy": (np.array(["a", "b", "c"]), np.array([b"a", b"b", b"\xff"]), np.array([["a"]]), np.ones(3)),
        "test_images.npy": (images[:9], images[:9, :5]),
        "test_labels.npy": (labels[:9],),
    }
    evil = np.array([Malice(watch.canary)], dtype=object)
    members = []
    for name, choices in arrays.items():
        for array in choices:
            buffer = io.BytesIO()
            np.save(buffer, array)
            members.append((name, buffer.getvalue()))
    for name in ("images.npy", "labels.npy", "class_names.npy"):
        buffer = io.BytesIO()
        np.save(buffer, evil, allow_pickle=True)
        members += [(name, buffer.getvalue()), (name, pickle.dumps(Malice(watch.canary)))]
    return members


def npy(header, data, version=(1, 0)):
    """An array with any header."""
    text = repr(header).encode("latin-1", "replace") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) % 65536)
    return b"\x93NUMPY" + bytes(version) + length + text + data


def fitting(header):
    """As many zeros as a header asks for, if it is not too many."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        size = math.prod(header["shape"]) * np.dtype(header["descr"]).itemsize
        return bytes(size if 0 <= size < 2**20 else 0)
    return b""


def test_npz(fuzz, watch):
    members = npz_members(watch)
    good = [members[0], members[6]]
    path = watch.folder / "drawn.npz"
    numbers = ("|u1", "<f8", ">i2", "<f16", "|b1", "<i8", "<c16")
    others = ("|O", "<U1000000000", "|V4", "<m8", "|S0", "<M8[s]", "<U3", [("a", "<i4")], 3, "")
    descr = st.sampled_from([*numbers, *others])
    sizes = st.one_of(st.integers(-2, 70), st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]))
    shape = st.one_of(st.lists(sizes, max_size=5).map(tuple), st.lists(sizes, max_size=2), st.none())
    header = st.fixed_dictionaries({"descr": descr, "fortran_order": st.booleans(), "shape": shape})
    version = st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)])
    array = st.one_of(
        st.builds(npy, st.one_of(header, _JSON), st.binary(max_size=64), version),
        st.builds(lambda header: npy(header, fitting(header)), header),
    )
    kept = {name: [data for other, data in members if other == name] for name, _ in members}
    # The first of each, which is good, as often as all others.
    choices = {name: st.one_of(st.just(data[0]), st.sampled_from(data)) for name, data in kept.items()}
    some = st.fixed_dictionaries(
        {name: choices.pop(name) for name in ("images.npy", "labels.npy")}, optional=choices
    ).map(lambda chosen: list(chosen.items()))
    names = st.sampled_from(["images.npy", "labels.npy", "class_names.npy", "../images.npy", "/labels.npy", "\x00"])
    compression = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    whole = zipped(good), zipped(good, compression=zipfile.ZIP_DEFLATED)
    for data in whole:
        path.write_bytes(data)
        assert len(watch("npz", load_dataset, path).train) == 49
    drawn = st.one_of(
        st.builds(spoil, st.sampled_from(whole), _SPOILING),
        st.builds(zipped, some, st.just(()), compression),
        st.builds(zipped, st.lists(st.sampled_from(members), min_size=1, max_size=6), _LIES, compression),
        st.builds(zipped, st.lists(st.tuples(names, array), min_size=1, max_size=3).map(lambda a: [*good, *a]), _LIES),
        st.builds(lambda a, b: zipped([("images.npy", a), ("labels.npy", b)]), array, array),
        st.builds(
            lambda member, how: zipped([(member[0], spoil(member[1], how)), *good]), st.sampled_from(members), _SPOILING
        ),
        st.binary(max_size=60),
    )

    def check(data):
        path.write_bytes(data)
        watch("npz", load_dataset, path)

    fuzz("npz", drawn, check)


def test_arrays(fuzz, watch):
    """The same arrays as files in a folder, which are mapped into memory."""
    folder = watch.folder / "arrays"
    kept = {}
    for name, data in npz_members(watch):
        kept.setdefault(name, []).append(data)
    # The first of each, which is good, as often as all others.
    drawn = {
        name: st.one_of(st.just(data[0]), st.sampled_from(data), st.builds(spoil, st.sampled_from(data), _SPOILING))
        for name, data in kept.items()
    }
    needed = {name: drawn.pop(name) for name in ("images.npy", "labels.npy")}

    def check(files):
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        data = watch("arrays", load_dataset, folder)
        shutil.rmtree(folder)
        return data

    assert check({name: data[0] for name, data in kept.items()}).class_names == ("a", "b", "c")
    fuzz("arrays", st.fixed_dictionaries(needed, optional=drawn), check)


# How many of the pictures are not read: those of 16 bits, and of formats that are not taken.
_REFUSED_PICTURES = 6


def pictures():
    """A picture in each format, and in some it has several kinds."""
    generator = np.random.default_rng(0)
    rgb = PIL.Image.fromarray(generator.integers(0, 256, (8, 9, 3), np.uint8))
    grey, palette = rgb.convert("L"), rgb.convert("P")
    deep = PIL.Image.fromarray(generator.integers(0, 65536, (8, 9)).astype(np.uint16))
    cases = [
        *(
            (grey, "png", {}),
            (rgb, "png", {}),
            (palette, "png", {}),
            (deep, "png", {}),
            (rgb.convert("RGBA"), "png", {}),
        ),
        *((grey, "jpeg", {}), (rgb, "jpeg", {"progressive": True}), (rgb.convert("CMYK"), "jpeg", {})),
        *((palette, "gif", {}), (palette, "gif", {"save_all": True, "append_images": [palette, palette]})),
        *(
            (rgb, "webp", {}),
            (rgb, "webp", {"lossless": True}),
            (rgb, "webp", {"save_all": True, "append_images": [grey]}),
        ),
        *((rgb, "tiff", {}), (grey, "tiff", {"compression": "tiff_lzw"}), (deep, "tiff", {}), (grey, "bmp", {})),
        *(
            (grey, "tiff", {"compression": "tiff_adobe_deflate"}),
            (grey.convert("1"), "tiff", {"compression": "group4"}),
        ),
        *((rgb, "tiff", {"compression": "jpeg"}), (rgb, "ppm", {}), (grey.convert("1"), "ppm", {}), (rgb, "eps", {})),
        *((rgb, "tga", {}), (rgb, "ico", {}), (rgb, "pdf", {})),
    ]
    found = []
    for picture, kind, options in cases:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def with_checksums(data):
    """A PNG whose chunks have the right checksums, so that what is in them is looked at."""
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


@pytest.fixture
def classes(watch):
    """A folder of two classes with twelve pictures of 9x8, to which one is added."""
    folder = watch.folder / "classes"
    for number in range(12):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (9, 8), 20 * number).save(folder / "ab"[number % 2] / f"{number:02}.png")
    return folder


def test_pictures(fuzz, watch, classes):
    good = pictures()
    drawn = st.one_of(
        st.builds(spoil, st.sampled_from(good), _SPOILING),
        st.builds(spoil, st.sampled_from(good), _SPOILING, st.sampled_from([8, 16, 24, 40])),
        st.builds(spoil, st.sampled_from(good[:5]), _SPOILING, st.just(8)).map(with_checksums),
        st.sampled_from(good),
        st.binary(max_size=60),
    )

    def check(value):
        data, first = value
        file = classes / "a" / ("0" if first else "zz")
        file.write_bytes(data)
        found = watch("pictures", load_dataset, classes)
        file.unlink()
        return found

    read = [check((data, False)) is not None for data in good]
    assert read.count(False) == _REFUSED_PICTURES
    fuzz("pictures", st.tuples(drawn, st.booleans()), check)


def test_folders(fuzz, watch):
    """Names that nobody expects, and entries that are no files."""
    strange = st.text(st.characters(codec=None, exclude_characters="/\x00"), min_size=1, max_size=12)
    with_name = st.one_of(st.text("abcd", min_size=1, max_size=3), st.text("abcd", min_size=1, max_size=3), strange)
    kinds = ("picture", "empty", "text", "folder", "pipe", "socket", "loop", "dangling", "forbidden", "zero", "link")
    tree = st.dictionaries(
        with_name,
        st.one_of(st.dictionaries(with_name, st.sampled_from(kinds), max_size=3), st.sampled_from(kinds)),
        max_size=4,
    )
    image = pictures()[0]
    root = watch.folder / "folder"

    def check(tree):
        for name, content in {"cat": {}, "dog": {}, **tree}.items():
            root.mkdir(exist_ok=True)
            with contextlib.suppress(OSError, UnicodeError):
                if isinstance(content, str):
                    make_entry(root / name, content, image)
                    continue
                (root / name).mkdir()
                for number in range(6):
                    (root / name / f"{number}.png").write_bytes(image)
                for inner, kind in content.items():
                    with contextlib.suppress(OSError, UnicodeError):
                        make_entry(root / name / inner, kind, image)
        data = watch("folders", load_dataset, root)
        assert data is None or all(name.isprintable() for name in data.class_names)
        shutil.rmtree(root, ignore_errors=True)
        return data

    assert check({}).class_names == ("cat", "dog")
    fuzz("folders", tree, check)


def make_entry(path, kind, image):
    if kind in ("picture", "empty", "text", "forbidden"):
        path.write_bytes({"picture": image, "empty": b"", "text": b"a note", "forbidden": image}[kind])
        if kind == "forbidden":
            path.chmod(0)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link":
        target = path.with_name("target")
        target.write_bytes(image)
        path.symlink_to(target)
    else:
        path.symlink_to({"loop": path, "dangling": path.with_name("nowhere"), "zero": pathlib.Path("/dev/zero")}[kind])


def test_junk_files(fuzz, watch):
    """Files of formats that are not taken, IDX of the original MNIST before all."""
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 4) + bytes(range(32))
    names = st.sampled_from(["train-images-idx3-ubyte", "data.npz", "data.npy", "data.csv", "data.h5", "a.keras"])
    data = st.one_of(st.binary(max_size=64), _SPOILING.map(lambda how: spoil(idx, how)), st.just(idx))

    def check(value):
        name, data, model = value
        path = watch.folder / "junk" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        found = watch("junk files", model_files.load_keras if model else load_dataset, path)
        assert found is None

    fuzz("junk files", st.tuples(names, data, st.booleans()), check, some_good=False)


def test_run_folders(fuzz, watch):
    """The files of a run but the model, of which one is spoilt."""
    path = watch.folder / "run"
    dataset = make_dataset("stripes", ["left", "middle", "right"], stripes())
    Run.create(path, TrainConfig(epochs=2, latent_size=2), dataset)
    evaluation = {"elbo": {"mean": -9.5, "standard_error": 0.1}, "protocol": {"num_images": 9, "num_samples": 1}}
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    (path / "history.csv").write_text("epoch,loss,val_elbo\n0,3.5,-3\n1,3.25,-2.5\n")
    np.savez(path / "images_by_epoch.npz", epochs=np.arange(2), images=np.zeros((2, 3, 8, 8, 1), np.uint8))
    files = {file: (path / file).read_bytes() for file in ("config.json", "evaluation.json", "history.csv")}
    files["images_by_epoch.npz"] = (path / "images_by_epoch.npz").read_bytes()
    trees = {file: json.loads(files[file]) for file in ("config.json", "evaluation.json")}
    arrays = npz_members(watch)
    drawn = st.one_of(
        st.sampled_from(sorted(files)).flatmap(
            lambda file: st.tuples(st.just(file), _SPOILING.map(lambda how: spoil(files[file], how)))
        ),
        st.sampled_from(sorted(trees)).flatmap(
            lambda file: st.tuples(
                st.just(file), changes(_JSON).map(lambda new: json_text(replaced(trees[file], new)).encode())
            )
        ),
        st.tuples(st.sampled_from(sorted(files)), st.one_of(st.binary(max_size=30), st.just(_DEEP.encode()))),
        st.tuples(
            st.just("images_by_epoch.npz"),
            st.lists(st.sampled_from(arrays), min_size=1, max_size=2).map(
                lambda pairs: zipped(list(zip(("epochs.npy", "images.npy"), [data for _, data in pairs], strict=False)))
            ),
        ),
    )

    def read():
        run = Run.load(path)
        return run.history(), run.evaluation(), run.images_by_epoch()

    history, found, images = watch("run folders", read)
    assert [row["val_elbo"] for row in history] == [-3, -2.5]
    assert found == evaluation
    assert images[1].shape == (2, 3, 8, 8, 1)

    def check(value):
        file, data = value
        (path / file).write_bytes(data)
        watch("run folders", read)
        (path / file).write_bytes(files[file])

    fuzz("run folders", drawn, check)


# What a configuration could name to do harm.
_EVIL = [
    *(
        {
            "module": "x",
            "class_name": "DistributionLambda",
            "registered_name": name,
            "config": unpickling("fuzz_canary"),
        }
        for name in ("DistributionLambda", "tfp_cvae>PixelBias")
    ),
    {"module": "fuzz_canary", "class_name": "Dense", "config": {"units": 3}, "registered_name": None},
    {"module": "fuzz_canary", "class_name": "Dense", "config": {"units": 3}, "registered_name": "Dense"},
    {"module": "fuzz_canary", "class_name": "function", "config": "Dense", "registered_name": "function"},
    {"module": "keras.fuzz_canary", "class_name": "Dense", "config": {}, "registered_name": None},
    {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
    {"module": "keras.utils", "class_name": "get_file", "config": {"origin": "x"}, "registered_name": None},
    {
        "module": "fuzz_canary",
        "class_name": "__typespec__",
        "spec_name": "Dense",
        "config": [],
        "registered_name": None,
    },
    {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}},
    {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U2000000000"}, "module": "keras"},
    {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"function": ["", None, None]},
        "registered_name": None,
    },
    {"module": "keras.layers", "class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
    {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
    {"class_name": "Dense", "config": {"units": 10**12}},
]


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def is_object(tree, path):
    """Whether a value is one that Keras makes an object of."""
    value = at(tree, path)
    return isinstance(value, dict) and "class_name" in value and "compile_config" not in path


def is_leaf(tree, path):
    return not isinstance(at(tree, path), (dict, list))


def put(tree, path, value):
    """A tree with something else in one place; the name of a layer, which its network looks for, is kept."""
    tree, value = copy.deepcopy(tree), copy.deepcopy(value)
    old = at(tree, path)
    if isinstance(old, dict) and isinstance(value, dict):
        value = {**{key: old[key] for key in ("name", "inbound_nodes") if key in old}, **value}
    at(tree, path[:-1])[path[-1]] = value
    return tree


def _spoilt_models(path):
    """Strategy of the bytes of model files that are not quite the one at `path`."""
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    config = json.loads(contents["config.json"])

    def with_member(name, data, lies=()):
        return zipped(list({**contents, name: data}.items()), lies)

    new = st.one_of(_JSON, st.sampled_from(_EVIL), st.sampled_from([10**12, -1, 2**40, "exec", [10**6] * 4, "float64"]))
    configs = changes(new).map(lambda new: json_text(replaced(config, new)).encode())
    objects = [path for path in places(config) if path and is_object(config, path)]
    calls = [
        path for path in places(config) if "inbound_nodes" in path and path[-1] in (0, 1) and is_leaf(config, path)
    ]
    layers = sorted({at(config, path) for path in calls if path[-1] == 0})
    evil = st.builds(put, st.just(config), st.sampled_from(objects), st.sampled_from(_EVIL))
    tangled = st.builds(
        put, st.just(config), st.sampled_from(calls), st.sampled_from([0, 1, 2, -1, *layers, "nowhere"])
    )
    numbers = [path for path in places(config) if path and path[-1] in ("units", "num_samples", "event_shape")]
    large = st.builds(put, st.just(config), st.sampled_from(numbers), st.sampled_from([2**20, 2**28, 2**28, 2**40, 0]))
    names = st.sampled_from(["../x", "/x", "assets/../../x", "C:\\x", "assets/x", "config.json", "x\x00", "assets/"])
    return st.one_of(
        st.builds(lambda data: with_member("config.json", data), configs),
        st.builds(lambda tree: with_member("config.json", json_text(tree).encode()), evil),
        st.builds(lambda tree: with_member("config.json", json_text(tree).encode()), tangled),
        st.builds(lambda tree: with_member("config.json", json_text(tree).encode()), large),
        st.builds(lambda how: with_member("model.weights.h5", spoil(contents["model.weights.h5"], how)), _SPOILING),
        st.builds(lambda how: with_member("model.weights.h5", spoil(contents["model.weights.h5"], how, 96)), _SPOILING),
        st.builds(lambda how: spoil(path.read_bytes(), how), _SPOILING),
        st.builds(lambda name, lies: zipped([*contents.items(), (name, b"x")], lies), names, _LIES),
        st.builds(lambda lies: with_member("metadata.json", b'{"keras_version": "2.20"}', lies), _LIES),
    )


def test_models(fuzz, watch):
    size = {"latent_size": 2, "width": 4, "depth": 1}
    with dtype_policy("mixed_bfloat16"):
        stacked = build_semi_supervised_cvae((4, 4, 1), 2, stacked=True, deformation=0.5, **size)
    drawn_path = watch.folder / "drawn.keras"
    whole = []
    plain = build_cvae((4, 4, 1), 2, prior="label", **size)
    for model, loss in ((plain, NegativeELBO()), (stacked, SemiSupervisedNegativeELBO())):
        model.compile("adam", loss)
        whole.append(watch.folder / f"{type(model).__name__}.keras")
        model.save(whole[-1])
        drawn_path.write_bytes(whole[-1].read_bytes())
        assert watch("models", model_files.load_keras, drawn_path) is not None

    def check(data):
        drawn_path.write_bytes(data)
        watch("models", model_files.load_keras, drawn_path)
        if watch.tried["models"] % 20 == 0:
            keras.backend.clear_session()

    fuzz("models", st.one_of(*map(_spoilt_models, whole)), check)


def test_command_line(fuzz, watch):
    first = ["train", "evaluate", "generate", "plot", "export", "request", "recipes", "datasets", "check", "nothing"]
    flags = [
        *(
            "--epochs",
            "--latent-size",
            "--network",
            "--seed",
            "--recipe",
            "--output",
            "--overwrite",
            "--help",
            "--label",
        ),
        *(
            "--count",
            "--url",
            "--dataset",
            "--quick",
            "--learning-rate",
            "--no-conditional",
            "--width",
            "--resume",
            "-h",
        ),
    ]
    values = ["3", "-1", "1e400", "nan", "10" * 200, "mlp", "best", "None", "True", "/dev/null", "a.png", "a.txt", ""]
    text = st.text(st.characters(codec=None, exclude_characters="\x00"), max_size=12)
    word = st.one_of(st.sampled_from(first), st.sampled_from(flags), st.sampled_from(values), text)
    words = st.tuples(st.one_of(st.sampled_from(first), word), st.lists(word, max_size=6)).map(
        lambda pair: [pair[0], *pair[1]]
    )

    def run(arguments):
        """Runs what does not train, of a run that is not there."""
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            status = cli.main(arguments)
        assert status in (0, 2)
        message = printed.getvalue().rstrip("\n")
        if status == 2:
            check_message(message, _EXPECTED_OR_HELP)

    def check(arguments):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
            parsed = watch("command line", cli._parse, arguments, also=SystemExit, expected=_EXPECTED_OR_HELP)
            # Neither a training nor, by accident, a request of another machine.
            if "train" not in arguments and arguments[0] not in ("train", "request"):
                watch("command line", run, arguments, also=SystemExit)
        return parsed

    assert isinstance(check(["train", "--epochs", "3"]), commands.Train)
    fuzz("command line", words, check)


def complain(message):
    raise ValueError(message)


@pytest.mark.parametrize(
    "deed",
    [
        lambda folder: 1 / 0,
        lambda folder: (folder / "outside").write_bytes(b""),
        lambda folder: (folder / "outside").mkdir(),
        lambda folder: os.system("true"),
        lambda folder: time.sleep(3),
        lambda folder: np.ones(2**28, np.uint8),
        lambda folder: __import__("fuzz_canary"),
        lambda folder: complain("x: expected one, got two\nlines"),
        lambda folder: complain("x: expected one, got " + "x" * 1000),
        lambda folder: complain(""),
        lambda folder: complain("setting an array element with a sequence."),
    ],
    ids=["error", "file", "folder", "process", "time", "memory", "canary", "lines", "length", "silence", "raw"],
)
def test_the_watch_sees(watch, monkeypatch, tmp_path, deed):
    """What the tests of this file look for, each done once."""
    monkeypatch.setitem(globals(), "_SECONDS", 1)
    monkeypatch.setitem(globals(), "_BYTES", 2**26)
    with pytest.raises((AssertionError, ZeroDivisionError)):
        watch("deeds", deed, tmp_path)
    watch.deeds.clear()
    watch.canary.unlink(missing_ok=True)
    sys.modules.pop("fuzz_canary", None)
