"""Arrays from files that came from elsewhere: read as they were written, or refused at little cost."""

import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from test_archive import Malice, header, limited, npy, patched, write

from tfp_cvae import array_files
from tfp_cvae.array_files import load_arrays


def test_arrays(tmp_path):
    array = np.arange(12).reshape(3, 4)
    members = {"a.npy": npy(array), "b.npy": npy(np.array(["x", "yz"])), "../c.npy": b"", "d.npy": b"spoilt"}
    path = write(tmp_path / "good.npz", members, zipfile.ZIP_DEFLATED)
    found = load_arrays(path, ("a", "b", "absent"))
    np.testing.assert_array_equal(found.pop("a"), array)
    assert found.pop("b").tolist() == ["x", "yz"]
    assert not found
    for text in (
        np.array("\U0010ffff", "<U2"),
        np.array(["a", "bc"], ">U4"),
        np.array([], "<U2"),
        np.array([""], "<U0"),
    ):
        np.savez(tmp_path / "text.npz", a=text)
        assert load_arrays(tmp_path / "text.npz", ["a"])["a"].tolist() == text.tolist()
    # Blank arrays of a normal size are no trick.
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros((2000, 28, 28, 3), np.float32))
    assert not load_arrays(tmp_path / "zeros.npz", ["a"])["a"].any()


# Of text, one row for each array: the last number that Python takes for a character is 0x10FFFF.
NOT_UNICODE = [
    ("<U3", np.array([[97, 0x110000, 0], [97, 98, 99]], "<u4")),
    (">U3", np.array([[97, 98, 0], [97, 98, 0xFFFFFFFF]], ">u4")),
]


def test_evil_arrays(tmp_path):
    path, canary, good = tmp_path / "evil.npz", tmp_path / "executed", npy(np.zeros(9))
    claim = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}\n"
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(2**26)
    cases = [
        ({"a.npy": npy(np.array([Malice(canary)], object))}, {}, "neither numbers nor text"),
        ({"a.npy": pickle.dumps(Malice(canary))}, {}, "magic string"),
        ({"a.npy": good}, {"compression": zipfile.ZIP_BZIP2}, "compressed in another way"),
        ({"a.npy": good}, {"compression": zipfile.ZIP_LZMA}, "compressed in another way"),
        ([("a.npy", good), ("a.npy", good)], {}, "two members of the name 'a.npy'"),
        ({"a.npy": long}, {"compression": zipfile.ZIP_DEFLATED}, "header"),
        ({"a.npy": header(claim % 10**13) + bytes(99)}, {}, "claims another size than there is"),
        ({"a.npy": header(b"{'descr': '<U500000000', 'fortran_order': False, 'shape': (1,)}\n")}, {}, "another size"),
        ({"a.npy": header(b"(" * 9000)}, {}, "an unreadable one"),
        ({"a.npy": header(claim % -5)}, {}, "another size"),
        *[({"a.npy": npy(points.view(kind))}, {}, "a.npy, whose text is not Unicode") for kind, points in NOT_UNICODE],
    ]
    for members, options, message in cases:
        write(path, members, **options)
        with limited(), pytest.raises(ValueError, match=message):
            load_arrays(path, ["a"])
    assert not canary.exists()
    # A header is read no further than one of NumPy's can be long.
    write(path, {"a.npy": long}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(ValueError, match="header"):
        load_arrays(path, ["a"])
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    # Sizes on which array and zip agree, as in a bomb.
    for size, message in ((10 * 2**30, "10 GiB decoded, more than the 8 GiB"), (2**30, "1024 MiB decoded from")):
        text = header(claim % size)
        write(path, {"a.npy": text + bytes(99)}, zipfile.ZIP_DEFLATED)
        if size + len(text) < 2**32:
            patched(path, "a.npy", "size", size + len(text))
            expected = message
        else:
            expected = "another size"
        with limited(), pytest.raises(ValueError, match=expected):
            load_arrays(path, ["a"])
    with pytest.raises(ValueError, match="10 GiB decoded, more than the 8 GiB that are held in memory"):
        array_files._check_decoded_size(10 * 2**30, 2**33)
