"""libskerry through ctypes: one connection, calls as msgpack."""

from __future__ import annotations

import ctypes
import datetime
import os
import uuid
from typing import Any, Dict, Optional, Tuple, Union

import msgpack
import numpy as np

from . import _library, errors

# Operations that change something: without a certain answer their outcome is unknown.
_WRITES = frozenset(("upsert", "delete", "set_payload", "create_collection", "drop_collection", "alter_collection",
                     "restore", "snapshot", "create_key", "revoke_key"))


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("retriable", ctypes.c_bool), ("is_unreachable", ctypes.c_bool),
                ("name", ctypes.c_char * 24), ("field", ctypes.c_char * 80), ("message", ctypes.c_char * 480)]


class _Options(ctypes.Structure):
    _fields_ = [("server_key", ctypes.c_char_p), ("key_file", ctypes.c_char_p), ("public_key", ctypes.c_char_p),
                ("secret_key", ctypes.c_char_p), ("connect_deadline_ms", ctypes.c_uint32),
                ("deadline_ms", ctypes.c_uint32), ("reserved", ctypes.c_uint64 * 6)]


class _Bytes(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Hit(ctypes.Structure):
    _fields_ = [("id_text", ctypes.c_char_p), ("id_number", ctypes.c_uint64), ("score", ctypes.c_float),
                ("payload", _Bytes), ("vector", _Bytes), ("vector_map", _Bytes)]


class _Hits(ctypes.Structure):    # the part of struct skerry_hits that is read here
    _fields_ = [("query_count", ctypes.c_size_t), ("starts", ctypes.POINTER(ctypes.c_size_t)), ("hits", ctypes.c_void_p)]


_HIT = np.dtype({"names": ["text", "number", "score"], "formats": ["u8", "u8", "f4"],
                 "offsets": [_Hit.id_text.offset, _Hit.id_number.offset, _Hit.score.offset],
                 "itemsize": ctypes.sizeof(_Hit)})

_loaded: Optional[ctypes.CDLL] = None


def _library_loaded() -> ctypes.CDLL:
    global _loaded
    if _loaded is not None:
        return _loaded
    library = _library.load("skerry")
    handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
    error, out = ctypes.POINTER(_Error), ctypes.POINTER(ctypes.c_void_p)
    signatures = {
        "skerry_version": (text, []),
        "skerry_connect": (handle, [text, ctypes.POINTER(_Options), error]),
        "skerry_close": (None, [out]),
        "skerry_node_key": (text, [handle]),
        "skerry_node_version": (text, [handle]),
        "skerry_call": (ctypes.c_int, [handle, text, _Bytes, number, out, error]),
        "skerry_submit": (ctypes.c_int, [handle, text, _Bytes, number, ctypes.POINTER(ctypes.c_uint64), error]),
        "skerry_poll": (ctypes.c_int, [handle, number, ctypes.POINTER(ctypes.c_uint64), out, error]),
        "skerry_reply_bytes": (_Bytes, [handle]),
        "skerry_reply_error": (ctypes.c_int, [handle, error]),
        "skerry_reply_hits": (ctypes.c_int, [out, ctypes.POINTER(ctypes.POINTER(_Hits)), error]),
        "skerry_reply_free": (None, [out]),
        "skerry_hits_free": (None, [ctypes.POINTER(ctypes.POINTER(_Hits))]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _loaded = library
    return library


def version() -> str:
    """Of the library that is loaded."""
    return _library_loaded().skerry_version().decode()


def _raise(error: _Error, is_write: bool = False) -> None:
    raise errors.make(error.code, error.name.decode(), error.message.decode(errors="replace"),
                      error.field.decode(errors="replace"), error.retriable, is_write, error.is_unreachable)


def _other(value: Any) -> Any:
    """What msgpack does not know by itself."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)).isoformat()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no place in a request: {value!r}")


def pack(value: Any) -> bytes:
    return msgpack.packb(value, use_bin_type=True, default=_other)


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=False)


def _bytes_of(data: bytes) -> _Bytes:
    """Borrows data: keep it while this is in use."""
    return _Bytes(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))


class Connection:
    """struct skerry. Any number of threads may call at the same time."""

    def __init__(self, target: Union[str, "os.PathLike[str]"], server_key: Optional[str],
                 key: Union[None, str, "os.PathLike[str]", Tuple[str, str]], deadline_ms: int, connect_deadline_ms: int):
        self._library = _library_loaded()
        library, error = self._library, _Error()
        options = _Options(connect_deadline_ms=connect_deadline_ms, deadline_ms=deadline_ms)
        if server_key is not None:
            options.server_key = os.fsencode(server_key)
        if isinstance(key, tuple):
            options.public_key, options.secret_key = key[0].encode(), key[1].encode()
        elif key is not None:
            options.key_file = os.fsencode(key)
        self._handle = ctypes.c_void_p(library.skerry_connect(os.fsencode(target), ctypes.byref(options),
                                                              ctypes.byref(error)))
        if not self._handle:
            _raise(error)

    def close(self) -> None:
        if getattr(self, "_handle", None):
            self._library.skerry_close(ctypes.byref(self._handle))

    def __del__(self) -> None:
        self.close()

    def _open(self) -> ctypes.c_void_p:
        if not self._handle:
            raise errors.Invalid("the client is closed")
        return self._handle

    @property
    def node_key(self) -> str:
        return self._library.skerry_node_key(self._open()).decode()

    @property
    def node_version(self) -> str:
        return self._library.skerry_node_version(self._open()).decode()

    def _reply(self, op: str, fields: Dict[str, Any], deadline_ms: int) -> ctypes.c_void_p:
        data, error, reply = pack(fields), _Error(), ctypes.c_void_p()
        if self._library.skerry_call(self._open(), op.encode(), _bytes_of(data), deadline_ms, ctypes.byref(reply),
                                     ctypes.byref(error)) != 0:
            _raise(error, op in _WRITES)
        return reply

    def _take(self, reply: ctypes.c_void_p) -> Dict[str, Any]:
        try:
            held = self._library.skerry_reply_bytes(reply)
            return unpack(ctypes.string_at(held.bytes, held.size))
        finally:
            self._library.skerry_reply_free(ctypes.byref(reply))

    def call(self, op: str, fields: Dict[str, Any], deadline_ms: int = 0) -> Dict[str, Any]:
        """The reply's map."""
        return self._take(self._reply(op, fields, deadline_ms))

    def hits(self, fields: Dict[str, Any], deadline_ms: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A search of many queries as arrays: starts (n + 1), then ids and scores of all hits."""
        reply, found, error = self._reply("search", fields, deadline_ms), ctypes.POINTER(_Hits)(), _Error()
        code = self._library.skerry_reply_hits(ctypes.byref(reply), ctypes.byref(found), ctypes.byref(error))
        self._library.skerry_reply_free(ctypes.byref(reply))
        if code != 0:
            _raise(error)
        try:
            count = found.contents.query_count
            starts = np.array(found.contents.starts[:count + 1], dtype=np.int64)
            total = int(starts[-1])
            if total == 0:
                return starts, np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.float32)
            raw = (ctypes.c_char * (total * _HIT.itemsize)).from_address(found.contents.hits)
            table = np.frombuffer(raw, dtype=_HIT)    # type: ignore[call-overload]
            ids: np.ndarray = table["number"].copy()
            is_text = table["text"] != 0
            if is_text.any():
                ids = ids.astype(object)
                for at in np.flatnonzero(is_text):
                    ids[at] = ctypes.string_at(int(table["text"][at])).decode()
            return starts, ids, table["score"].copy()
        finally:
            self._library.skerry_hits_free(ctypes.byref(found))

    # Requests in flight: used by one thread at a time (the lock of Client).

    def submit(self, op: str, fields: Dict[str, Any], deadline_ms: int) -> int:
        data, error, ticket = pack(fields), _Error(), ctypes.c_uint64()
        if self._library.skerry_submit(self._open(), op.encode(), _bytes_of(data), deadline_ms, ctypes.byref(ticket),
                                       ctypes.byref(error)) != 0:
            _raise(error, op in _WRITES)
        return ticket.value

    def poll(self, op: str, timeout_ms: int) -> Optional[Tuple[int, Union[Dict[str, Any], errors.SkerryError]]]:
        """The ticket of a request that ended and its reply or error; None: none did in that time."""
        error, ticket, reply = _Error(), ctypes.c_uint64(), ctypes.c_void_p()
        if self._library.skerry_poll(self._open(), timeout_ms, ctypes.byref(ticket), ctypes.byref(reply),
                                     ctypes.byref(error)) != 0:
            _raise(error, op in _WRITES)
        if not reply:
            return None
        if self._library.skerry_reply_error(reply, ctypes.byref(error)) != 0:
            self._library.skerry_reply_free(ctypes.byref(reply))
            try:
                _raise(error, op in _WRITES)
            except errors.SkerryError as raised:
                return ticket.value, raised
        return ticket.value, self._take(reply)
