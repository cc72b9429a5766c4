"""The schema with which pydantic validates, serializes and describes a struct. Imported only when pydantic asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast, get_type_hints

import msgspec
import msgspec.structs
from pydantic_core import core_schema

T = TypeVar("T")


def struct_schema(struct: type[T], handler: Callable[[object], Any]) -> core_schema.CoreSchema:
    """Return the schema of a struct, which is validated from an instance or its fields and serialized as its fields.

    Args:
        struct: `AgentInfo` or `Drain`.
        handler: Pydantic's function that returns the schema of a type.
    """
    required = {field.name for field in msgspec.structs.fields(cast("type[msgspec.Struct]", struct)) if field.required}
    fields = {name: handler(hint) for name, hint in get_type_hints(struct).items()}

    def described(all_required: bool) -> core_schema.CoreSchema:
        return core_schema.typed_dict_schema(
            {
                name: core_schema.typed_dict_field(field, required=all_required or name in required)
                for name, field in fields.items()
            },
            extra_behavior="forbid",
            metadata={"pydantic_js_updates": {"title": struct.__name__}},
        )

    def read(value: object, check: Callable[[object], dict[str, Any]]) -> T:
        return value if isinstance(value, struct) else struct(**check(value))

    return core_schema.no_info_wrap_validator_function(
        read,
        described(False),
        serialization=core_schema.plain_serializer_function_ser_schema(
            lambda value: {name: getattr(value, name) for name in fields}, return_schema=described(True)
        ),
    )
