"""Validates a chat request in OpenAI's format and converts it to the chat form of the model.

Unsupported parameters are refused by name, unless ignoring them does not change the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.serving.errors import ApiError
from scripts.serving.jobs import SamplingParams

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IMAGES = ("image_url", "file", "image_file")
TEXTS = ("text", "refusal")
DEFAULT_MAX_TOKENS = 256
_MAX_PARTS = 10_000  # messages and their parts in one request
_IGNORED = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier"),
    *("prompt_cache_retention", "reasoning_effort", "verbosity"),
}
# Parameters that would change an answer and are not supported, with the values that have no effect.
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
    """A validated request.

    `messages` are in the chat form; their image parts index `images` (encoded bytes). `image_locations` holds the path
    of each image in the request, for error messages.
    """

    model: str
    messages: list[dict[str, Any]]
    images: list[bytes]
    image_locations: list[str]
    sampling: SamplingParams
    stream: bool
    include_usage: bool

    @classmethod
    def parse(
        cls, body: Any, image_data: Callable[[dict, str], bytes], max_images: int, max_characters: int
    ) -> "ChatRequest":
        """Validate the JSON `body` of a request.

        Args:
            body: the parsed JSON.
            image_data: returns the encoded bytes of an image part, given the part and its location.
            max_images: how many images a request may have.
            max_characters: how many characters all its texts may have together.

        Raises:
            ApiError: the request is invalid; the message says where.
        """
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object", "invalid_request")
        values = {name: value for name, value in body.items() if name not in _IGNORED}
        for name, neutral in _UNSUPPORTED.items():
            value = values.pop(name, None)
            if value is not None and value not in neutral:
                raise ApiError(400, f"{name} = {str(value)[:80]} is not supported", "unsupported_parameter", name)
        _check_counts(values.get("messages"), max_images, max_characters)
        try:
            checked = _Body.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
            raise ApiError(400, f"{where}: {first['msg']}", code, where) from None
        images: list[bytes] = []
        image_locations: list[str] = []
        messages = [
            _message(message, f"messages.{number}", image_data, images, image_locations)
            for number, message in enumerate(checked.messages)
        ]
        options = checked.stream_options
        return cls(
            model=checked.model,
            messages=messages,
            images=images,
            image_locations=image_locations,
            sampling=_sampling(checked),
            stream=bool(checked.stream),
            include_usage=bool(options and options.include_usage),
        )


def _sampling(body: _Body) -> SamplingParams:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > 4 or any(not text or len(text) > 256 for text in stop):
        raise ApiError(400, "stop: up to 4 strings of 1 to 256 characters", "invalid_value", "stop")
    return SamplingParams(
        max_new_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=tuple(_text(text, "stop") for text in stop),
    )


def _check_counts(messages: Any, max_images: int, max_characters: int) -> None:
    """Refuse too many parts, images and characters before anything is validated, decoded or tokenised."""
    if not isinstance(messages, list):
        return
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    if len(messages) + len(parts) > _MAX_PARTS:
        count = f"{len(messages)} messages with {len(parts)} parts"
        message = f"the conversation has {count}; at most {_MAX_PARTS:,} are accepted in one request"
        raise ApiError(400, message, "too_many_parts", "messages")
    images = sum(isinstance(part, dict) and part.get("type") in IMAGES for part in parts)
    if images > max_images:
        message = f"the conversation has {images} images; at most {max_images} are accepted in one request"
        raise ApiError(400, message, "too_many_images", "messages")
    texts = [part.get(part.get("type")) for part in parts if isinstance(part, dict) and part.get("type") in TEXTS]
    characters = sum(len(text) for text in [*contents, *texts] if isinstance(text, str))
    if characters > max_characters:
        message = f"the conversation has {characters:,} characters; at most {max_characters:,} are accepted"
        raise ApiError(400, message, "context_length_exceeded", "messages")


def _message(
    message: dict[str, Any],
    where: str,
    image_data: Callable[[dict, str], bytes],
    images: list[bytes],
    image_locations: list[str],
) -> dict[str, Any]:
    """Convert a message to the chat form; its images are appended to `images` and `image_locations`."""
    given = message.get("role")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise ApiError(400, f"{where}.role: {str(given)[:80]!r} is none of {known}", "invalid_value", f"{where}.role")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": _text(content, f"{where}.content")}]}
    if not isinstance(content, list):
        raise ApiError(400, f"{where}.content must be a string or a list of parts", "invalid_value", f"{where}.content")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        location = f"{where}.content.{number}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXTS:
            parts.append({"type": "text", "text": _text(part.get(kind), location)})
        elif kind in IMAGES:
            images.append(image_data(part, location))
            image_locations.append(location)
            parts.append({"type": "image", "index": len(images) - 1})
        else:
            error = f"{location}: a part must have type text or {' or '.join(IMAGES)}, not {str(kind)[:80]}"
            raise ApiError(400, error, "unsupported_part", location)
    return {"role": role, "content": parts}


def _text(value: Any, where: str) -> str:
    """Check a text. JSON may hold lone surrogates (halves of characters), which no tokenizer accepts."""
    if not isinstance(value, str):
        raise ApiError(400, f"{where}: a string is missing", "invalid_value", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where}: the text has a lone surrogate", "invalid_value", where) from None
    return value
