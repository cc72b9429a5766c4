"""The schema with which pydantic validates, serializes and describes an agent. Imported only when pydantic asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from pydantic_core import core_schema

T = TypeVar("T")


def agent_schema(agent_class: type[T], handler: Callable[[object], Any]) -> core_schema.CoreSchema:
    """Return the schema of an agent, which is validated from an `AgentInfo` or its fields and serialized as its fields.

    Args:
        agent_class: `AgentInfo`.
        handler: Pydantic's function that returns the schema of a type.
    """
    fields = {name: handler(hint) for name, hint in get_type_hints(agent_class).items()}

    def described(all_required: bool) -> core_schema.CoreSchema:
        return core_schema.typed_dict_schema(
            {
                name: core_schema.typed_dict_field(field, required=all_required or name == "id")
                for name, field in fields.items()
            },
            extra_behavior="forbid",
            metadata={"pydantic_js_updates": {"title": "AgentInfo"}},
        )

    def read(value: object, check: Callable[[object], dict[str, Any]]) -> T:
        return value if isinstance(value, agent_class) else agent_class(**check(value))

    return core_schema.no_info_wrap_validator_function(
        read,
        described(False),
        serialization=core_schema.plain_serializer_function_ser_schema(
            lambda agent: {name: getattr(agent, name) for name in fields}, return_schema=described(True)
        ),
    )
