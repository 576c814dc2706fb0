"""The prompts that replay asks a decoder: of this project, of a file, or the questions of datasets.

A prompt is a question, or several that are asked one after the other, each with the decoder's own answers before it.
Questions of datasets are asked without their images. One that cannot be answered without them, because it refers to an
image inside its text ("What is left of it in the picture?"), is left out and counted.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scripts.adapters.own.byte_streams import utf8
from scripts.blending.slots import has_slots
from scripts.common.errors import UserError
from scripts.common.files import canonical_json, open_table, parse_json
from scripts.common.records import HELD_OUT, SHOWN_SLOT

PROMPTS = Path(__file__).with_name("replay_prompts.yaml")
_MEMBER = "prompt"
_COLUMNS = ["uid", "rounds", "split"]
_ROWS_AT_ONCE = 4096
_SLOTS_AT_THE_EDGES = re.compile(rf"^(?:\s*{SHOWN_SLOT.pattern})+|(?:{SHOWN_SLOT.pattern}\s*)+$")
_WORDS = re.compile(r"\b(images?|pictures?|pictured|photos?|photographs?|screenshots?|depicted|shown)\b", re.IGNORECASE)

Prompt = tuple[str, ...]
"""The questions of a conversation, in their order."""


class Chosen(NamedTuple):
    """Prompts in the order of their hashes, how many different ones there were, and what was left out, by reason."""

    prompts: list[Prompt]
    different: int
    left_out: Counter[str]


def project_prompts() -> list[Prompt]:
    """The prompts of this project."""
    groups = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    return [_prompt(value, str(PROMPTS)) for group in groups.values() for value in group]


def prompts_of_file(path: Path) -> list[Prompt]:
    """The prompts of a file: every line of a .txt, or the member `prompt` of every row of a .jsonl.

    It is in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        UserError: the file cannot be read, has another ending, a row without a prompt, or no prompt at all.
    """
    ending = path.suffix.lower()
    if ending not in (".txt", ".jsonl"):
        raise UserError(f"{path}: a file of prompts ends in .txt (a line each) or .jsonl (rows with `{_MEMBER}`)")
    try:
        with open(path, "rb") as file:
            text = utf8(file).read().decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"the prompts in {path} cannot be read: {error}; save the file as UTF-8") from None
    prompts: list[Prompt] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and ending == ".txt":
            prompts.append((line.strip(),))
        elif line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict) or _MEMBER not in row:
                raise UserError(f'{where} has no member `{_MEMBER}`; write {{"{_MEMBER}": "a question"}}')
            prompts.append(_prompt(row[_MEMBER], where))
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one on every line")
    return prompts


def questions_of_records(path: Path, left_out: Counter[str]) -> Iterator[Prompt]:
    """The first question of every conversation in a table of records, in its first wording, without its images.

    Conversations that are kept for evaluation are not asked. What cannot be asked is counted in `left_out`.
    """
    with open_table(path) as table:
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=_COLUMNS):
            for row in batch.to_pylist():
                if row["split"] == HELD_OUT:
                    left_out["kept for evaluation"] += 1
                    continue
                question = text_alone(row["rounds"][0]["question"][0])
                if question:
                    yield (question,)
                else:
                    left_out["refers to an image"] += 1


def text_alone(question: str) -> str:
    """A question of a record without the images at its beginning and end; "" if it refers to one elsewhere."""
    text = _SLOTS_AT_THE_EDGES.sub("", question).strip()
    return "" if has_slots(text) or _WORDS.search(text) else text


def choose(prompts: Iterable[Prompt], samples: int, seed: int, left_out: Counter[str]) -> Chosen:
    """At most `samples` different prompts, those with the lowest hashes of seed and text."""
    seen: set[bytes] = set()

    def hashed() -> Iterator[tuple[bytes, Prompt]]:
        for prompt in prompts:
            key = prompt_hash(prompt, seed)
            if key in seen:
                left_out["repeated"] += 1
                continue
            seen.add(key)
            yield key, prompt

    lowest = heapq.nsmallest(samples, hashed())
    return Chosen([prompt for _, prompt in lowest], len(seen), left_out)


def prompt_hash(prompt: Prompt, seed: int = 0) -> bytes:
    """A hash of a prompt, 16 bytes."""
    return hashlib.blake2b(canonical_json(list(prompt)).encode(), key=str(seed).encode(), digest_size=16).digest()


def _prompt(value: Any, where: str) -> Prompt:
    """A prompt as a file has it: a text, or a list of texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        kinds = "a text, or a list of texts that are asked in turn"
        raise UserError(f"{where}: `{_MEMBER}` must be {kinds}, not {value!r}")
    return tuple(text.strip() for text in texts)
