"""Log records that carry their facts as fields, for programs that read logs, beside the sentence for people."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class FieldLogger(_Adapter):
    """A logger whose every record carries the same fields, and those of its own call's `extra`.

    The fields of this library: `store`, the store's name as `AgentRegistry.store` gives it; `agent_id`; `count`, of
    agents; `failed_tries`, in a row.
    """

    def __init__(self, logger: logging.Logger, **fields: object) -> None:
        super().__init__(logger, fields)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the fields to a call's own."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
