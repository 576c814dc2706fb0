"""Clients, and what they share."""

import asyncio

import pytest

from scripts.serving.clients import FairCache, FairTurns, client_of, client_of_address


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown" * 20, ("unknown" * 20)[:64]),
    ],
)
def test_the_client_of_an_address(address, client):
    assert client_of_address(address) == client


def test_only_the_last_forwarded_address_of_a_trusted_proxy_counts():
    def client(peer: str, *forwarded: str) -> str:
        headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
        return client_of({"type": "http", "client": (peer, 1), "headers": headers}, {"10.0.0.1"})

    assert client("10.0.0.1", "1.1.1.1, 2.2.2.2") == client("10.0.0.1", "1.1.1.1", "2.2.2.2") == "2.2.2.2"
    assert client("10.0.0.2", "1.1.1.1") == "10.0.0.2" and client("10.0.0.1") == client("10.0.0.1", "") == "10.0.0.1"


def test_clients_take_turns():
    order: list[str] = []

    async def work(turns: FairTurns, name: str) -> None:
        async with turns.turn(name):
            order.append(name)
            await asyncio.sleep(0)

    async def all_work() -> None:
        turns = FairTurns(1, 1)
        await asyncio.gather(*(work(turns, name) for name in "aaaaabbc"))

    asyncio.run(all_work())
    assert order == list("aabcabaa") or order == list("abcabaaa"), order


def test_a_client_cannot_take_all_slots_and_given_up_turns_are_free():
    async def all_work() -> None:
        turns = FairTurns(2, 1)
        async with turns.turn("a"):
            with pytest.raises(TimeoutError):
                async with turns.turn("a", 0.01):
                    pytest.fail("a second slot for one client")
            waiting = asyncio.create_task(turns.turn("a").__aenter__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            async with turns.turn("b", 1):
                pass
        for name in "ab":
            async with turns.turn(name, 1):
                pass
        assert not turns._running and not turns._queues

    asyncio.run(all_work())


def test_a_cache_is_shared_equally():
    cache: FairCache[str] = FairCache(100)
    cache.put("a", 1, "mine", 30)
    for key in range(10, 30):
        cache.put("b", key, "theirs", 20)
    assert cache.get(1) == "mine" and cache.currsize == 90 and cache.get(29) == "theirs" and cache.get(10) is None
    for key in range(50, 53):
        cache.put("a", key, "mine", 20)
    assert cache.currsize <= 100 and cache.get(52) and cache.get(29), "a has the larger part now, and makes room"
    cache.put("c", 99, "too large", 101)
    assert cache.get(99) is None and cache.currsize <= 100
    for key in list(cache._owners):
        cache.pop(key)
    assert cache.currsize == 0 and not cache._shelves and not cache._sizes
