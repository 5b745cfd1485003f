"""Runs a SavedModel through the C++ loader of the tensorflow wheel, in a process that never imports Python TensorFlow.

As a script: the folder of the model, an `.npz` of inputs, a JSON file of calls, and an `.npz` of outputs to write. This
is what the server does with a model: the same loader, the same session, requests in threads, and XLA switched off.
"""

import concurrent.futures
import contextlib
import ctypes
import importlib.util
import json
import pathlib
import sys

import numpy as np

THREADS = 4
_TYPES = {1: np.float32, 9: np.int64}
_STRING = 7
_NUMBERS = {np.dtype(kind): number for number, kind in _TYPES.items()}
_pointer = ctypes.c_void_p


class _Output(ctypes.Structure):
    _fields_ = (("operation", _pointer), ("index", ctypes.c_int))


class Error(Exception):
    """What the loader or the session says.

    Attributes:
        code: As of absl::StatusCode; 3 is INVALID_ARGUMENT.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def _library():
    folder = pathlib.Path(importlib.util.find_spec("tensorflow").origin).parent
    ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), mode=ctypes.RTLD_GLOBAL)
    for name in (
        "TF_NewStatus",
        "TF_NewSessionOptions",
        "TF_NewGraph",
        "TF_LoadSessionFromSavedModel",
        "TF_GraphOperationByName",
        "TF_AllocateTensor",
        "TF_TensorData",
        "TF_StringGetDataPointer",
    ):
        getattr(library, name).restype = _pointer
    for name in ("TF_TensorByteSize", "TF_StringGetSize"):
        getattr(library, name).restype = ctypes.c_size_t
    library.TF_Dim.restype = ctypes.c_int64
    library.TF_Message.restype = ctypes.c_char_p
    # What the server does at its start: a graph with XLA in it fails from here on.
    library._ZN10tensorflow21DisableXlaCompilationEv()
    return library


class Session:
    """A loaded model.

    Args:
        folder: That of the version.
    """

    def __init__(self, folder):
        self._tf = _library()
        self._graph = _pointer(self._tf.TF_NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        options = _pointer(self._tf.TF_NewSessionOptions())
        path = str(folder).encode()
        with self._status() as status:
            self._session = _pointer(
                self._tf.TF_LoadSessionFromSavedModel(options, None, path, tags, 1, self._graph, None, status)
            )

    def run(self, feeds, fetches):
        """Outputs by the names of tensors, in their order, for arrays by the names of tensors."""
        inputs = (_Output * len(feeds))(*map(self._output, feeds))
        tensors = (_pointer * len(feeds))(*map(self._tensor, feeds.values()))
        outputs = (_Output * len(fetches))(*map(self._output, fetches))
        found = (_pointer * len(fetches))()
        try:
            with self._status() as status:
                self._tf.TF_SessionRun(
                    *(self._session, None, inputs, tensors, len(feeds), outputs, found, len(fetches)),
                    *(None, 0, None, status),
                )
        finally:
            for tensor in tensors:
                self._tf.TF_DeleteTensor(_pointer(tensor))
        arrays = [self._array(_pointer(tensor)) for tensor in found]
        for tensor in found:
            self._tf.TF_DeleteTensor(_pointer(tensor))
        return arrays

    @contextlib.contextmanager
    def _status(self):
        """A status for one call, as calls may be in several threads; what it says is raised."""
        status = _pointer(self._tf.TF_NewStatus())
        try:
            yield status
            code = self._tf.TF_GetCode(status)
            if code:
                raise Error(code, self._tf.TF_Message(status).decode())
        finally:
            self._tf.TF_DeleteStatus(status)

    def _output(self, name):
        operation, index = name.split(":")
        found = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
        if not found:
            raise KeyError(name)
        return _Output(found, int(index))

    def _tensor(self, array):
        array = np.ascontiguousarray(array) if array.ndim else array
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = self._tf.TF_AllocateTensor(_NUMBERS[array.dtype], shape, array.ndim, ctypes.c_size_t(array.nbytes))
        ctypes.memmove(self._tf.TF_TensorData(_pointer(tensor)), array.tobytes(), array.nbytes)
        return tensor

    def _array(self, tensor):
        shape = [self._tf.TF_Dim(tensor, axis) for axis in range(self._tf.TF_NumDims(tensor))]
        data, size = self._tf.TF_TensorData(tensor), self._tf.TF_TensorByteSize(tensor)
        kind = self._tf.TF_TensorType(tensor)
        if kind == _STRING:
            count = int(np.prod(shape))
            strings = [_pointer(data + size // count * index) for index in range(count)]
            # Not as NumPy strings, which would lose zeros at the end.
            found = np.empty(count, dtype=object)
            for index, string in enumerate(strings):
                value = ctypes.string_at(self._tf.TF_StringGetDataPointer(string), self._tf.TF_StringGetSize(string))
                found[index] = np.frombuffer(value, np.uint8)
            return found
        return np.frombuffer(ctypes.string_at(data, size), _TYPES[kind]).reshape(shape)


def main(folder, inputs, calls, outputs):
    """Makes the calls, several at a time, and writes its outputs as `CALL.NAME`, or its error as `CALL.error` and `CALL.code`."""
    arrays, found = dict(np.load(inputs)), {}
    session = Session(folder)

    def answer(call):
        try:
            feeds = {tensor: arrays[key] for tensor, key in call["feeds"].items()}
            return dict(zip(call["fetches"], session.run(feeds, list(call["fetches"].values())), strict=True))
        except Error as error:
            return {"error": str(error), "code": error.code}

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for number, outcome in enumerate(pool.map(answer, json.loads(pathlib.Path(calls).read_text()))):
            found.update({f"{number}.{name}": value for name, value in outcome.items()})
    assert not [name for name in sys.modules if name.startswith(("tensorflow", "tf_keras", "tfp_cvae"))]
    np.savez(outputs, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
