"""Make a text-only dataset of a decoder's own answers, which training mixes in so that it does not forget how to talk.

    reads   the folder of a decoder and its tokenizer; prompts of this project, of a file, or questions of records
    writes  <out>/rows.jsonl   a conversation per line: {"id", "messages"}
            <out>/manifest.json   counts, what was left out and why, hashes; written last

The decoder answers in its own chat form, before any training. Answers that are empty or cut off by `max_new_tokens` are
left out and counted. Killed, it goes on: finished batches are kept in <out>/.answers.jsonl until the end.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from scripts.adapters.base import RowError
from scripts.adapters.own.text_markers import TextSplitter
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic, bytes_sha256, write_json
from scripts.common.fingerprint import code_fingerprint
from scripts.config.replay import ROWS, ReplayConfig
from scripts.config.tokens import TokensConfig
from scripts.inference.base_folders import find_base, folder_sha256
from scripts.inference.replay_prompts import (
    Chosen,
    Prompt,
    choose,
    project_prompts,
    prompt_hash,
    prompts_of_file,
    questions_of_records,
)

_ANSWERS = ".answers.jsonl"
_BATCH = 32
"""Prompts that are answered together. Fixed, because rounding, and with it an answer, may depend on it."""

Conversation = list[dict[str, str]]


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    settings = load_settings(ReplayConfig, args.settings)
    tokens = load_settings(TokensConfig, args.tokens)
    manifest = replay(settings, tokens, args.language, args.tokenizer, args.root, args.records, args.out, args.threads)
    lost = sum(manifest["unanswered"].values())
    print(f"{args.out}: {manifest['rows']} conversations from {manifest['prompts']} prompts; {lost} left out")
    for reason, count in manifest["unanswered"].items():
        print(f"  {count} left out: {reason}", file=sys.stderr)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    add = result.add_argument
    add("--settings", required=True, help="section `replay.<name>` as JSON, or @file")
    add("--tokens", required=True, help="the section of `tokens` of the model, as JSON, or @file")
    add("--language", required=True, help="folder or hub name of the decoder")
    add("--tokenizer", required=True, help="folder or hub name of its tokenizer")
    add("--root", type=Path, default=Path(), help="results root, which folders may be relative to")
    add("--records", type=Path, metavar="FOLDER", help="records/, with the tables of `questions_of`")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--out", required=True, type=Path, help="folder to write: replay/<name>")
    return result


def replay(
    settings: ReplayConfig,
    tokens: TokensConfig,
    language: str,
    tokenizer: str,
    root: Path,
    records: Path | None,
    out: Path,
    threads: int = 1,
) -> dict[str, Any]:
    """Let a decoder answer prompts, write its conversations below `out`, and return the manifest.

    Args:
        settings: which prompts, how many, and how they are answered.
        tokens: the entry of `tokens` of the model, which has the chat form.
        language: folder or hub name of the decoder.
        tokenizer: folder or hub name of its tokenizer.
        root: results root, which these folders may be relative to.
        records: folder with the tables of the datasets `questions_of`.
        out: folder to write into.
        threads: of the CPU.

    Raises:
        UserError: there are no prompts, the decoder cannot be loaded, or it has finished no answer.
    """
    chosen = _chosen(settings, records)
    if not chosen.prompts:
        raise UserError(
            f"replay has no prompts: of {', '.join(settings.questions_of)} no question can be asked without its image; "
            "name a file of prompts, or leave `questions_of` out to use the prompts of this project"
        )
    folder = find_base(language, root)
    # Imported late, so that errors in the prompts need not wait for torch.
    from scripts.inference.decoder_answers import DecoderAnswers

    decoder = DecoderAnswers(folder, str(find_base(tokenizer, root)), tokens, threads)
    conversations, unanswered = decoder.converse(
        chosen.prompts, settings.max_new_tokens, settings.temperature, settings.seed, _BATCH, out / _ANSWERS
    )
    rows = list(_rows(chosen.prompts, conversations, unanswered))
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in unanswered.items())
        raise UserError(
            f"{language} has finished none of {len(chosen.prompts)} answers ({reasons}). Raise `max_new_tokens`, or "
            "take replay out: a decoder that was not tuned to chat closes no answer, and has no chat form to keep"
        )
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with atomic(out / ROWS) as file:
        file.write(data)
    manifest = {
        "v": 1,
        "decoder": folder_sha256(folder),
        "code": code_fingerprint("scripts.replay"),
        "prompts": len(chosen.prompts),
        "different_prompts": chosen.different,
        "not_asked": dict(sorted(chosen.left_out.items())),
        "unanswered": dict(sorted(unanswered.items())),
        "rows": len(rows),
        "answers": sum(len(row["messages"]) // 2 for row in rows),
        "files": {ROWS: bytes_sha256(data)},
    }
    write_json(out / "manifest.json", manifest)
    (out / _ANSWERS).unlink(missing_ok=True)
    return manifest


def _chosen(settings: ReplayConfig, records: Path | None) -> Chosen:
    left_out: Counter[str] = Counter()
    sources: list[Iterator[Prompt] | list[Prompt]] = []
    if settings.prompts is not None:
        sources.append(prompts_of_file(Path(settings.prompts)))
    if settings.questions_of and records is None:
        raise UserError("`questions_of` needs --records, the folder with the tables of these datasets")
    for dataset in settings.questions_of:
        assert records is not None
        sources.append(questions_of_records(records / f"{dataset}.parquet", left_out))
    return choose(chain.from_iterable(sources or [project_prompts()]), settings.samples, settings.seed, left_out)


def _rows(
    prompts: list[Prompt], conversations: list[Conversation], unanswered: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows of the conversations that have an answer; others are counted in `unanswered`."""
    splitter = TextSplitter()
    for prompt, messages in zip(prompts, conversations, strict=True):
        if not messages:
            continue
        try:
            plain = all(splitter.split(message["content"]) == [message["content"]] for message in messages)
        except RowError:
            plain = False
        if plain:
            yield {"id": prompt_hash(prompt).hex(), "messages": messages}
        else:
            unanswered["has a marker of an image or of other media in its text"] += 1


if __name__ == "__main__":
    run_program(main)
