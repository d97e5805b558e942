"""Skerry, a vector database: the client of a node, and the index engine in this process.

    with skerry.connect("DIR") as db:
        docs = db.create_collection("docs", dim=384, metric="cosine", payload={"lexname": "keyword"})
        docs.upsert(ids, vectors, payloads)
        hits = docs.search(query, limit=10, filter=skerry.field("lexname") == "noun.animal")
"""

from . import filters
from ._library import LibraryNotFound
from .client import Client, Collection, Hit, Record, connect
from .errors import (Busy, Deadline, DimMismatch, DiskFull, Exists, Forbidden, Internal, Invalid, NotFound, OutcomeUnknown,
                     OutOfMemory, SkerryError, TooLarge, Unauthorized, Unavailable, UnknownField, Unreachable,
                     VersionMismatch)
from .filters import Condition, Field, field, ids
from .index import NO_ID, Index, IndexEngineError

__version__ = "0.1.0"

__all__ = ["Busy", "Client", "Collection", "Condition", "Deadline", "DimMismatch", "DiskFull", "Exists", "Field", "Forbidden",
           "Hit", "Index", "IndexEngineError", "Internal", "Invalid", "LibraryNotFound", "NO_ID", "NotFound", "OutOfMemory",
           "OutcomeUnknown", "Record", "SkerryError", "TooLarge", "Unauthorized", "Unavailable", "UnknownField",
           "Unreachable", "VersionMismatch", "connect", "field", "filters", "ids"]
