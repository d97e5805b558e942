"""The index engine in this process: no node, no socket. numpy in, numpy out."""

from __future__ import annotations

import ctypes
import os
from typing import Optional, Tuple

import numpy as np

from . import _library

_ABI = 1
_ERROR_BYTES = 512
_KINDS = ("hnsw", "flat")
_PROFILES = ("balanced",)
NO_ID = np.uint64(2**64 - 1)    # fills up where fewer than k were found; its score is NaN


class IndexEngineError(Exception):
    """The engine refused; `code` is a number of the error table."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class _Options(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_uint32), ("dim", ctypes.c_uint32), ("metric", ctypes.c_char_p),
                ("index", ctypes.c_char_p), ("profile", ctypes.c_char_p), ("m", ctypes.c_uint32),
                ("ef_construction", ctypes.c_uint32), ("seed", ctypes.c_uint64),
                ("memory_bytes_max", ctypes.c_uint64), ("isa", ctypes.c_char_p),
                ("keep_vectors", ctypes.c_int32)]


_loaded: Optional[ctypes.CDLL] = None


def _engine() -> ctypes.CDLL:
    global _loaded
    if _loaded is not None:
        return _loaded
    library = _library.load("skerry_index")
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    signatures = {
        "skerry_index_abi": (ctypes.c_uint32, []),
        "skerry_index_new": (ctypes.c_int, [ctypes.POINTER(pointer), ctypes.POINTER(_Options), text, size]),
        "skerry_index_free": (None, [pointer]),
        "skerry_index_add": (ctypes.c_int, [pointer, size, pointer, pointer, text, size]),
        "skerry_index_remove": (ctypes.c_int, [pointer, size, pointer, ctypes.POINTER(size), text, size]),
        "skerry_index_search": (ctypes.c_int, [pointer, size, pointer, ctypes.c_uint32, ctypes.c_uint32,
                                               ctypes.c_uint32, pointer, pointer, text, size]),
        "skerry_index_compact": (ctypes.c_int, [pointer, text, size]),
        "skerry_index_save": (ctypes.c_int, [pointer, text, text, size]),
        "skerry_index_load": (ctypes.c_int, [ctypes.POINTER(pointer), text, ctypes.POINTER(_Options), text, size]),
        "skerry_index_count": (ctypes.c_uint64, [pointer]),
        "skerry_index_dim": (ctypes.c_uint32, [pointer]),
        "skerry_index_metric": (text, [pointer]),
        "skerry_index_kind": (text, [pointer]),
        "skerry_index_memory_bytes": (ctypes.c_uint64, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.skerry_index_abi() != _ABI:
        raise ImportError(f"libskerry_index speaks ABI {library.skerry_index_abi()}, this package {_ABI}: "
                          "build both from the same release")
    _loaded = library
    return library


def _vectors(values, dim: int, what: str) -> np.ndarray:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim == 1:
        array = array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"{what}: the shape is {np.shape(values)}, want (n, {dim})")
    return array


def _ids(values, count: Optional[int] = None) -> np.ndarray:
    array = np.ascontiguousarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size > 0):
        raise ValueError("ids: want one row of unsigned integers")
    if array.dtype.kind == "i" and array.size > 0 and int(array.min()) < 0:
        raise ValueError(f"ids: {int(array.min())} is negative")
    if count is not None and array.size != count:
        raise ValueError(f"ids: {array.size} for {count} vectors")
    return np.ascontiguousarray(array, dtype=np.uint64)


class Index:
    """Nearest neighbours in this process.

    metric: "l2" (scores are Euclidean distances, smaller is better), "ip" or "cosine" (larger is better).
    index: "hnsw" or "flat". Calls may come from any thread; searches run side by side.
    keep_vectors: keep the float32 vectors too, so that every score is exact (default for flat); without
    them scores come from 8-bit codes, about 0.1 % off, at less than half of the memory.
    """

    def __init__(self, dim: int, metric: str = "l2", index: str = "hnsw", m: int = 16, ef_construction: int = 200,
                 profile: str = "balanced", seed: int = 1, memory_bytes_max: int = 0,
                 keep_vectors: Optional[bool] = None, isa: Optional[str] = None):
        if index not in _KINDS:
            raise ValueError(f"index: there is no '{index}' in this release; there are: {', '.join(_KINDS)}")
        if profile not in _PROFILES:
            raise ValueError(f"profile: there is no '{profile}' in this release; there are: {', '.join(_PROFILES)}")
        options = _Options(_ABI, dim, metric.encode(), index.encode(), profile.encode(), m, ef_construction, seed,
                           memory_bytes_max, isa.encode() if isa else None,
                           -1 if keep_vectors is None else int(keep_vectors))
        self._handle = ctypes.c_void_p()
        self._call(_engine().skerry_index_new, ctypes.byref(self._handle), ctypes.byref(options))

    @classmethod
    def load(cls, path, memory_bytes_max: int = 0, isa: Optional[str] = None) -> "Index":
        """What save() wrote."""
        self = cls.__new__(cls)
        self._handle = ctypes.c_void_p()
        options = _Options(_ABI, memory_bytes_max=memory_bytes_max, isa=isa.encode() if isa else None,
                           keep_vectors=-1)
        self._call(_engine().skerry_index_load, ctypes.byref(self._handle), os.fsencode(path),
                   ctypes.byref(options))
        return self

    @staticmethod
    def _call(function, *arguments) -> None:
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        code = function(*arguments, error, _ERROR_BYTES)
        if code == 0:
            return
        message = error.value.decode(errors="replace")
        if code == 1:
            raise MemoryError(message)
        if code in (2, 5, 7):    # invalid, too_large, dim_mismatch
            raise ValueError(message)
        raise IndexEngineError(code, message)

    def add(self, ids, vectors, threads: int = 1) -> None:
        """Ids that are there already get the new vector. vectors: (n, dim) float32. One writer: `threads`
        is taken for the sake of symmetry and must be 1."""
        if threads != 1:
            raise ValueError(f"threads: {threads}; this release adds with one")
        array = _vectors(vectors, self.dim, "vectors")
        numbers = _ids(ids, len(array))
        self._call(_engine().skerry_index_add, self._handle, len(array), numbers.ctypes.data, array.ctypes.data)

    def remove(self, ids) -> int:
        """How many of the ids were there."""
        numbers, removed = _ids(ids), ctypes.c_size_t()
        self._call(_engine().skerry_index_remove, self._handle, len(numbers), numbers.ctypes.data,
                   ctypes.byref(removed))
        return removed.value

    def search(self, queries, k: int = 10, ef: int = 64, threads: int = 1) -> Tuple[np.ndarray, np.ndarray]:
        """ids (n, k) uint64 and scores (n, k) float32, best first; NO_ID and NaN where fewer were found."""
        array = _vectors(queries, self.dim, "queries")
        ids = np.empty((len(array), k), dtype=np.uint64)
        scores = np.empty((len(array), k), dtype=np.float32)
        self._call(_engine().skerry_index_search, self._handle, len(array), array.ctypes.data, k, ef, threads,
                   ids.ctypes.data, scores.ctypes.data)
        return ids, scores

    def compact(self) -> None:
        """Sweeps removed rows out now."""
        self._call(_engine().skerry_index_compact, self._handle)

    def save(self, path) -> None:
        """Written beside path first, then renamed over it."""
        self._call(_engine().skerry_index_save, self._handle, os.fsencode(path))

    def __len__(self) -> int:
        return int(_engine().skerry_index_count(self._handle))

    @property
    def dim(self) -> int:
        return int(_engine().skerry_index_dim(self._handle))

    @property
    def metric(self) -> str:
        return _engine().skerry_index_metric(self._handle).decode()

    @property
    def kind(self) -> str:
        return _engine().skerry_index_kind(self._handle).decode()

    @property
    def memory_bytes(self) -> int:
        """All memory of the index: graph, codes, vectors where kept, id tables."""
        return int(_engine().skerry_index_memory_bytes(self._handle))

    def close(self) -> None:
        if getattr(self, "_handle", None):
            _engine().skerry_index_free(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if _loaded is not None:
            self.close()

    def __repr__(self) -> str:
        return f"Index(dim={self.dim}, metric='{self.metric}', index='{self.kind}', rows={len(self)})"
