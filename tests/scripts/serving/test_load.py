"""64 concurrent clients, each with its own conversation, on a server with small caches."""

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


async def run_dialogue(client: openai.AsyncOpenAI, number: int, answers: dict) -> None:
    """Three streamed rounds, each with a new image; every fourth client also disconnects and sends bad requests."""
    messages, colours = [], [COLOURS[(number + n) % 3] for n in range(ROUNDS)]
    for turn, colour in enumerate(colours):
        messages.append(question(COLOUR if turn == 0 else COUNT, colour))
        stream = await client.chat.completions.create(model="tiny", messages=messages, stream=True, max_tokens=24)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        messages.append({"role": "assistant", "content": "".join(texts)})
        if number % 4 == 0:
            left = await client.chat.completions.create(model="tiny", messages=messages[:-1], stream=True)
            await left.close()
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": ""}])
    answers[number] = [message["content"] for message in messages[1::2]]


def test_sixty_four_clients(server):
    async def all_clients() -> dict:
        answers: dict = {}
        async with openai.AsyncOpenAI(base_url=f"{server.url}v1", api_key="-", max_retries=0, timeout=300) as client:
            await asyncio.gather(*(run_dialogue(client, number, answers) for number in range(CLIENTS)))
            alone: dict = {}
            for number in range(3):  # equal images make equal conversations
                await run_dialogue(client, number + CLIENTS * 3 + 1, alone)
        return answers | alone

    before = psutil.Process().memory_info().rss
    answers = asyncio.run(all_clients())
    engine = server.service.models["tiny"].engine
    assert sorted(number for number in answers if number < CLIENTS) == list(range(CLIENTS))
    for number in range(CLIENTS):
        twin = next(other for other in answers if other >= CLIENTS and (other - number) % 3 == 0)
        assert answers[number] == answers[twin], "other clients change no answer"
        assert answers[number][0] == f"It is {COLOURS[number % 3]}."
    state = engine.state()
    assert state["rows"] > 3 * state["steps"], "answers were generated in batches"
    assert state["images_computed"] == 3 and state["prefix_cache_bytes"] <= 4 << 20
    assert state["running"] == state["waiting"] == 0
    assert psutil.Process().memory_info().rss - before < 300 << 20
    assert len(png("red")) < 1000
