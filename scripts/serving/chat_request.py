"""A chat request in OpenAI's form, checked, and as the model's own conversation.

What is not supported is refused by name rather than ignored, unless leaving it out changes nothing in the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.serving.errors import ApiError
from scripts.serving.jobs import SamplingParams

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IMAGES = ("image_url", "file", "image_file")
DEFAULT_TOKENS = 256
_HARMLESS = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier"),
    *("prompt_cache_retention", "reasoning_effort", "verbosity"),
}
# What changes an answer and is not done here, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. `messages` are in the chat form, whose image parts count in `images` (encoded bytes)."""

    model: str
    messages: list[dict[str, Any]]
    images: list[bytes]
    image_locations: list[str]  # where in the request each image stands, for messages about it
    sampling: SamplingParams
    stream: bool
    include_usage: bool

    @classmethod
    def parse(cls, body: Any, image_data: Callable[[dict, str], bytes], max_images: int) -> "ChatRequest":
        """Check the JSON `body` of a request; `image_data` returns the bytes of an image part, given its place.

        Raises:
            ApiError: something is wrong; the message says what and where.
        """
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object", "invalid_request")
        values = {name: value for name, value in body.items() if name not in _HARMLESS}
        for name, nothing in _UNSUPPORTED.items():
            value = values.pop(name, None)
            if value is not None and value not in nothing:
                raise ApiError(400, f"{name} = {str(value)[:80]} is not supported here", "unsupported_parameter", name)
        try:
            checked = _Body.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
            raise ApiError(400, f"{where}: {first['msg']}", code, where) from None
        _check_count(checked.messages, max_images)
        messages, images, image_locations = [], [], []
        for number, message in enumerate(checked.messages):
            messages.append(_message(message, f"messages.{number}", image_data, images, image_locations))
        options = checked.stream_options
        include_usage = bool(options and options.include_usage)
        return cls(
            checked.model, messages, images, image_locations, _sampling(checked), bool(checked.stream), include_usage
        )


def _sampling(body: _Body) -> SamplingParams:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > 4 or any(not text or len(text) > 256 for text in stop):
        raise ApiError(400, "stop: up to 4 texts of 1 to 256 letters", "invalid_value", "stop")
    return SamplingParams(
        max_new_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=tuple(_text(text, "stop") for text in stop),
    )


def _check_count(messages: list[dict[str, Any]], max_images: int) -> None:
    """Count the images before any of them is decoded."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    count = sum(isinstance(part, dict) and part.get("type") in IMAGES for part in parts)
    if count > max_images:
        message = f"the conversation shows {count} images; at most {max_images} are read in one request"
        raise ApiError(400, message, "too_many_images", "messages")


def _message(
    message: dict[str, Any],
    where: str,
    image_data: Callable[[dict, str], bytes],
    images: list[bytes],
    image_locations: list[str],
) -> dict[str, Any]:
    """A message in the chat form; the images it shows are added to `images`."""
    role = ROLES.get(message.get("role")) if isinstance(message.get("role"), str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise ApiError(
            400, f"{where}.role: {message.get('role')!r} is none of {known}", "invalid_value", f"{where}.role"
        )
    content = message.get("content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": _text(content, f"{where}.content")}]}
    if not isinstance(content, list):
        raise ApiError(400, f"{where}.content: a text or a list of parts", "invalid_value", f"{where}.content")
    parts = []
    for number, part in enumerate(content):
        place = f"{where}.content.{number}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal"):
            parts.append({"type": "text", "text": _text(part.get(kind), place)})
        elif kind in IMAGES:
            images.append(image_data(part, place))
            image_locations.append(place)
            parts.append({"type": "image", "index": len(images) - 1})
        else:
            message = f"{place}: a part is of type text or {' or '.join(IMAGES)}, not {str(kind)[:80]}"
            raise ApiError(400, message, "unsupported_part", place)
    return {"role": role, "content": parts}


def _text(value: Any, where: str) -> str:
    """A text that can be encoded. JSON may hold halves of letters (lone surrogates), which no tokenizer takes."""
    if not isinstance(value, str):
        raise ApiError(400, f"{where}: a text is missing", "invalid_value", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(
            400, f"{where}: the text holds half a letter (a lone surrogate)", "invalid_value", where
        ) from None
    return value
