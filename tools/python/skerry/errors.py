"""One exception class for each error of the protocol."""

from __future__ import annotations

from typing import Dict, Optional, Type


class SkerryError(Exception):
    """An operation failed. `str()` says what was wrong and what would be right."""

    code: int = 0
    name: str = "unknown"
    retriable: bool = False        # the same request may succeed later
    field: Optional[str] = None    # of the request, where one is at fault

    def __init__(self, message: str, code: Optional[int] = None, name: Optional[str] = None,
                 field: Optional[str] = None, retriable: Optional[bool] = None):
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if name is not None:
            self.name = name
        if retriable is not None:
            self.retriable = retriable
        self.field = field


class OutOfMemory(SkerryError):
    code, name = 1, "out_of_memory"


class Invalid(SkerryError, ValueError):
    code, name = 2, "invalid"


class UnknownField(SkerryError, ValueError):
    code, name = 3, "unknown_field"


class Busy(SkerryError):
    code, name, retriable = 4, "busy", True


class TooLarge(SkerryError, ValueError):
    code, name = 5, "too_large"


class Exists(SkerryError):
    code, name = 6, "exists"


class DimMismatch(SkerryError, ValueError):
    code, name = 7, "dim_mismatch"


class Unauthorized(SkerryError):
    code, name = 8, "unauthorized"


class Forbidden(SkerryError):
    code, name = 9, "forbidden"


class Deadline(SkerryError, TimeoutError):
    code, name, retriable = 10, "deadline", True


class Unavailable(SkerryError):
    code, name, retriable = 11, "unavailable", True


class NotFound(SkerryError, LookupError):
    code, name = 12, "not_found"


class DiskFull(SkerryError):
    code, name, retriable = 13, "disk_full", True


class VersionMismatch(SkerryError):
    code, name = 14, "version"


class Internal(SkerryError):
    code, name = 15, "internal"


class OutcomeUnknown(SkerryError):
    """A write got no certain answer: it may have been applied, may be a moment later, or never. It was not sent again."""


class _DeadlineOfWrite(OutcomeUnknown, Deadline):
    code, name, retriable = 10, "deadline", True


class _UnavailableForWrite(OutcomeUnknown, Unavailable):
    code, name, retriable = 11, "unavailable", True


class Unreachable(Unavailable, ConnectionError):
    """There is no talking to the node at all: nothing listens there, or the handshake was refused."""


_BY_CODE: Dict[int, Type[SkerryError]] = {
    kind.code: kind for kind in (OutOfMemory, Invalid, UnknownField, Busy, TooLarge, Exists, DimMismatch, Unauthorized,
                                 Forbidden, Deadline, Unavailable, NotFound, DiskFull, VersionMismatch, Internal)}


def make(code: int, name: str, message: str, field: Optional[str], retriable: bool, is_write: bool = False,
         is_unreachable: bool = False) -> SkerryError:
    """The exception for an error as the library tells it."""
    kind = _BY_CODE.get(code, SkerryError)
    if is_write and kind is Deadline:
        kind = _DeadlineOfWrite
    elif is_write and kind is Unavailable:
        kind = _UnavailableForWrite
    elif is_unreachable and kind is Unavailable:
        kind = Unreachable
    return kind(message, code, name, field or None, retriable)
