"""Filters as expressions: (field("lexname") == "noun.animal") & field("count").range(gte=3)."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Tuple, Union


class Condition:
    """A condition on a record; joined by &, | and ~."""

    def __init__(self, packed: Dict[str, Any]):
        self._packed = packed

    def to_dict(self) -> Dict[str, Any]:
        """The filter as the protocol has it."""
        return self._packed if self._is_group() else {"must": [self._packed]}

    def _is_group(self) -> bool:
        return any(part in self._packed for part in ("must", "should", "must_not")) or not self._packed

    def _parts(self, name: str) -> List[Dict[str, Any]]:
        """The members where this is a group of that one kind, else itself as one member."""
        return list(self._packed[name]) if list(self._packed) == [name] else [self._packed]

    def __and__(self, other: "Condition") -> "Condition":
        return Condition({"must": self._parts("must") + _condition(other)._parts("must")})

    def __or__(self, other: "Condition") -> "Condition":
        return Condition({"should": self._parts("should") + _condition(other)._parts("should")})

    def __invert__(self) -> "Condition":
        return Condition({"must_not": [self._packed]})

    def __bool__(self) -> bool:
        raise TypeError("a condition is no truth value: join conditions by &, | and ~, in parentheses, "
                        "not by and, or and not")

    def __repr__(self) -> str:
        return f"Condition({self._packed})"


class Field:
    """A payload field, named by its path ("a" or "a.b")."""

    __hash__ = None    # type: ignore[assignment]

    def __init__(self, path: str):
        self._path = path

    def _with(self, test: str, value: Any) -> Condition:
        return Condition({"key": self._path, test: value})

    def __eq__(self, value: Any) -> Condition:    # type: ignore[override]
        return self._with("match", value)

    def __ne__(self, value: Any) -> Condition:    # type: ignore[override]
        return ~self._with("match", value)

    def __lt__(self, value: Any) -> Condition:
        return self.range(lt=value)

    def __le__(self, value: Any) -> Condition:
        return self.range(lte=value)

    def __gt__(self, value: Any) -> Condition:
        return self.range(gt=value)

    def __ge__(self, value: Any) -> Condition:
        return self.range(gte=value)

    def any(self, values: Iterable[Any]) -> Condition:
        """One of the values."""
        return self._with("any", list(values))

    def range(self, gt: Any = None, gte: Any = None, lt: Any = None, lte: Any = None) -> Condition:
        """Numbers, or datetimes (datetime objects or RFC 3339 text)."""
        given = {"gt": gt, "gte": gte, "lt": lt, "lte": lte}
        return self._with("range", {name: value for name, value in given.items() if value is not None})

    def exists(self, is_there: bool = True) -> Condition:
        return self._with("exists", is_there)

    def geo_radius(self, lat: float, lon: float, radius_m: float) -> Condition:
        return self._with("geo_radius", {"center": {"lat": lat, "lon": lon}, "radius_m": radius_m})

    def geo_box(self, min: Tuple[float, float], max: Tuple[float, float]) -> Condition:
        """Corners as (lat, lon); a box whose min.lon is above its max.lon crosses the date line."""
        return self._with("geo_box", {"min": {"lat": min[0], "lon": min[1]}, "max": {"lat": max[0], "lon": max[1]}})


Filter = Union[Condition, Dict[str, Any]]


def field(path: str) -> Field:
    return Field(path)


def ids(values: Iterable[Any]) -> Condition:
    """Records with one of these ids."""
    return Condition({"ids": list(values)})


def _condition(value: Any) -> Condition:
    if isinstance(value, Condition):
        return value
    if isinstance(value, dict):
        return Condition(value)
    raise TypeError(f"a condition is joined with a condition, not with {type(value).__name__}; are there parentheses missing?")


def packed(value: Optional[Filter]) -> Optional[Dict[str, Any]]:
    """None, or the filter's dict."""
    return None if value is None else _condition(value).to_dict()
