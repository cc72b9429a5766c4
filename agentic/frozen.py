"""An immutable dict."""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError("this mapping cannot be changed: make a copy with dict(...) and change that")


_REFUSED: Final[Any] = _refuse


class FrozenDict(dict[K, V]):
    """An immutable `dict`, hashable if its values are.

    It subclasses `dict`, so that encoders and comparisons accept it. `dict(frozen)` makes a mutable copy.
    """

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _REFUSED

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict[K, V]], tuple[dict[K, V]]]:
        return type(self), (dict(self),)
