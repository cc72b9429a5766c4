"""A dict that cannot be changed."""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError("this mapping cannot be changed: change a copy, made with dict(...)")


_REFUSED: Final[Any] = _refuse


class FrozenDict(dict[K, V]):
    """A `dict` that cannot be changed, and has a hash when its values have one.

    A subclass, so that whatever encodes or compares a `dict` takes it as it is. `dict(frozen)` is a copy to change.
    """

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _REFUSED

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict[K, V]], tuple[dict[K, V]]]:
        return type(self), (dict(self),)
