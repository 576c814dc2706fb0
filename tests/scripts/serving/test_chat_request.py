"""Parsing of requests, and parameters that are refused because they would be ignored."""

import pytest

from scripts.serving.chat_request import DEFAULT_MAX_TOKENS, ChatRequest
from scripts.serving.errors import ApiError

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:"}}


def parse(max_images: int = 3, **changes) -> ChatRequest:
    return ChatRequest.parse(BODY | changes, lambda part, location: location.encode(), max_images, 1000)


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({}, DEFAULT_MAX_TOKENS),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
    ],
)
def test_max_completion_tokens_overrides_max_tokens(limits, tokens):
    assert parse(**limits).sampling.max_new_tokens == tokens


def test_the_default_is_greedy_decoding():
    sampling = parse(temperature=None, top_p=None, seed=None, stop=None).sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (0.0, 1.0, None, ())
    sampling = parse(temperature=0.5, top_p=0.25, seed=0, stop="x").sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (0.5, 0.25, 0, ("x",))


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("n", 2, 1),
        ("frequency_penalty", 0.5, 0),
        ("presence_penalty", -1, 0.0),
        ("logit_bias", {"5": 1}, {}),
        ("logprobs", True, False),
        ("top_logprobs", 3, 0),
        ("tools", [{"type": "function"}], []),
        ("tool_choice", "required", "auto"),
        ("functions", [{"name": "f"}], []),
        ("function_call", {"name": "f"}, "none"),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("modalities", ["text", "audio"], ["text"]),
        ("audio", {"voice": "x"}, None),
        ("prediction", {"type": "content"}, None),
        ("web_search_options", {}, None),
    ],
)
def test_unsupported_parameters_are_refused_unless_they_have_no_effect(name, value, neutral):
    assert parse(**{name: neutral}) == parse()
    with pytest.raises(ApiError, match=f"{name} = .* is not supported") as error:
        parse(**{name: value})
    assert (error.value.code, error.value.param) == ("unsupported_parameter", name)


@pytest.mark.parametrize("stop", [["a"] * 5, ["a", ""], "x" * 257, ["\ud800"]])
def test_stop_sequences_are_bounded(stop):
    assert parse(stop=["a", "b", "c", "x" * 256]).sampling.stop == ("a", "b", "c", "x" * 256)
    with pytest.raises(ApiError, match="stop"):
        parse(stop=stop)


def test_images_are_numbered_through_the_conversation_and_counted_before_any_is_read():
    content = [{"type": "text", "text": "One?"}, IMAGE_PART]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [IMAGE_PART, IMAGE_PART]},
    ]
    found = parse(messages=messages)
    shown = [part["index"] for message in found.messages for part in message["content"] if part["type"] == "image"]
    assert shown == [0, 1, 2] and found.messages[0]["role"] == "system"
    assert found.images == [b"messages.1.content.1", b"messages.3.content.0", b"messages.3.content.1"]
    with pytest.raises(ApiError, match="has 3 images; at most 2"):
        ChatRequest.parse(BODY | {"messages": messages}, lambda *_: pytest.fail("an image was read"), 2, 1000)
