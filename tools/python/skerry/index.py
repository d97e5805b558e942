"""The index engine in this process: no node, no socket. numpy in, numpy out."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np

from . import _library

_ABI = 2
_ERROR_BYTES = 512
NO_ID = np.uint64(2**64 - 1)    # fills up where fewer than k were found; its score is NaN


class IndexEngineError(Exception):
    """The engine refused; `code` is a number of the error table."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class _Options(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_uint32), ("dim", ctypes.c_uint32), ("metric", ctypes.c_char_p),
                ("index", ctypes.c_char_p), ("profile", ctypes.c_char_p), ("m", ctypes.c_uint32),
                ("ef_construction", ctypes.c_uint32), ("nlist", ctypes.c_uint32), ("pq_m", ctypes.c_uint32),
                ("refine", ctypes.c_uint32), ("seed", ctypes.c_uint64),
                ("memory_bytes_max", ctypes.c_uint64), ("isa", ctypes.c_char_p),
                ("keep_vectors", ctypes.c_int32), ("vectors_path", ctypes.c_char_p)]


class _SearchOptions(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_uint32), ("threads", ctypes.c_uint32), ("ef", ctypes.c_uint32),
                ("nprobe", ctypes.c_uint32), ("recall", ctypes.c_float), ("filter", ctypes.c_void_p)]


class _Recall(ctypes.Structure):
    _fields_ = [("target", ctypes.c_float), ("measured", ctypes.c_float), ("ef_mean", ctypes.c_float),
                ("samples", ctypes.c_uint32)]


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
        "skerry_index_search": (ctypes.c_int, [pointer, size, pointer, ctypes.c_uint32,
                                               ctypes.POINTER(_SearchOptions), pointer, pointer, text, size]),
        "skerry_index_filter_new": (ctypes.c_int, [ctypes.POINTER(pointer), pointer, size, pointer, text, size]),
        "skerry_index_filter_new_mask": (ctypes.c_int, [ctypes.POINTER(pointer), pointer, size, pointer, text, size]),
        "skerry_index_filter_free": (None, [pointer]),
        "skerry_index_filter_count": (ctypes.c_uint64, [pointer]),
        "skerry_index_calibrate": (ctypes.c_int, [pointer, size, pointer, ctypes.c_uint32, text, size]),
        "skerry_index_get_recall": (None, [pointer, ctypes.POINTER(_Recall)]),
        "skerry_index_compact": (ctypes.c_int, [pointer, text, size]),
        "skerry_index_save": (ctypes.c_int, [pointer, text, text, size]),
        "skerry_index_load": (ctypes.c_int, [ctypes.POINTER(pointer), text, ctypes.POINTER(_Options), text, size]),
        "skerry_index_count": (ctypes.c_uint64, [pointer]),
        "skerry_index_dim": (ctypes.c_uint32, [pointer]),
        "skerry_index_metric": (text, [pointer]),
        "skerry_index_kind": (text, [pointer]),
        "skerry_index_profile": (text, [pointer]),
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


class Filter:
    """Which ids a search may return: made by Index.filter(), used by any number of searches of that index. It
    goes on meaning the same ids while rows come and go. len() tells how many rows match now."""

    def __init__(self, index: "Index", values: Any, copy: bool = True):
        array = np.asarray(values)
        self._handle = ctypes.c_void_p()
        self._index = index    # lives as long
        if array.dtype == np.bool_:
            if array.ndim != 1:
                raise ValueError(f"filter: a mask of shape {array.shape}, want (n,): mask[i] is for id i")
            self._array = array.copy() if copy else np.ascontiguousarray(array)
            make = _engine().skerry_index_filter_new_mask
        else:
            self._array = _ids(array)
            if copy and np.shares_memory(self._array, array):
                self._array = self._array.copy()
            make = _engine().skerry_index_filter_new
        _call(make, ctypes.byref(self._handle), index._handle, len(self._array), self._array.ctypes.data)

    def __len__(self) -> int:
        return int(_engine().skerry_index_filter_count(self._handle)) if self._index._handle else 0

    def __del__(self) -> None:
        if _loaded is not None and getattr(self, "_handle", None):
            _engine().skerry_index_filter_free(self._handle)
            self._handle = ctypes.c_void_p()


class Index:
    """Nearest neighbours in this process.

    metric: "l2" (scores are Euclidean distances, smaller is better), "ip" or "cosine" (larger is better).
    index: "hnsw", "flat", "ivf_flat", "ivf_pq" or "hybrid". profile (hnsw): "balanced", "speed" or "memory".
    keep_vectors: keep the float32 vectors in memory too, so that every score is exact (default for flat);
    without them scores come from codes, about 0.1 % off (profile memory: 1 %), at less than half of the memory.
    vectors_path: keep them in this new file instead, read through the page cache, which memory_bytes does not
    count; profile memory is made for it. The file is locked while the index is open and belongs to the index
    file that was saved last.
    Calls may come from any thread; searches run side by side. An id that is the number of its row (0, 1, 2, ...
    added in order) costs no memory.
    """

    def __init__(self, dim: int, metric: str = "l2", index: str = "hnsw", m: int = 0, ef_construction: int = 0,
                 profile: Optional[str] = None, seed: int = 1, memory_bytes_max: int = 0,
                 keep_vectors: Optional[bool] = None, isa: Optional[str] = None, nlist: int = 0, pq_m: int = 0,
                 refine: int = 0, vectors_path: Union[None, str, "os.PathLike[str]"] = None):
        options = _Options(abi=_ABI, dim=dim, metric=metric.encode(), index=index.encode(),
                           profile=profile.encode() if profile else None, m=m, ef_construction=ef_construction,
                           nlist=nlist, pq_m=pq_m, refine=refine, seed=seed, memory_bytes_max=memory_bytes_max,
                           isa=isa.encode() if isa else None,
                           keep_vectors=-1 if keep_vectors is None else int(keep_vectors),
                           vectors_path=os.fsencode(vectors_path) if vectors_path is not None else None)
        self._handle = ctypes.c_void_p()
        _call(_engine().skerry_index_new, ctypes.byref(self._handle), ctypes.byref(options))

    @classmethod
    def load(cls, path, memory_bytes_max: int = 0, isa: Optional[str] = None, profile: Optional[str] = None,
             vectors_path: Union[None, str, "os.PathLike[str]"] = None) -> "Index":
        """What save() wrote. vectors_path: where the vectors' file is now, if it has moved; or a new file, for an
        index that kept its vectors in memory. profile: converts an hnsw index of another."""
        self = cls.__new__(cls)
        self._handle = ctypes.c_void_p()
        options = _Options(abi=_ABI, memory_bytes_max=memory_bytes_max, isa=isa.encode() if isa else None,
                           profile=profile.encode() if profile else None,
                           keep_vectors=-1,
                           vectors_path=os.fsencode(vectors_path) if vectors_path is not None else None)
        _call(_engine().skerry_index_load, ctypes.byref(self._handle), os.fsencode(path), ctypes.byref(options))
        return self

    def add(self, ids, vectors, threads: int = 1) -> None:
        """Ids that are there already get the new vector. vectors: (n, dim) float32. One writer: `threads`
        is taken for the sake of symmetry and must be 1."""
        if threads != 1:
            raise ValueError(f"threads: {threads}; this release adds with one")
        array = _vectors(vectors, self.dim, "vectors")
        numbers = _ids(ids, len(array))
        _call(_engine().skerry_index_add, self._handle, len(array), numbers.ctypes.data, array.ctypes.data)

    def remove(self, ids) -> int:
        """How many of the ids were there."""
        numbers, removed = _ids(ids), ctypes.c_size_t()
        _call(_engine().skerry_index_remove, self._handle, len(numbers), numbers.ctypes.data,
                   ctypes.byref(removed))
        return removed.value

    def filter(self, values) -> Filter:
        """For search(filter=...), prepared once: an array of the ids that may be returned, or an array of bool
        whose item i is for id i."""
        return Filter(self, values)

    def search(self, queries, k: int = 10, ef: int = 0, threads: int = 1, *, nprobe: int = 0, recall: float = 0,
               filter: Any = None) -> Tuple[np.ndarray, np.ndarray]:    # pylint: disable=redefined-builtin
        """ids (n, k) uint64 and scores (n, k) float32, best first; NO_ID and NaN where fewer were found.

        ef (hnsw, 0 = 64), nprobe (ivf kinds, 0 = automatic) or recall (0.5 to 0.999): how thorough; one of them.
        filter: what filter() makes, or what it takes: only these ids are returned, and never fewer than k while
        as many match."""
        array = _vectors(queries, self.dim, "queries")
        ids = np.empty((len(array), k), dtype=np.uint64)
        scores = np.empty((len(array), k), dtype=np.float32)
        options = _SearchOptions(_ABI, threads, ef, nprobe, recall)
        if filter is not None:
            if not isinstance(filter, Filter):
                filter = Filter(self, filter, copy=False)
            options.filter = filter._handle
        _call(_engine().skerry_index_search, self._handle, len(array), array.ctypes.data, k, ctypes.byref(options),
              ids.ctypes.data, scores.ctypes.data)
        return ids, scores

    def calibrate(self, queries=None, k: int = 10) -> None:
        """Learns what search(recall=...) needs (hnsw; nothing else has to): from typical queries, or from the rows
        alone, for about this k. Some ms a query and 100,000 rows, and a second or two for what it makes
        itself; searches wait meanwhile. Without it add() and remove() do the same in passing once a search had a target; until then such
        searches walk with a large fixed beam. Not saved."""
        array = _vectors(queries if queries is not None else np.empty((0, self.dim)), self.dim, "queries")
        _call(_engine().skerry_index_calibrate, self._handle, len(array), array.ctypes.data, k)

    @property
    def recall(self) -> Dict[str, float]:
        """Of searches with the recall target asked for last: target, measured (the share of true neighbours that
        the latest `samples` known queries find), ef_mean. All 0: not known yet."""
        out = _Recall()
        _engine().skerry_index_get_recall(self._handle, ctypes.byref(out))
        return {"target": out.target, "measured": out.measured, "ef_mean": out.ef_mean, "samples": out.samples}

    def compact(self) -> None:
        """Sweeps removed rows out now."""
        _call(_engine().skerry_index_compact, self._handle)

    def save(self, path) -> None:
        """Written beside path first, then renamed over it."""
        _call(_engine().skerry_index_save, self._handle, os.fsencode(path))

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
    def profile(self) -> str:
        return _engine().skerry_index_profile(self._handle).decode()

    @property
    def memory_bytes(self) -> int:
        """All memory of the index: graph, codes, vectors where kept in memory, id tables."""
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
