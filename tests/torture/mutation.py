"""Random changes of bytes, texts and JSON values, each a function of a random generator."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

TEXTS = (
    *("", " \n", "<image>", "<image>\n", "<|image:0|>", "\ud800", "\x00", "../../x", "/etc/passwd", "IMAGE#1 x"),
    *("a" * 5000, "\u202e\u0301" * 20, "NaN", "1e999", "C:\\x.jpg", "a.jpg/../b.jpg", "\ufeff", "<s></s>"),
)
_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 1e-320)


def leaf(draw: random.Random) -> Any:
    """A JSON value without members."""
    kind = draw.randrange(6)
    if kind == 0:
        return None
    if kind == 1:
        return draw.random() < 0.5
    if kind == 2:
        return draw.choice(_NUMBERS)
    if kind == 3:
        return "".join(chr(draw.choice((draw.randrange(32, 127), draw.randrange(0x3000)))) for _ in range(5))
    return draw.choice(TEXTS)


def value(draw: random.Random, depth: int = 2) -> Any:
    """Any JSON value."""
    kind = draw.randrange(6) if depth else 0
    if kind == 4:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 5:
        return {draw.choice(("id", "image", "text", "x", "")): value(draw, depth - 1) for _ in range(draw.randrange(3))}
    return leaf(draw)


def places(item: Any, here: tuple = ()) -> Iterator[tuple]:
    """The places of all members and items inside a JSON value, by the keys that lead there."""
    inside = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, each in inside:
        yield (*here, key)
        yield from places(each, (*here, key))


def changed(draw: random.Random, item: Any) -> Any:
    """A JSON value with one to three things replaced, removed, doubled, renamed or added."""
    item = copy.deepcopy(item)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = list(places(item))
        if not found or draw.randrange(20) == 0:
            return value(draw)
        *way, last = draw.choice(found)
        holder = item
        for key in way:
            holder = holder[key]
        change = draw.choice(("replace", "replace", "replace", "remove", "again", "rename", "inside"))
        if change == "replace":
            holder[last] = value(draw)
        elif change == "remove":
            del holder[last]
        elif change == "again" and isinstance(holder, list):
            holder.insert(last, copy.deepcopy(holder[last]))
        elif change == "rename" and isinstance(holder, dict):
            holder[draw.choice((last.upper(), f" {last}", "", "id", "image"))] = holder.pop(last)
        elif isinstance(holder[last], str):
            at = draw.randint(0, len(holder[last]))
            holder[last] = holder[last][:at] + draw.choice(TEXTS) + holder[last][at:]
    return item


def changed_json(draw: random.Random, item: Any) -> bytes:
    """JSON text with what no JSON library writes: long numbers, doubled keys, deep nesting, foreign bytes."""
    text = json.dumps(item).encode()
    change = draw.choice(("digits", "key", "nested", "bytes", "utf8", "literal"))
    at = draw.choice([number for number, byte in enumerate(text) if byte in b",:[{"] or [0]) + 1
    if change == "digits":
        return text[:at] + b"9" * draw.choice((400, 5000, 100_000)) + b"," + text[at:]
    if change == "key":
        return text.replace(b"{", b'{"id": 1, "id": 2, ', 1)
    if change == "nested":
        depth = draw.choice((100, 3000, 200_000))
        return text[:at] + b"[" * depth + b"]" * depth + b"," + text[at:]
    if change == "utf8":
        return text[:at] + b'"\xff\xfe\xc3",' + text[at:]
    if change == "literal":
        return text[:at] + draw.choice((b"NaN,", b"Infinity,", b"-Infinity,", b"tru", b"'x',")) + text[at:]
    return changed_bytes(draw, text)


def changed_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes with one to four places flipped, cut, doubled, overwritten or filled."""
    buffer = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not buffer:
            break
        at = draw.randrange(len(buffer))
        # Heads decide what the rest means, so they are hit as often as all that comes after them.
        at = min(at, draw.choice((at, at, 64, 512)))
        change = draw.choice(("flip", "flip", "flip", "set", "cut", "remove", "again", "fill"))
        length = draw.choice((1, 2, 4, 16, 256, 4096))
        if change == "flip":
            buffer[at] ^= 1 << draw.randrange(8)
        elif change == "set":
            word = draw.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\xff\xff"))
            buffer[at : at + len(word)] = word
        elif change == "cut":
            del buffer[at:]
        elif change == "remove":
            del buffer[at : at + length]
        elif change == "again":
            buffer[at:at] = buffer[at : at + length]
        else:
            buffer[at : at + length] = draw.randbytes(min(length, len(buffer) - at))
    return bytes(buffer)
