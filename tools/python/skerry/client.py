"""A node and its collections."""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from typing import Any, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from . import _native, errors, filters

Id = Union[int, str, uuid.UUID]
Vectors = Union[np.ndarray, Sequence[Sequence[float]], Mapping[str, Any]]
Payload = Mapping[str, Any]

_ROWS_MAX = 10000                   # of one request
_FRAME_BYTES = 8 << 20              # what a part of a large upsert aims at: the node can write one while the next comes
_IN_FLIGHT = 2


class Hit(NamedTuple):
    """A neighbour. `vector` is float32 (a dict by name where the collection has several), where it was asked for."""

    id: Union[int, str]
    score: float
    payload: Optional[Dict[str, Any]] = None
    vector: Any = None


class Record(NamedTuple):
    id: Union[int, str]
    payload: Optional[Dict[str, Any]] = None
    vector: Any = None
    version: Any = None             # equal versions of a record are equal records


def connect(target: Union[str, "os.PathLike[str]"], server_key: Optional[str] = None,
            key: Union[None, str, "os.PathLike[str]", Tuple[str, str]] = None, deadline_ms: int = 5000,
            connect_deadline_ms: int = 2000) -> "Client":
    """A client of the node in a folder ("DIR"), or at "tcp://HOST:PORT" over CURVE.

    server_key: the node's public key (node.json tells it) or a file with it. key: the client's key file, or its (public,
    secret) pair. deadline_ms: of calls that name none. Raises Unreachable where nothing answers, Unauthorized where the
    handshake is refused.
    """
    return Client(_native.Connection(target, server_key, key, deadline_ms, connect_deadline_ms), deadline_ms)


def _ids(values: Any) -> List[Union[int, str]]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    return [str(one) if isinstance(one, uuid.UUID) else one for one in values]


def _is_one_id(value: Any) -> bool:
    return isinstance(value, (int, str, uuid.UUID, np.integer))


def _matrix(values: Any, count: Optional[int], what: str) -> np.ndarray:
    """(n, dim) float32, rows one after the other."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what}: want numbers, rows of equal length; got {array.dtype}")
    array = np.ascontiguousarray(array, dtype="<f4")
    if array.ndim == 1 and count in (None, 1):
        array = array.reshape(1, -1)
    if array.ndim != 2:
        raise ValueError(f"{what}: the shape is {array.shape}, want (n, dim)")
    if count is not None and len(array) != count:
        raise ValueError(f"{what}: {len(array)} rows for {count} ids")
    return array


def _vector(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _vector(one) for name, one in data.items()}
    return np.frombuffer(data, dtype="<f4").copy() if isinstance(data, bytes) else data


def _given(**fields: Any) -> Dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


class Client:
    """One connection to one node; threads may share it. Close it, or use it in a `with`."""

    def __init__(self, connection: _native.Connection, deadline_ms: int):
        self._connection = connection
        self._deadline_ms = deadline_ms
        self._in_flight = threading.Lock()    # one large upsert at a time has requests in flight

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def call(self, op: str, deadline_ms: Optional[int] = None, **fields: Any) -> Dict[str, Any]:
        """Any operation of the protocol, its fields as keywords; returns the reply's map."""
        return self._connection.call(op, fields, deadline_ms or 0)

    def ping(self, deadline_ms: Optional[int] = None) -> Dict[str, Any]:
        return self.call("ping", deadline_ms)

    def info(self) -> Dict[str, Any]:
        return self.call("info")

    def stats(self) -> Dict[str, Any]:
        return self.call("stats")

    def topology(self) -> Dict[str, Any]:
        return self.call("topology")

    @property
    def node_key(self) -> str:
        """The node's public key."""
        return self._connection.node_key

    @property
    def node_version(self) -> str:
        return self._connection.node_version

    # ---- collections ----

    def create_collection(self, name: str, dim: Optional[int] = None, metric: str = "cosine", index: str = "hnsw",
                          m: Optional[int] = None, ef_construction: Optional[int] = None, profile: Optional[str] = None,
                          nlist: Optional[int] = None, pq_m: Optional[int] = None, refine: Optional[int] = None,
                          vectors: Optional[Mapping[str, Any]] = None, payload: Optional[Mapping[str, str]] = None,
                          shards: Optional[int] = None, memory_bytes_max: Optional[int] = None,
                          deadline_ms: Optional[int] = None) -> "Collection":
        """`dim` and what follows for one vector field; or `vectors`, {name: {"dim": .., "metric": .., "index": ..}}.
        payload: {field: "keyword", "integer", "float", "bool", "datetime" or "geo"}. Raises Exists.

        index: "hnsw" takes m (16), ef_construction (200) and profile ("balanced", "speed" or "memory"); "ivf_flat" takes
        nlist; "ivf_pq" and "hybrid" take nlist, pq_m and refine (None or 0: automatic); "flat" takes nothing and is exact.
        A parameter of another index raises Invalid."""
        if (dim is None) == (vectors is None):
            raise ValueError("create_collection wants dim, or vectors for several fields")
        if vectors is None:
            settings = _given(type=index, m=m, ef_construction=ef_construction, profile=profile,
                              nlist=nlist, pq_m=pq_m, refine=refine)
            vectors = {"dim": dim, "metric": metric, "index": settings}
        self.call("create_collection", deadline_ms, collection=name, vectors=vectors,
                  **_given(payload=payload, shards=shards, memory_bytes_max=memory_bytes_max))
        return Collection(self, name)

    def collection(self, name: str) -> "Collection":
        """Asks nothing of the node: calls on it raise NotFound where there is no such collection."""
        return Collection(self, name)

    def list_collections(self) -> List[Any]:
        return self.call("list_collections")["collections"]

    def drop_collection(self, name: str, deadline_ms: Optional[int] = None) -> None:
        self.call("drop_collection", deadline_ms, collection=name)

    def restore(self, collection: str, name: str, deadline_ms: int = 60000) -> "Collection":
        """A new collection from the snapshot `name`."""
        self.call("restore", deadline_ms, collection=collection, name=name)
        return Collection(self, collection)

    # ---- keys ----

    def create_key(self, name: str, public_key: str, role: str = "read") -> None:
        """Lets the key in from now on; role: "admin", "write" or "read"."""
        self.call("create_key", name=name, public_key=public_key, role=role)

    def revoke_key(self, name: str) -> None:
        self.call("revoke_key", name=name)

    def list_keys(self) -> List[Dict[str, Any]]:
        return self.call("list_keys")["keys"]

    # ---- requests in flight ----

    def _run_all(self, op: str, parts: Iterator[Dict[str, Any]], deadline_ms: int, counted: str) -> int:
        """Sends the parts, two in flight, and adds up what was counted. The first error stops it: nothing more is sent,
        what is in flight is waited for, and the error's `done` says how much was counted."""
        total, failed = 0, None
        with self._in_flight:
            waiting: Deque[int] = deque()
            while True:
                while failed is None and len(waiting) < _IN_FLIGHT:
                    part = next(parts, None)
                    if part is None:
                        break
                    waiting.append(self._connection.submit(op, part, deadline_ms))
                if not waiting:
                    break
                ended = self._connection.poll(op, deadline_ms)
                if ended is None:       # every request ends by its deadline; look again
                    continue
                waiting.remove(ended[0])
                if isinstance(ended[1], errors.SkerryError):
                    failed = failed or ended[1]
                else:
                    total += ended[1][counted]
        if failed is not None:
            setattr(failed, "done", total)
            raise failed
        return total


class Collection:
    """The records of one collection; made by Client.collection and Client.create_collection."""

    def __init__(self, client: Client, name: str):
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"Collection('{self.name}')"

    def _call(self, op: str, deadline_ms: Optional[int], **fields: Any) -> Dict[str, Any]:
        return self._client._connection.call(op, {"collection": self.name, **fields}, deadline_ms or 0)

    # ---- writing ----

    def upsert(self, ids: Any, vectors: Vectors, payloads: Optional[Sequence[Optional[Payload]]] = None,
               ttl_s: Union[None, float, Sequence[Optional[float]]] = None, deadline_ms: Optional[int] = None) -> int:
        """Inserts or replaces whole records; returns how many, when they are durable.

        ids: integers, strings or UUIDs, one for each row. vectors: (n, dim) numbers, or {name: that} where the collection has
        several vector fields. payloads: a dict or None for each. ttl_s: seconds to live, one or one for each. One id
        with one vector works too. What is more than a request holds is sent in parts; where one fails, the error's `done` says
        how many records were written before.
        """
        if _is_one_id(ids):
            ids, payloads = [ids], None if payloads is None else [payloads]    # type: ignore[list-item]
        ids = _ids(ids)
        count = len(ids)
        if isinstance(vectors, Mapping):
            columns = {name: _matrix(one, count, f"vectors['{name}']") for name, one in vectors.items()}
        else:
            columns = {"": _matrix(vectors, count, "vectors")}
        if payloads is not None:
            payloads = list(payloads)
            if len(payloads) != count:
                raise ValueError(f"payloads: {len(payloads)} for {count} ids")
        is_each = ttl_s is not None and not isinstance(ttl_s, (int, float, np.number))
        if is_each:
            ttl_s = np.asarray(ttl_s).tolist() if isinstance(ttl_s, np.ndarray) else list(ttl_s)    # type: ignore[arg-type]
            if len(ttl_s) != count:
                raise ValueError(f"ttl_s: {len(ttl_s)} for {count} ids")
        row_bytes = sum(one.shape[1] * 4 for one in columns.values()) + 64 + (_payload_bytes(payloads) if payloads else 0)
        rows = max(1, min(_ROWS_MAX, _FRAME_BYTES // row_bytes))

        def part(at: int) -> Dict[str, Any]:
            to = at + rows
            cut = {name: one[at:to].tobytes() for name, one in columns.items()}
            return _given(collection=self.name, ids=ids[at:to], vectors=cut[""] if "" in cut else cut,
                          payloads=None if payloads is None else payloads[at:to],
                          ttl_s=ttl_s[at:to] if is_each else ttl_s)    # type: ignore[index]

        if count <= rows:
            return self._client.call("upsert", deadline_ms, **part(0))["upserted"]
        return self._client._run_all("upsert", (part(at) for at in range(0, count, rows)),
                                     deadline_ms or max(self._client._deadline_ms, 30000), "upserted")

    def delete(self, ids: Any = None, filter: Optional[filters.Filter] = None, deadline_ms: Optional[int] = None) -> int:
        """By ids (one or many) or by a filter; returns how many there were."""
        return self._call("delete", deadline_ms, **self._which(ids, filter))["deleted"]

    def set_payload(self, payload: Payload, ids: Any = None, filter: Optional[filters.Filter] = None,
                    mode: str = "merge", deadline_ms: Optional[int] = None) -> int:
        """mode "merge": puts these keys in, None takes a key out; "replace": this is the payload. Returns how many."""
        return self._call("set_payload", deadline_ms, payload=payload, mode=mode, **self._which(ids, filter))["updated"]

    @staticmethod
    def _which(ids: Any, filter: Optional[filters.Filter]) -> Dict[str, Any]:
        if (ids is None) == (filter is None):
            raise ValueError("want ids or filter, one of the two")
        if filter is not None:
            return {"filter": filters.packed(filter)}
        return {"ids": _ids([ids] if _is_one_id(ids) else ids)}

    # ---- reading ----

    def search(self, vector: Any = None, limit: int = 10, filter: Optional[filters.Filter] = None,
               score_threshold: Optional[float] = None, with_payload: Union[bool, Sequence[str]] = True,
               with_vector: bool = False, exact: Optional[bool] = None, ef: Optional[int] = None,
               using: Optional[str] = None, like: Optional[Id] = None, deadline_ms: Optional[int] = None,
               nprobe: Optional[int] = None, recall: Optional[float] = None) -> List[Hit]:
        """The nearest neighbours of a vector, or of the record `like`, best first. with_payload may list the keys wanted.

        How hard to look, at most one of: ef (hnsw: the beam, 64), nprobe (ivf_flat, ivf_pq and hybrid: lists looked at) and
        recall (any index: the share of the true nearest that is wanted on average, 0.5 to 0.999); exact compares with
        every record."""
        fields: Dict[str, Any] = {"limit": limit, "with_payload": with_payload}
        if (vector is None) == (like is None):
            raise ValueError("search wants a vector, or like=ID")
        if like is not None:
            fields["like"] = _ids([like])[0]
        else:
            array = np.ascontiguousarray(vector, dtype="<f4")
            if array.ndim != 1 and array.shape[0] != 1:
                raise ValueError(f"search takes one vector, the shape is {array.shape}; many: search_many")
            fields["vector"] = array.tobytes()
        if with_vector:
            fields["with_vector"] = True
        if filter is not None:
            fields["filter"] = filters.packed(filter)
        fields.update(_given(score_threshold=score_threshold, exact=exact, ef=ef, nprobe=nprobe, recall=recall, using=using))
        return [Hit(hit["id"], hit["score"], hit.get("payload"), _vector(hit.get("vector")))
                for hit in self._call("search", deadline_ms, **fields)["hits"]]

    def search_many(self, vectors: Any, limit: int = 10, filter: Optional[filters.Filter] = None,
                    score_threshold: Optional[float] = None, exact: Optional[bool] = None, ef: Optional[int] = None,
                    using: Optional[str] = None, deadline_ms: Optional[int] = None, nprobe: Optional[int] = None,
                    recall: Optional[float] = None) -> Tuple[np.ndarray, np.ndarray]:
        """ids (n, limit) and scores (n, limit) of n queries, best first. ids are uint64, or objects where some are text;
        where a query has fewer hits, the rest of its scores is NaN and of its ids 2**64-1 or None. ef, nprobe and recall
        as in search."""
        queries = _matrix(vectors, None, "vectors")
        fields = {"collection": self.name, "limit": limit,
                  **_given(filter=filters.packed(filter), score_threshold=score_threshold, exact=exact, ef=ef,
                           nprobe=nprobe, recall=recall, using=using)}
        many = max(1, min(1024, _FRAME_BYTES // (queries.shape[1] * 4 + 1)))
        parts = [self._client._connection.hits({**fields, "vectors": queries[at:at + many].tobytes()}, deadline_ms or 0)
                 for at in range(0, len(queries), many)]
        is_text = any(ids.dtype == object for _, ids, _ in parts)
        ids = np.full((len(queries), limit), None if is_text else 2**64 - 1, dtype=object if is_text else np.uint64)
        scores = np.full((len(queries), limit), np.nan, dtype=np.float32)
        row = 0
        for starts, part_ids, part_scores in parts:
            for at, to in zip(starts[:-1], starts[1:]):
                ids[row, :to - at], scores[row, :to - at] = part_ids[at:to], part_scores[at:to]
                row += 1
        return ids, scores

    def get(self, ids: Any, with_payload: Union[bool, Sequence[str]] = True, with_vector: bool = False,
            deadline_ms: Optional[int] = None) -> Any:
        """The records in the order asked, None where there is none; for one id, that record or None."""
        is_one = _is_one_id(ids)
        records = self._call("get", deadline_ms, ids=_ids([ids] if is_one else ids), with_payload=with_payload,
                             with_vector=with_vector)["records"]
        found = [None if one is None else _record(one) for one in records]
        return found[0] if is_one else found

    def scroll(self, filter: Optional[filters.Filter] = None, page: int = 1000,
               with_payload: Union[bool, Sequence[str]] = True, with_vector: bool = False,
               deadline_ms: Optional[int] = None) -> Iterator[Record]:
        """Every record in the order of ids, asked for page by page."""
        fields = {"limit": page, "with_payload": with_payload, "with_vector": with_vector,
                  **_given(filter=filters.packed(filter))}
        cursor = None
        while True:
            reply = self._call("scroll", deadline_ms, cursor=cursor, **fields)
            for one in reply["records"]:
                yield _record(one)
            cursor = reply["cursor"]
            if cursor is None:
                return

    def count(self, filter: Optional[filters.Filter] = None, deadline_ms: Optional[int] = None) -> int:
        return self._call("count", deadline_ms, **_given(filter=filters.packed(filter)))["count"]

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        return True     # an empty collection is one too, and asking should cost nothing

    # ---- the collection itself ----

    def describe(self) -> Dict[str, Any]:
        """Its schema, counts and the state of its indexes."""
        return self._call("describe_collection", None)

    def alter(self, payload: Optional[Mapping[str, Optional[str]]] = None,
              index: Union[None, str, Mapping[str, Any]] = None, memory_bytes_max: Optional[int] = None) -> None:
        """payload: {field: kind} to add, {field: None} to drop. index: a type ("ivf_pq"), or the type and parameters to change
        ({"type": "ivf_pq", "nlist": 1024}, {"profile": "memory"}); where there are several vector fields {name: that}.
        An index changes behind, while searches go on; wait() returns when it is done, describe() shows how far it is."""
        self._call("alter_collection", None, **_given(payload=payload, index=index, memory_bytes_max=memory_bytes_max))

    def wait(self, deadline_ms: int = 60000) -> None:
        """Returns when everything written so far is in the index; raises Deadline when that takes longer."""
        self._call("wait", deadline_ms, **{"for": "indexed"})

    def verify(self, deadline_ms: int = 60000) -> Dict[str, Any]:
        return self._call("verify", deadline_ms)

    def compact(self, deadline_ms: int = 60000) -> Dict[str, Any]:
        return self._call("compact", deadline_ms)

    def snapshot(self, name: str, deadline_ms: int = 60000) -> Dict[str, Any]:
        """A consistent copy in the node's snapshots/."""
        return self._call("snapshot", deadline_ms, name=name)

    def drop(self, deadline_ms: Optional[int] = None) -> None:
        self._client.drop_collection(self.name, deadline_ms)


def _payload_bytes(payloads: Iterable[Optional[Payload]]) -> int:
    """What a payload takes, from a few of them."""
    few = [one for one, _ in zip(payloads, range(32))]
    return len(_native.pack(few)) // max(1, len(few)) + 16


def _record(one: Dict[str, Any]) -> Record:
    return Record(one["id"], one.get("payload"), _vector(one.get("vector")), one.get("version"))
