"""Find the primary through sentinels: their queries, credentials and replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import redis.asyncio as aioredis
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from agentic.backends.redis.server_info import PARSE_ERRORS, OutOfStep, Refused
from agentic.text import printable

# As bytes, so that the driver returns the raw reply: its parsed form differs between releases.
LIST_SERVICES: Final = (b"SENTINEL", b"MASTERS")


class SentinelCredentials(CredentialProvider):
    """Credentials for sentinels: their own; or none at first, and the servers' once a sentinel requires some."""

    def __init__(self, own: tuple[str, ...], servers: tuple[str, ...]) -> None:
        self.current = own
        self._fallback = own or servers

    async def get_credentials_async(self) -> Any:
        """Return the arguments of AUTH; empty for no authentication."""
        return self.current

    def use_fallback(self) -> None:
        """Use the servers' credentials from now on, unless the sentinels have their own."""
        self.current = self._fallback


class Sentinels(Sentinel):
    """Asks the sentinels in turn for the primary; the one that answered goes first next time."""

    def __init__(self, clients: Sequence[aioredis.Redis], credentials: SentinelCredentials) -> None:
        cast("Any", super()).__init__(())
        self.sentinels = list(clients)
        self._credentials = credentials

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the primary's host and port.

        Raises:
            Refused: No sentinel names a primary, and one refused the query, or none knows the service.
            MasterNotFoundError: No sentinel can be reached, or none names a reachable primary at present.
        """
        failures: list[str] = []
        cause: RedisError | None = None
        refused, known = False, set[str]()
        for sentinel in tuple(self.sentinels):
            try:
                services = await self._services(sentinel)
            except RedisError as error:
                cause = error
                failures.append(_described(sentinel, error))
                refused = refused or isinstance(error, (AuthenticationError, ResponseError))
                continue
            known |= services.keys()
            state = services.get(service_name)
            if state and _is_up(state):
                self.sentinels.sort(key=lambda each: each is not sentinel)
                return state["ip"], int(state["port"])
        if refused:
            raise Refused(f"the sentinels refuse to name the primary: {'; '.join(failures)}")
        if service_name not in known and not failures:
            monitored = ", ".join(map(printable, sorted(known))) or "none"
            raise Refused(f"the sentinels know no service {printable(service_name)!r}; they monitor: {monitored}")
        reasons = f": {'; '.join(failures)}" if failures else ""
        raise MasterNotFoundError(
            f"the sentinels name no primary of {printable(service_name)!r} at present{reasons}"
        ) from cause

    async def _services(self, sentinel: Any) -> dict[str, dict[str, str]]:
        """Return the state of each service that a sentinel monitors, by name."""
        current = self._credentials.current
        try:
            answer = await sentinel.execute_command(*LIST_SERVICES)
        except AuthenticationError:
            self._credentials.use_fallback()
            if self._credentials.current == current:
                raise
            answer = await sentinel.execute_command(*LIST_SERVICES)
        try:
            states = [{name.decode(): value.decode() for name, value in each.items()} for each in answer]
            return {state["name"]: state for state in states}
        except PARSE_ERRORS as error:
            raise OutOfStep("the reply to SENTINEL MASTERS has an unexpected form") from error


def _is_up(state: dict[str, str]) -> bool:
    """Return whether a sentinel reports a service's server as a reachable primary."""
    flags = set(state["flags"].split(","))
    return "master" in flags and not flags & {"s_down", "o_down"}


def _described(sentinel: aioredis.Redis, error: Exception) -> str:
    place = sentinel.connection_pool.connection_kwargs
    hint = ""
    if isinstance(error, AuthenticationError):
        hint = " (check sentinel_username and sentinel_password)"
    return f"{place['host']}:{place['port']}: {printable(str(error), 200)}{hint}"
