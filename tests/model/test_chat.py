"""A chat over many rounds: the model sees the whole conversation, of which only what is new is computed."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from model.chat import ChatSession
from model.configuration import VisualChatConfig
from model.image_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.template import Template
from tests.tiny_models import make_model

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")


@pytest.fixture(scope="module", params=["mmca", "causal", "dattn"])
def model(request, folder, processor):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    model = VisualChatForConditionalGeneration.from_pretrained(folder, config=config)
    # A random model may end its answer at once, and an empty answer is not a round.
    model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids
    return model


@pytest.fixture
def session(model, processor):
    return ChatSession(model, processor)


@pytest.fixture
def computed(model):
    """Counts the tokens that pass the decoder: a list with one entry per forward."""
    counts = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    yield counts
    hook.remove()


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


def test_answers_depend_on_what_was_asked_and_shown(model, processor):
    # Otherwise the other tests here would compare nothing.
    asked = [("What?", [RED]), ("What?", [BLUE]), ("Who?", [RED]), ("What?", []), ("What?", [RED, BLUE])]
    asked += [("What?", [BLUE, RED])]
    answers = {ChatSession(model, processor).ask(*question, max_new_tokens=4) for question in asked}
    assert len(answers) == len(asked)


def test_pieces_join_to_the_answer(session):
    pieces = []
    answer = session.ask("What?", [BLUE], max_new_tokens=12, on_text=pieces.append)
    assert answer and "".join(pieces) == answer


def test_clear_removes_the_conversation(session):
    first = session.ask("What?", [RED], max_new_tokens=5)
    session.ask("And?", max_new_tokens=5)
    session.clear()
    assert session.history == [] and session.images == []
    assert session.ask("What?", [RED], max_new_tokens=5) == first


def test_system_text_comes_first(session, model, processor):
    with_system = ChatSession(model, processor, system="Answer in one word.")
    answer = with_system.ask("What?", max_new_tokens=3)
    batch = processor(
        [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "What?"}],
    )
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert processor.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True) == answer


def test_a_failing_question_leaves_the_conversation_unchanged(session):
    session.ask("What?", [RED], max_new_tokens=3)
    history, images = list(session.history), list(session.images)
    with pytest.raises(ValueError, match="does not fit into the 1024"):
        session.ask("long " * 1000, [BLUE])
    with pytest.raises(ValueError, match="the user message is empty"):
        session.ask("")
    assert session.history == history and session.images == images


def test_no_answer_is_no_round(folder, processor):
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    model.generation_config.suppress_tokens = [t for t in range(320) if t != processor.tokenizer.eos_token_id]
    session = ChatSession(model, processor)
    assert session.ask("What?", [RED]) == "" and session.history == [] and session.images == []
    assert session.ask("What?") == ""


def test_a_round_costs_its_text_only(session, model, processor, computed):
    tokens = processor.image_tokens
    session.ask("What is this?", [RED, BLUE], max_new_tokens=3)
    first, computed[:] = computed[:], []
    prompt = len(processor.encode(session.history[:-1]))
    if model.config.attention == "causal":
        assert first[0] == prompt
    else:
        assert first[:-2] == [2 * tokens, prompt - 2 * tokens], "images, then text"
    answered = processor.encode(session.history)
    for images in ([], [RED], []):
        session.ask("And now?", images, max_new_tokens=3)
        # What the last answer was split into when it was read again may differ from what was generated.
        new = len(processor.encode(session.history[:-1])) - len(answered)
        fresh = len(images) * tokens * (model.config.attention == "causal")
        assert computed[0] <= new - len(images) * tokens + fresh + 8 and computed[1:3] == [1, 1]
        answered, computed[:] = processor.encode(session.history), []


def test_an_image_is_encoded_once_for_all_sessions_that_share_a_cache(model, processor):
    cache, seen = ImageCache(model), []
    hook = model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    one, two = ChatSession(model, processor, cache=cache), ChatSession(model, processor, cache=cache)
    one.ask("What?", [RED], max_new_tokens=2)
    one.ask("And?", [RED, BLUE], max_new_tokens=2)
    answer = two.ask("Which?", [BLUE, RED], max_new_tokens=2)
    hook.remove()
    assert seen == [1, 1]
    assert answer == ChatSession(model, processor).ask("Which?", [BLUE, RED], max_new_tokens=2)


def test_images_and_texts_in_any_order(session, model, processor):
    answer = session.ask(["Is", RED, "like", BLUE, "?"], max_new_tokens=3)
    parts = session.history[0]["content"]
    assert [part.get("index", part.get("text")) for part in parts] == ["Is", 0, "like", 1, "?"]
    assert len(session.images) == 2
    other = ChatSession(model, processor)
    assert other.ask("Is image 1 like image 2?", [RED, BLUE], max_new_tokens=3) == answer
    session.ask([BLUE], max_new_tokens=3)
    assert session.history[2]["content"] == [{"type": "image", "index": 2}]


def test_undo_removes_the_last_round_with_its_images(session, model, processor):
    session.ask("One?", [RED], max_new_tokens=3)
    kept = list(session.history)
    session.ask("Two?", [BLUE, RED], max_new_tokens=3)
    question, images = session.undo()
    assert session.history == kept and len(session.images) == 1 and len(images) == 2
    assert question["content"][-1]["text"] == "Two?"
    again = session.ask("Two?", [RED, RED], max_new_tokens=3)
    fresh = ChatSession(model, processor)
    fresh._restore(list(kept), list(session.images[:1]))
    assert fresh.ask("Two?", [RED, RED], max_new_tokens=3) == again, (
        "another image at the same position is another prompt"
    )
    session.undo()
    session.undo()
    assert session.history == [] and session.images == []
    with pytest.raises(ValueError, match="no round to undo"):
        session.undo()


def test_regenerate_answers_the_last_question_again(session):
    session.ask("One?", [RED], max_new_tokens=3)
    first = session.ask("Two?", [BLUE], max_new_tokens=8)
    assert session.regenerate(max_new_tokens=8) == first, "greedy answers repeat"
    torch.manual_seed(0)
    drawn = {session.regenerate(max_new_tokens=8, do_sample=True, temperature=5.0) for _ in range(4)}
    assert len(drawn) > 1 and session.history[-1]["content"] in drawn
    assert len(session.history) == 4 and len(session.images) == 2
    assert session.regenerate(max_new_tokens=8) == first


def test_an_interrupted_answer_leaves_the_conversation_and_a_clean_cache(session):
    first = session.ask("One?", [RED], max_new_tokens=3)
    second = session.ask("Two?", [BLUE], max_new_tokens=8)

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    history = list(session.history)
    for stopped in (lambda: session.ask("What?", on_text=interrupt), lambda: session.regenerate(on_text=interrupt)):
        with pytest.raises(KeyboardInterrupt):
            stopped()
        assert session.history == history and len(session.images) == 2
    assert session.regenerate(max_new_tokens=8) == second
    session.undo()
    assert session.regenerate(max_new_tokens=3) == first


def test_an_interrupted_forward_leaves_a_clean_cache(session, model):
    def interrupt(module, args):
        raise KeyboardInterrupt

    session.ask("One?", [RED], max_new_tokens=3)
    expected = session.ask("Two?", [BLUE], max_new_tokens=8)
    session.undo()
    hook = model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.ask("Two?", [BLUE], max_new_tokens=8)
    hook.remove()
    assert session.ask("Two?", [BLUE], max_new_tokens=8) == expected


def test_a_save_that_fails_leaves_the_conversation_saved_before(session, model, processor, tmp_path):
    session.ask("One?", [RED], max_new_tokens=3)
    session.save(tmp_path)
    before = list(session.history)
    session.ask("Two?", [BLUE], max_new_tokens=3)
    (tmp_path / "conversation.json.part").mkdir()  # in the way
    with pytest.raises(IsADirectoryError):
        session.save(tmp_path)
    assert ChatSession.load(tmp_path, model, processor).history == before


def test_a_saved_conversation_continues_unchanged(session, model, processor, tmp_path):
    session.system = "Be brief."
    session.ask("One?", [RED], max_new_tokens=3)
    session.ask("Two \u00e9?", [BLUE], max_new_tokens=3)
    session.save(tmp_path / "saved")
    again = ChatSession.load(tmp_path / "saved", model, processor)
    assert (again.history, again.system) == (session.history, session.system)
    assert all(list(a.getdata()) == list(b.getdata()) for a, b in zip(again.images, session.images, strict=True))
    assert again.ask("Three?", max_new_tokens=4) == session.ask("Three?", max_new_tokens=4)
    file = tmp_path / "saved/conversation.json"
    saved = json.loads(file.read_text())
    outside = saved | {"images": ["../saved/" + saved["images"][0], saved["images"][1]]}
    for broken in ({}, [], outside, saved | {"images": saved["images"][:1]}, saved | {"history": saved["history"][:3]}):
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="holds no conversation"):
            ChatSession.load(tmp_path / "saved", model, processor)
    with pytest.raises(ValueError, match="holds no conversation"):
        ChatSession.load(tmp_path / "nowhere", model, processor)


def test_the_cache_gives_the_answers_of_a_new_session_where_earlier_answers_have_another_header(tmp_path):
    """As with Qwen 3 without thinking: an answer is generated after a header that its conversation has only once."""
    template = Template(images="inline", answer_header="\nA:", last_answer_header="\nA: <none>\n", joined=True)
    folder = make_model(tmp_path, large_weights=True, template=template)
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    processor = VisualChatProcessor.from_pretrained(folder)
    model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids
    session = ChatSession(model, processor)
    for question, images in (("What is it?", [RED]), ("How many?", []), ("And why?", [])):
        new = ChatSession(model, processor)
        new._restore(list(session.history), list(session.images))
        assert session.ask(question, images, max_new_tokens=5) == new.ask(question, images, max_new_tokens=5)
