"""Sixty-four people at once, each in a conversation of their own, on the smallest server that serves them."""

import asyncio

import openai
import psutil
import pytest

from tests.scripts.evaluation.trained_model import trained
from tests.scripts.serving.running_server import COLOUR, COUNT, load, png, question, serving

__all__ = ["trained"]

CLIENTS, ROUNDS = 64, 3
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def server(trained):
    with serving(
        load(
            trained.model,
            max_batch_size=16,
            max_queue_size=CLIENTS,
            prefix_cache_bytes=4 << 20,
            image_cache_bytes=1 << 20,
        )
    ) as server:
        yield server


async def converse(client: openai.AsyncOpenAI, number: int, said: dict) -> None:
    """Three rounds, each streamed and each with an image of its own; every fourth client also misbehaves."""
    messages, colours = [], [COLOURS[(number + n) % 3] for n in range(ROUNDS)]
    for turn, colour in enumerate(colours):
        messages.append(question(COLOUR if turn == 0 else COUNT, colour))
        stream = await client.chat.completions.create(model="tiny", messages=messages, stream=True, max_tokens=24)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        messages.append({"role": "assistant", "content": "".join(pieces)})
        if number % 4 == 0:
            left = await client.chat.completions.create(model="tiny", messages=messages[:-1], stream=True)
            await left.close()
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": ""}])
    said[number] = [message["content"] for message in messages[1::2]]


def test_sixty_four_clients(server):
    async def everybody() -> dict:
        said: dict = {}
        async with openai.AsyncOpenAI(base_url=f"{server.url}v1", api_key="-", max_retries=0, timeout=300) as client:
            await asyncio.gather(*(converse(client, number, said) for number in range(CLIENTS)))
            alone: dict = {}
            for number in range(3):  # whoever has the same images has the same conversation
                await converse(client, number + CLIENTS * 3 + 1, alone)
        return said | alone

    before = psutil.Process().memory_info().rss
    said = asyncio.run(everybody())
    engine = server.service.models["tiny"].engine
    assert sorted(number for number in said if number < CLIENTS) == list(range(CLIENTS))
    for number in range(CLIENTS):
        twin = next(other for other in said if other >= CLIENTS and (other - number) % 3 == 0)
        assert said[number] == said[twin], "the crowd changes no answer"
        assert said[number][0] == f"It is {COLOURS[number % 3]}."
    state = engine.state()
    assert state["rows"] > 3 * state["steps"], "answers were made together"
    assert state["images_computed"] == 3 and state["prefix_cache_bytes"] <= 4 << 20
    assert state["running"] == state["waiting"] == 0
    assert psutil.Process().memory_info().rss - before < 300 << 20
    assert len(png("red")) < 1000
