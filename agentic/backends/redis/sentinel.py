"""Sentinels, which know the primary: how they are asked, with which password, and what their answers mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import redis.asyncio as aioredis
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from agentic.backends.redis.server_info import MISREAD, OutOfStep, Refused
from agentic.text import printable

# As bytes, so that the driver gives the answer as it is: what it makes of it differs from release to release.
SERVICES: Final = (b"SENTINEL", b"MASTERS")


class SentinelCredentials(CredentialProvider):
    """The user and password that sentinels are given: their own; else none, or the servers' once they want some."""

    def __init__(self, own: tuple[str, ...], servers: tuple[str, ...]) -> None:
        self.given = own
        self._second = own or servers

    async def get_credentials_async(self) -> Any:
        """Return the words of AUTH, none where the sentinels are asked without."""
        return self.given

    def try_servers(self) -> None:
        """Give the servers' from now on, unless the sentinels have some of their own."""
        self.given = self._second


class Sentinels(Sentinel):
    """Asks one sentinel after another which server is the primary; the one that answered is asked first next time."""

    def __init__(self, clients: Sequence[aioredis.Redis], credentials: SentinelCredentials) -> None:
        cast("Any", super()).__init__(())
        self.sentinels = list(clients)
        self._credentials = credentials

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the primary's host and port.

        Raises:
            Refused: No sentinel names one, and one of them refuses to answer, or none knows the service.
            MasterNotFoundError: No sentinel can be reached, or none of them takes a server for the primary at present.
        """
        failures: list[str] = []
        cause: RedisError | None = None
        refused, known = False, set[str]()
        for sentinel in tuple(self.sentinels):
            try:
                services = await self._services(sentinel)
            except RedisError as error:
                cause = error
                failures.append(_told(sentinel, error))
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
            watched = ", ".join(map(printable, sorted(known))) or "none"
            raise Refused(f"the sentinels know no service {printable(service_name)!r}; they watch: {watched}")
        reasons = f": {'; '.join(failures)}" if failures else ""
        raise MasterNotFoundError(
            f"the sentinels name no primary of {printable(service_name)!r} at present{reasons}"
        ) from cause

    async def _services(self, sentinel: Any) -> dict[str, dict[str, str]]:
        """Return what one sentinel says of the services that it watches, by name."""
        given = self._credentials.given
        try:
            answer = await sentinel.execute_command(*SERVICES)
        except AuthenticationError:
            self._credentials.try_servers()
            if self._credentials.given == given:
                raise
            answer = await sentinel.execute_command(*SERVICES)
        try:
            states = [{name.decode(): value.decode() for name, value in each.items()} for each in answer]
            return {state["name"]: state for state in states}
        except MISREAD as error:
            raise OutOfStep("the answer to SENTINEL MASTERS is of another form") from error


def _is_up(state: dict[str, str]) -> bool:
    """Tell whether a sentinel takes a service's server for a primary that can be reached."""
    flags = set(state["flags"].split(","))
    return "master" in flags and not flags & {"s_down", "o_down"}


def _told(sentinel: aioredis.Redis, error: Exception) -> str:
    place = sentinel.connection_pool.connection_kwargs
    hint = ""
    if isinstance(error, AuthenticationError):
        hint = " (check sentinel_username and sentinel_password)"
    return f"{place['host']}:{place['port']}: {printable(str(error), 200)}{hint}"
