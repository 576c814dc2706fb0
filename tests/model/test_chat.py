"""A chat over many rounds: the model sees the whole conversation, images stay where they were shown."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from model.chat import ChatSession

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")


@pytest.fixture
def session(model, processor):
    # A random model answers with whatever comes first; an empty answer would not be a round.
    model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids
    return ChatSession(model, processor)


def test_rounds_equal_one_prompt_of_the_whole_conversation(session, model, processor):
    first = session.ask("Hello?", max_new_tokens=4)
    second = session.ask("What is this?", [RED], max_new_tokens=4)
    third = session.ask("Which of these?", [BLUE, RED], max_new_tokens=4)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hello?"}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": second},
        {
            "role": "user",
            "content": [
                {"type": "image", "index": 1},
                {"type": "image", "index": 2},
                {"type": "text", "text": "Which of these?"},
            ],
        },
    ]
    assert session.history[:-1] == messages and session.history[-1] == {"role": "assistant", "content": third}
    batch = processor(messages, [RED, BLUE, RED])
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert processor.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True) == third


def test_pieces_join_to_the_answer(session):
    pieces = []
    answer = session.ask("What?", [BLUE], max_new_tokens=12, on_text=pieces.append)
    assert answer and "".join(pieces) == answer


def test_clear_forgets(session):
    first = session.ask("What?", [RED], max_new_tokens=5)
    session.ask("And?", max_new_tokens=5)
    session.clear()
    assert session.history == [] and session.images == []
    assert session.ask("What?", [RED], max_new_tokens=5) == first


def test_system_text_is_said_first(session, model, processor):
    spoken = ChatSession(model, processor, system="Answer in one word.")
    answer = spoken.ask("What?", max_new_tokens=3)
    batch = processor(
        [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "What?"}],
    )
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert processor.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True) == answer


def test_what_fails_leaves_the_conversation_as_it_was(session):
    session.ask("What?", [RED], max_new_tokens=3)
    history, images = list(session.history), list(session.images)
    with pytest.raises(ValueError, match="does not fit into the 1024"):
        session.ask("long " * 1000, [BLUE])
    with pytest.raises(ValueError, match="the user message is empty"):
        session.ask("")
    assert session.history == history and session.images == images


def test_no_answer_is_no_round(model, processor):
    with torch.no_grad():
        # The end of the sequence becomes the likeliest token everywhere.
        model.get_output_embeddings().weight.zero_()
    model.generation_config.suppress_tokens = [t for t in range(320) if t != processor.tokenizer.eos_token_id]
    session = ChatSession(model, processor)
    assert session.ask("What?", [RED]) == "" and session.history == [] and session.images == []
    assert session.ask("What?") == ""
