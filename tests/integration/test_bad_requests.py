"""Thousands of malformed requests to exported models through the C++ loader: each has an error, the next good one its answer.

As a script, this file is the process that answers: a number of a pipe, and the folders of the models.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable

import cpp_loader
import numpy as np

if __name__ != "__main__":  # The process that answers has no Python TensorFlow.
    import pytest
    import stand_ins
    import tensorflow as tf
    import tf_keras as keras
    from conftest import perturb, small_cvae

    from tfp_cvae.build import build_cvae, build_semi_supervised_cvae
    from tfp_cvae.export import export_saved_model
    from tfp_cvae.importance import importance_estimate
    from tfp_cvae.likelihood import likelihood_under_each_label

INVALID_ARGUMENT = 3


# The process that answers.

_NUMBERS = {
    **{"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8, "int64": 9},
    **{"bool": 10, "uint16": 17, "complex128": 18, "float16": 19, "uint32": 22, "uint64": 23},
}
_STRING, _STRING_SIZE = 7, 24
# Types that messages call otherwise.
SPOKEN = {"float16": "half", "float32": "float", "float64": "double"}


class Session(cpp_loader.Session):
    """One that sends any type, and names of tensors that the model does not have, as the server's session can."""

    def run(self, feeds, fetches):
        if all(self._tf.TF_GraphOperationByName(self._graph, _operation(name)) for name in (*feeds, *fetches)):
            return super().run(feeds, fetches)
        names = [(ctypes.c_char_p * len(part))(*(name.encode() for name in part)) for part in (feeds, fetches)]
        tensors = (ctypes.c_void_p * len(feeds))(*map(self._tensor, feeds.values()))
        found = (ctypes.c_void_p * len(fetches))()
        try:
            with self._status() as status:
                # A call of the older session, of which the newer one has all there is, the C++ session, at its start.
                self._tf.TF_Run(
                    *(self._session, None, names[0], tensors, len(feeds), names[1], found, len(fetches)),
                    *(None, 0, None, status),
                )
        finally:
            for tensor in tensors:
                self._tf.TF_DeleteTensor(ctypes.c_void_p(tensor))
        return [self._array(ctypes.c_void_p(tensor)) for tensor in found]

    def _tensor(self, array):
        strings = array.dtype.kind == "S"
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        number = _STRING if strings else _NUMBERS[array.dtype.name]
        size = _STRING_SIZE * array.size if strings else array.nbytes
        tensor = self._tf.TF_AllocateTensor(number, shape, array.ndim, ctypes.c_size_t(size))
        data = self._tf.TF_TensorData(ctypes.c_void_p(tensor))
        if strings:
            for index, string in enumerate(array.ravel()):
                place = ctypes.c_void_p(data + _STRING_SIZE * index)
                self._tf.TF_StringInit(place)
                self._tf.TF_StringCopy(place, string, ctypes.c_size_t(len(string)))
        elif size:
            ctypes.memmove(data, array.tobytes(), size)
        return tensor


def _operation(tensor):
    return tensor.rpartition(":")[0].encode()


def _resident():
    """Memory of this process, in MB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def answer_requests(pipe, *folders):
    """Answers lists of (model, feeds, fetches), each of more than one in threads, with outputs or (code, message)."""
    sessions = [Session(folder) for folder in folders]

    def answer(request):
        model, feeds, fetches = request
        try:
            return sessions[model].run(feeds, fetches)
        except cpp_loader.Error as error:
            return error.code, str(error)

    connection = multiprocessing.connection.Connection(int(pipe))
    with contextlib.suppress(EOFError), concurrent.futures.ThreadPoolExecutor(cpp_loader.THREADS) as pool:
        while True:
            requests = connection.recv()
            connection.send(([*(pool.map if len(requests) > 1 else map)(answer, requests)], _resident()))
    assert not [name for name in sys.modules if name.startswith(("tensorflow", "tf_keras", "tfp_cvae"))]


if __name__ == "__main__":
    answer_requests(*sys.argv[1:])
    sys.exit()


# Requests.

K = 4
SHAPES = {"image": (8, 8, 1), "latent": (4,), "label": (), "seed": ()}
TYPES = {"image": np.float32, "latent": np.float32, "label": np.int64, "seed": np.int64}
# Those that estimate take the seeds of `importance_estimate`; the others any int64.
ESTIMATES = ("log_likelihood", "classify")
INT64 = np.iinfo(np.int64)
FLOAT32 = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and its signatures, as names of inputs and outputs to names of tensors."""

    index: int
    cvae: object
    signatures: dict

    def inputs(self, signature):
        return list(self.signatures[signature][0])


@dataclasses.dataclass(frozen=True)
class Request:
    """Inputs by name for a signature; `kind` is what is wrong with it, `outputs` are those of the signature, or not."""

    model: Model
    signature: str
    inputs: dict
    kind: str = "good"
    outputs: tuple = ()

    def tensors(self):
        """What the session is told: arrays by the names of tensors, and names of tensors."""
        names, fetches = self.model.signatures.get(self.signature, ({}, {"": f"{self.signature}:0"}))
        feeds = {names.get(name, f"{self.signature}_{name}:0"): array for name, array in self.inputs.items()}
        return self.model.index, feeds, [*fetches.values(), *self.outputs]

    def __str__(self):
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in self.inputs.items())
        return f"{self.kind}: {self.signature}({shapes}) of model {self.model.index}"


def good_request(generator, model, signature, rows):
    """A request that is as it should be, with the ends of the ranges in it."""
    low, high = (0, 2**31 - 1) if signature in ESTIMATES else (INT64.min, INT64.max)
    values = {
        "image": np.where(generator.random((rows, 8, 8, 1)) < 0.5, generator.integers(0, 2, (rows, 8, 8, 1)), 0.25),
        "latent": generator.standard_normal((rows, 4)),
        "label": generator.integers(0, max(1, model.cvae.num_classes), rows),
        "seed": generator.choice([low, high, 0, *generator.integers(low, high, 5)], rows),
    }
    return Request(model, signature, {name: values[name].astype(TYPES[name]) for name in model.inputs(signature)})


# Faults of one input. Each takes (generator, array, number of classes) and returns another array.


def _with_some(array, generator, values):
    """One element or some become one of the values, or some of them."""
    array = array.copy()
    count = generator.choice([1, generator.integers(1, array.size + 1)])
    where = generator.choice(array.size, count, replace=False)
    # Mostly one value: another would be refused in the place of one that is not.
    found = generator.choice(np.array(values, array.dtype), generator.choice([1, 1, len(values)]))
    array.flat[where] = generator.choice(found, count)
    return array


def _label_range(generator, label, num_classes):
    below, above = generator.integers(INT64.min, 0), generator.integers(num_classes, INT64.max)
    near = [-1, num_classes, num_classes + 1, -num_classes]
    # Those that would be classes in 32 bits too.
    return _with_some(label, generator, [*near, 2**31, 2**32, 2**32 + 1, INT64.min, INT64.max, below, above])


def _seed_range(generator, seed, _):
    below, above = generator.integers(INT64.min, 0), generator.integers(2**31, INT64.max)
    return _with_some(seed, generator, [-1, 2**31, 2**32, 2**32 + 5, INT64.min, INT64.max, below, above])


def _image_range(generator, image, _):
    # The least of those that processors do not take for zero.
    nearest = [-FLOAT32.tiny, np.nextafter(np.float32(1), np.float32(2))]
    return _with_some(image, generator, [*nearest, -0.5, 1.5, 255, FLOAT32.max, FLOAT32.min, generator.uniform(1.1, 9)])


def _not_finite(generator, array, _):
    return _with_some(array, generator, [np.nan, -np.nan, np.inf, -np.inf])


def _rank(generator, array, _):
    rank = generator.choice([number for number in (0, 1, 2, 3, 4, 5, 6, 64) if number != array.ndim])
    if rank == 0:
        return np.zeros([], array.dtype)
    if rank < array.ndim:
        return array.reshape(*array.shape[: rank - 1], math.prod(array.shape[rank - 1 :]))
    new = generator.choice(rank, rank - array.ndim, replace=False)
    return np.expand_dims(array, tuple(new.tolist()))


def _size(generator, array, _):
    own = array.shape[1:]
    if not len(array) and generator.random() < 0.5:
        huge = generator.choice([2**31 - 1, 2**31, 2**32 + own[0], 2**40])
        return np.empty((0, huge, *own[1:]), array.dtype)
    sizes = own
    while sizes == own:
        # Transposed, with as many elements as more or fewer rows would have, or any.
        sizes = [
            generator.permutation(own),
            np.multiply(own, 2),
            np.floor_divide(own, 2),
            generator.integers(1, 20, len(own)),
        ]
        sizes = tuple(np.maximum(1, sizes[generator.integers(4)]).tolist())
    return np.resize(array, (len(array), *sizes))


def _zero_size(generator, array, _):
    sizes = np.array([*array.shape[1:], *([] if array.ndim > 1 else [1])])
    sizes[generator.choice(len(sizes), generator.integers(1, len(sizes) + 1), replace=False)] = 0
    return np.empty((len(array), *sizes), array.dtype)


def _type(generator, array, _):
    others = [name for name in _NUMBERS if name != array.dtype.name]
    return generator.integers(0, 2, array.shape).astype(generator.choice(others))


def _string(generator, array, _):
    return np.full(array.shape, generator.choice([b"", b"0", b"1", b"nan", b"\xff\xfe", b"image", b"0.5 0.5 0.5"]))


def _rows(generator, array, _):
    others = [rows for rows in range(7) if rows != len(array)]
    return array[np.arange(generator.choice(others)) % len(array)]


# By kind, in the order in which one request can have several: the function and the inputs that can have it.
FAULTS: dict[str, tuple[Callable, tuple]] = {
    "label range": (_label_range, ("label",)),
    "seed range": (_seed_range, ("seed",)),
    "image range": (_image_range, ("image",)),
    "image not finite": (_not_finite, ("image",)),
    "latent not finite": (_not_finite, ("latent",)),
    "rows differ": (_rows, tuple(SHAPES)),
    "size": (_size, ("image", "latent")),
    "zero size": (_zero_size, tuple(SHAPES)),
    "rank": (_rank, tuple(SHAPES)),
    "type": (_type, tuple(SHAPES)),
    "string": (_string, tuple(SHAPES)),
}
# That may have no rows, and be wrong all the same.
EMPTY = ("size", "zero size", "type", "string", "missing input", "unknown input", "unknown output", "unknown signature")
NAMES = ["", "x", "labels", "Image", "input_1", "a b", "é", "../label", "image/0", "^latent", "x" * 300]


def kinds(model, signature):
    """Names of the faults that a request to a signature can have."""
    names = model.inputs(signature)
    found = [kind for kind, (_, inputs) in FAULTS.items() if set(inputs) & set(names)]
    if signature not in ESTIMATES and "seed range" in found:
        found.remove("seed range")
    if len(names) == 1:
        found.remove("rows differ")
    return [*found, "missing input", "unknown input", "unknown output", "unknown signature", "combination"]


def bad_request(generator, model, signature, kind):
    """A request with a fault of this kind, or with several, and no other."""
    if kind == "combination":
        return _combination(generator, model, signature)
    rows = int(generator.integers(kind not in EMPTY, 5))
    good = good_request(generator, model, signature, rows)
    if kind == "unknown signature":
        signature += generator.choice(["2", "_", "é", "/x", *"ab"])
        return dataclasses.replace(good, signature=signature, kind=kind)
    if kind == "unknown output":
        output = generator.choice(["probability:0", "StatefulPartitionedCall_99:0", "x" * 300, f"{signature}_mean:0"])
        return dataclasses.replace(good, outputs=(output,), kind=kind)
    return dataclasses.replace(good, inputs=_spoilt(generator, good, kind), kind=kind)


def _combination(generator, model, signature):
    # Of an unknown name the session speaks first, so that nothing else of such a request would be seen.
    choice = [kind for kind in kinds(model, signature) if not kind.startswith(("unknown", "combination"))]
    while True:
        request = good_request(generator, model, signature, int(generator.integers(1, 5)))
        some = generator.choice(choice, generator.integers(2, min(5, len(choice))), replace=False)
        for kind in sorted(some, key=choice.index):
            request = dataclasses.replace(request, inputs=_spoilt(generator, request, kind), kind="combination")
        # One may have undone another.
        if len(faults(request)) > 1:
            return request


def _spoilt(generator, request, kind):
    inputs, names = request.inputs.copy(), list(request.inputs)
    if kind == "missing input":
        for name in generator.choice(names, generator.integers(1, len(names) + 1), replace=False):
            del inputs[name]
    elif kind == "unknown input":
        others = [name for name in SHAPES if name not in names]
        inputs[str(generator.choice([*NAMES, *others]))] = np.zeros(
            generator.integers(0, 5, generator.integers(4)), generator.choice(list(_NUMBERS))
        )
    else:
        spoil, befallen = FAULTS[kind]
        # Of several faults, at most one in the shape of an input, to which the type may be wrong too.
        whole = [
            name
            for name in names
            if name in befallen
            and (kind in ("type", "string") or (inputs[name].ndim and inputs[name].shape[1:] == SHAPES[name]))
        ]
        if whole:
            name = str(generator.choice(whole))
            inputs[name] = spoil(generator, inputs[name], request.model.cvae.num_classes)
    return inputs


def faults(request):
    """What is wrong with a request, found from the documentation of its inputs alone: pairs of kind and name of input."""
    wanted = request.model.inputs(request.signature)
    found = {("missing input", name) for name in wanted if name not in request.inputs}
    rows = set()
    for name, array in request.inputs.items():
        if name not in wanted:
            found.add(("unknown input", name))
            continue
        if array.dtype != TYPES[name]:
            found.add(("string" if array.dtype.kind == "S" else "type", name))
        if 0 in array.shape[1:]:
            found.add(("zero size", name))
        elif array.ndim != 1 + len(SHAPES[name]):
            found.add(("rank", name))
        elif array.shape[1:] != SHAPES[name]:
            found.add(("size", name))
        else:
            rows.add(len(array))
            if array.dtype == TYPES[name]:
                found |= {(kind, name) for kind in _bad_values(request, name, array)}
    return found | ({("rows differ", "")} if len(rows) > 1 else set())


def _bad_values(request, name, array):
    finite = [value for value in array.ravel().tolist() if np.isfinite(value)]
    if len(finite) < array.size:
        yield f"{name} not finite"
    ranges = {"image": (0, 1), "label": (0, request.model.cvae.num_classes - 1)}
    if request.signature in ESTIMATES:
        ranges["seed"] = (0, 2**31 - 1)
    low, high = ranges.get(name, (-np.inf, np.inf))
    if not all(low <= value <= high for value in finite):
        yield f"{name} range"


def sentences(request):
    """What a message may say of the faults of a request: patterns, one for each."""
    if request.kind == "unknown signature":
        return [re.escape(request.signature)]
    if request.kind == "unknown output":
        return [re.escape(request.outputs[0])]
    return [_sentence(request, *fault) for fault in faults(request)]


def _sentence(request, kind, name):
    array, placeholders = request.inputs.get(name), request.model.signatures[request.signature][0]
    if kind == "unknown input":
        return re.escape(f"{request.signature}_{name}:0")
    if kind == "missing input":
        return f"must feed a value for placeholder tensor '{placeholders[name].rpartition(':')[0]}'"
    if kind in ("type", "string"):
        wanted, given = (
            "string" if each.kind == "S" else SPOKEN.get(each.name, each.name)
            for each in (np.dtype(TYPES[name]), array.dtype)
        )
        return f"to be {wanted} but {given} is provided"
    if kind in ("rank", "size", "zero size"):
        shape = array.shape if array.ndim <= 6 else (*array.shape[:3], "...", *array.shape[-3:])
        expected, got = ", ".join(["n", *map(str, SHAPES[name])]), " ".join(map(str, shape))
        return re.escape(f"{name}: expected shape [{expected}], got [{got}]")
    classes = request.model.cvae.num_classes
    expected = {
        "label range": f"label: expected 0 to {classes - 1}, got [",
        "seed range": "seed: expected 0 to 2147483647, got [",
        "image range": "image: expected values in [0, 1], got [",
        "image not finite": "image: expected values in [0, 1], got [",
        "latent not finite": "latent: expected finite values, got [",
        "rows differ": f"{', '.join(name for name in SHAPES if name in placeholders)}: expected one of each for each row, got [",
    }
    return re.escape(expected[kind])


# The test.

LONG = 5000
# A good request after so many bad ones, and so many bad ones in a block; every fourth block is sent at once.
EVERY, BLOCK = 4, 40
SECONDS = 120
SENTENCE = 1000


class Server:
    """The process that answers."""

    def __init__(self, folders, log):
        self._log = log
        self._connection, theirs = multiprocessing.Pipe()
        path = os.pathsep.join([str(pathlib.Path(cpp_loader.__file__).parent), os.environ.get("PYTHONPATH", "")])
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *map(str, folders)],
                pass_fds=[theirs.fileno()],
                stderr=file,
                env={**os.environ, "PYTHONPATH": path},
            )
        theirs.close()

    def ask(self, requests):
        """Outcomes of requests that are sent together: arrays of outputs or (code, message); and the memory in MB."""
        try:
            self._connection.send([request.tensors() for request in requests])
            assert self._connection.poll(SECONDS), f"no answer in {SECONDS} s to {_listed(requests)}"
            return self._connection.recv()
        except (EOFError, OSError):
            code, log = self.process.wait(SECONDS), self._log.read_text()[-5000:]
            pytest.fail(f"the process ended with {code} at {_listed(requests)}\n{log}")

    def close(self):
        """Ends the process, and returns its code."""
        self._connection.close()
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()


def _listed(requests):
    return "\n".join(map(str, requests))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Four models, and the folders of their versions."""
    found, folders = [], []
    kinds = [
        (build_cvae, 10, "standard"),
        (build_cvae, 10, "flow"),
        (build_cvae, 0, "standard"),
        (build_semi_supervised_cvae, 10, "label"),
    ]
    for index, (build, num_classes, prior) in enumerate(kinds):
        keras.utils.set_random_seed(index)
        if prior == "flow":
            cvae = small_cvae("mlp", prior, num_classes=num_classes)
        else:
            cvae = build((8, 8, 1), num_classes, 4, width=8, prior=prior)
        perturb(cvae)
        folders.append(export_saved_model(cvae, tmp_path_factory.mktemp("models") / "cvae", num_importance_samples=K))
        found.append(Model(index, cvae, dict(sorted(stand_ins.signature_tensors(folders[-1]).items()))))
    return found, folders


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    server = Server(models[1], tmp_path_factory.mktemp("server") / "log")
    yield server
    assert server.close() == 0


def _expected(request):
    """What the Python model answers, in the order of the outputs' names; for a PNG, the image."""
    cvae = request.model.cvae
    image, latent, label, seed = (request.inputs.get(name) for name in ("image", "latent", "label", "seed"))
    one_hot = None if label is None else cvae.one_hot(label, len(label))
    if request.signature == "decode":
        return [cvae.likelihood(latent, one_hot).mean()]
    if request.signature == "encode":
        posterior = cvae.posterior(image, one_hot)
        return [posterior.mean(), posterior.stddev()]
    if request.signature == "reconstruct":
        return [cvae.reconstruct(image, label)]
    if request.signature == "classify_fast":
        probabilities = cvae.classify_fast(image)
        return [np.argmax(probabilities, axis=1), probabilities]
    if request.signature == "log_likelihood":
        found = importance_estimate(cvae, image, label, num_samples=K, seed=int(seed[0]))
        return [found.elbo, found.log_likelihood]
    if request.signature == "classify":
        found = likelihood_under_each_label(cvae, image, num_samples=K, label_margin=1e9, seed=int(seed[0]))
        joint = found.log_likelihood
        return [np.argmax(joint, axis=1), tf.nn.softmax(joint)]
    return [cvae.generate(label, seed)]


def _same(answer, others):
    return len(answer) == len(others) and all(
        [string.tobytes() for string in array] == [string.tobytes() for string in other]
        if array.dtype == object
        else np.array_equal(array, other)
        for array, other in zip(answer, others, strict=True)
    )


def _good_answers(server, models):
    """Good requests to every signature, of one, three and no rows, and what was answered, which is what the model says."""
    generator, found = np.random.default_rng(1), []
    for model in models:
        for signature in model.signatures:
            # Estimates by the Python model take seconds each.
            for rows in (3, 0) if signature in ESTIMATES else (1, 3, 0):
                request = good_request(generator, model, signature, rows)
                if signature in ESTIMATES:
                    # The Python model has one seed for all.
                    request.inputs["seed"][:] = request.inputs["seed"][:1]
                assert not faults(request)
                ((answer,), _) = server.ask([request])
                assert isinstance(answer, list), (str(request), answer)
                assert {len(array) for array in answer} == {rows}
                if signature == "generate_png":
                    pictures = [tf.io.decode_png(string.tobytes()).numpy() / 255 for string in answer[0]]
                    compared, tolerance = [np.reshape(pictures, (rows, 8, 8, 1))], 0.51 / 255
                else:
                    compared, tolerance = answer, 1e-5
                for array, expected in zip(compared, _expected(request) if rows else compared, strict=True):
                    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=tolerance, err_msg=str(request))
                found.append((request, answer))
    return [found[index] for index in generator.permutation(len(found))]


def _refused(request, outcome):
    """Whether a request had a status that names one of its faults, in a sentence that can be read."""
    if isinstance(outcome, list):
        return False
    code, message = outcome
    says = any(re.search(pattern, message) for pattern in sentences(request))
    return code == INVALID_ARGUMENT and says and len(message) < SENTENCE


def _checked_bad_request(generator, models, combination):
    model, signature, kind = combination
    request = bad_request(generator, models[model], signature, kind)
    found = faults(dataclasses.replace(request, signature=signature))
    # Neither a valid request by chance, nor one with other faults than it is counted for.
    if kind == "combination":
        assert len(found) > 1, str(request)
    else:
        assert {name for name, _ in found} == ({kind} - {"unknown output", "unknown signature"}), str(request)
    return request


def test_bad_requests_have_an_error_each_and_change_nothing(server, models, pytestconfig):
    start, number = time.monotonic(), pytestconfig.getoption("--bad-requests")
    generator, models = np.random.default_rng(0), models[0]
    combinations = [
        (model.index, signature, kind)
        for model in models
        for signature in model.signatures
        for kind in kinds(model, signature)
    ]
    assert number >= len(combinations), f"--bad-requests: expected {len(combinations)} at least, one of each kind"
    rounds = [generator.permutation(len(combinations)) for _ in range(-(-number // len(combinations)))]
    schedule = [combinations[index] for index in np.concatenate(rounds)[:number]]
    good = _good_answers(server, models)
    counts, good_counts, wrong, memory = collections.Counter(), collections.Counter(), [], []

    for block, first in enumerate(range(0, number, BLOCK)):
        asked = []
        for index, combination in enumerate(schedule[first : first + BLOCK], first + 1):
            asked.append((_checked_bad_request(generator, models, combination), combination))
            if index % EVERY == 0:
                which = index // EVERY % len(good)
                asked.append((good[which][0], which))
        for group in [asked] if block % 4 == 3 else [[each] for each in asked]:
            outcomes, resident = server.ask([request for request, _ in group])
            for (request, key), outcome in zip(group, outcomes, strict=True):
                if request.kind == "good":
                    good_counts[key] += 1
                    right = isinstance(outcome, list) and _same(outcome, good[key][1])
                else:
                    counts[key] += 1
                    right = _refused(request, outcome)
                if not right:
                    wrong.append(f"{request}: {'an answer' if isinstance(outcome, list) else outcome}")
        memory.append(resident)

    _report(counts, good_counts, memory, time.monotonic() - start)
    assert not wrong, f"{len(wrong)}, the first of which are\n" + "\n".join(wrong[:10])
    assert counts == collections.Counter(schedule)
    assert set(counts) == set(combinations)
    assert sum(counts.values()) == number
    assert sum(good_counts.values()) == number // EVERY
    assert len(good_counts) == min(len(good), number // EVERY)
    assert server.process.poll() is None
    if number >= LONG:
        # From a fifth on, as the session keeps what it has made for each set of names that it is given.
        assert memory[-1] < 1.1 * memory[len(memory) // 5]


def _report(counts, good_counts, memory, seconds):
    signatures = sorted({signature for _, signature, _ in counts})
    print(f"\n{sum(counts.values())} bad requests, {sum(good_counts.values())} good ones, {seconds:.0f} s")
    fifths = [round(memory[len(memory) * fifth // 5 - 1], 1) for fifth in range(1, 6)]
    print(f"memory after each fifth of them, in MB: {fifths}")
    print(" " * 18, *(f"{signature:>15}" for signature in signatures))
    for kind in dict.fromkeys(kind for _, _, kind in sorted(counts)):
        row = [sum(counts[key] for key in counts if key[1:] == (signature, kind)) for signature in signatures]
        print(f"{kind:18}", *(f"{count or '-':>15}" for count in row))


def test_sizes_beyond_32_bits_have_the_sentence_of_the_others(server, models):
    model, label = models[0][0], np.zeros(0, np.int64)
    for size in (2**31, 2**32 + 8, 2**40):
        request = Request(model, "encode", {"image": np.zeros((0, size, 8, 1), np.float32), "label": label})
        (((code, message),), _) = server.ask([request])
        assert code == INVALID_ARGUMENT
        assert f"image: expected shape [n, 8, 8, 1], got [0 {size} 8 1]" in message


def test_latents_too_large_for_the_network_are_refused(server, models):
    for model in models[0]:
        good = good_request(np.random.default_rng(0), model, "decode", 3)
        latent = good.inputs["latent"].copy()
        latent[1] = FLOAT32.max
        bad = dataclasses.replace(good, inputs={**good.inputs, "latent": latent}, kind="too large")
        (image,) = _expected(bad)
        assert np.isfinite(image).all(axis=(1, 2, 3)).tolist() == [True, False, True]
        (((code, message),), _) = server.ask([bad])
        assert code == INVALID_ARGUMENT
        assert "latent: expected values with a finite image, got [[3.40282347e+38" in message
        ((answer,), _) = server.ask([good])
        np.testing.assert_allclose(answer[0], _expected(good)[0], atol=1e-5)
