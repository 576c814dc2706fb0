"""Who sends a request, and equal shares of what several clients use together.

A client is an address. In IPv6 it is a network of 64 bits, of which one machine can use all addresses. Behind a trusted
proxy it is the address that the proxy has added to X-Forwarded-For.
"""

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from starlette.datastructures import Headers
from starlette.types import Scope

Value = TypeVar("Value")
_MAX_CLIENTS = 10_000  # whose wrong keys are remembered


def client_of_address(address: str) -> str:
    """The client that an address belongs to."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def client_of(scope: Scope, trusted: Collection[str]) -> str:
    """The client that sent a request. `trusted` are the addresses of proxies, as `client_of_address` gives them."""
    client = client_of_address(scope["client"][0] if scope.get("client") else "")
    if client in trusted:
        # Each proxy appends the address that it sees; only the last one comes from the proxy that is trusted.
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).rpartition(",")[2].strip()
        if forwarded:
            return client_of_address(forwarded.strip("[]"))
    return client


class KeyGuesses:
    """Wrong keys of each client: after `burst` of them, one in `interval` seconds is compared."""

    def __init__(self, burst: int = 20, interval: float = 6.0) -> None:
        self.burst, self.interval = burst, interval
        self._debts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (wrong keys, when)

    def wait(self, client: str) -> float:
        """Seconds until another key of this client is compared; 0 for now."""
        return max(0.0, (self._debt(client) - self.burst + 1) * self.interval)

    def wrong(self, client: str) -> None:
        """Note a wrong key."""
        self._debts[client] = self._debt(client) + 1, time.monotonic()
        self._debts.move_to_end(client)
        if len(self._debts) > _MAX_CLIENTS:
            self._debts.popitem(last=False)

    def _debt(self, client: str) -> float:
        wrong, when = self._debts.get(client, (0.0, 0.0))
        return max(0.0, wrong - (time.monotonic() - when) / self.interval)


class FairTurns:
    """At most `slots` users at once, and `per_client` of one client; clients that wait take turns."""

    def __init__(self, slots: int, per_client: int) -> None:
        self.slots, self.per_client = slots, per_client
        self._running: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, client: str, timeout: float | None = None) -> AsyncIterator[None]:
        """Wait for a slot, and hold it until the block ends.

        Raises:
            TimeoutError: no slot became free within `timeout` seconds.
        """
        future = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(future)
        self._next()
        try:
            await asyncio.wait_for(asyncio.shield(future), timeout)
        except BaseException:
            if future.done():  # it got the slot just now
                self._release(client)
            else:
                future.cancel()
                self._queues[client].remove(future)
                if not self._queues[client]:
                    del self._queues[client]
            raise
        try:
            yield
        finally:
            self._release(client)

    def _release(self, client: str) -> None:
        self._running[client] -= 1
        self._next()

    def _next(self) -> None:
        """Give free slots to the clients in turn."""
        while self._running.total() < self.slots:
            client = next((name for name in self._queues if self._running[name] < self.per_client), None)
            if client is None:
                break
            queue = self._queues.pop(client)
            future = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind the others
            self._running[client] += 1
            future.set_result(None)
        self._running += Counter()  # drops clients without a slot


class FairCache(Generic[Value]):
    """Values of several clients within `maxsize` bytes; not safe for threads.

    Space is made by the client that holds most, by what it has used least recently. So nobody can push out what others
    hold within their equal share.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize, self.currsize = maxsize, 0
        self._owners: dict[Hashable, str] = {}
        self._shelves: dict[str, OrderedDict[Hashable, tuple[Value, int]]] = {}
        self._sizes: Counter[str] = Counter()

    def get(self, key: Hashable) -> Value | None:
        """The value of a key, `None` if there is none (any more)."""
        if key not in self._owners:
            return None
        shelf = self._shelves[self._owners[key]]
        shelf.move_to_end(key)
        return shelf[key][0]

    def put(self, client: str, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of `size` bytes; one that is larger than the whole cache is not kept."""
        self.pop(key)
        if size > self.maxsize:
            return
        self._owners[key] = client
        self._shelves.setdefault(client, OrderedDict())[key] = value, size
        self._sizes[client] += size
        self.currsize += size
        while self.currsize > self.maxsize:
            most = max(self._sizes, key=self._sizes.__getitem__)
            self.pop(next(iter(self._shelves[most])))

    def clear(self) -> None:
        """Remove all values."""
        for key in list(self._owners):
            self.pop(key)

    def pop(self, key: Hashable) -> None:
        """Remove a value, if it is there."""
        if (client := self._owners.pop(key, None)) is None:
            return
        _, size = self._shelves[client].pop(key)
        self.currsize -= size
        self._sizes[client] -= size
        if not self._shelves[client]:
            del self._shelves[client], self._sizes[client]
