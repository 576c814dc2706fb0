"""Count the tokens of every text of a dataset, so that the plan knows the exact length of any conversation.

Reads   records/<dataset>.parquet, its report, and a tokenizer
Writes  tokens/<tokens>/<dataset>.parquet   per round: tokens of each alternative of question and answer
                                            and of the prefix, where a record has a system text of its own (else 0);
                                            with a chat template, of a question that comes first, where that differs
        tokens/<tokens>/<dataset>.json      what was counted with (identity), and the tokens of the fixed parts

A text that refers to an image by a slot has one count for every offset of image numbers, because "image 9" and "image
10" may differ. A question that shows images in its places is counted as the template writes it: with the names of
images, or as the sum of the texts between them. `named` counts questions as follow-ups of a join ("In image 1, ..."),
with --followups: only datasets that a join takes follow-ups from need it.
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.template import INLINE
from model.token_counter import TokenCounter
from scripts.blending.ragged import Ragged, flat, list_starts, nested, starts_from_lengths
from scripts.blending.slots import follow_up, has_slots, question_parts, question_text, render_slots
from scripts.blending.tokens_identity import load_tokenizer, template_of, tokens_identity
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import open_table, read_json, write_json, write_table
from scripts.common.progress import track
from scripts.common.records import SHOWN_SLOT
from scripts.common.table_hash import table_sha256
from scripts.config.tokens import CompleteTokensConfig, TokensConfig

_COUNTS = pa.list_(pa.list_(pa.int32()))
TOKENS_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("prefix", pa.int32()),
        ("rounds", pa.list_(pa.struct([("question", _COUNTS), ("named", _COUNTS), ("answer", _COUNTS)]))),
    ]
)
_FIRST = pa.field("first", _COUNTS)
_BATCH = 16384
_TEXTS_AT_ONCE = 4096

Writer = Callable[[str, int], list[str | int]]
"""Gives the texts and the numbers of images that a text of a record becomes at an offset of image numbers."""
Count = Callable[[list[list[str | int]]], list[int]]
"""Gives the tokens of each of several texts that a `Writer` wrote."""


def tokens_schema(first: bool = False) -> pa.Schema:
    """The columns of a token table; `first` is whether it has counts of questions that come first."""
    if not first:
        return TOKENS_SCHEMA
    fields = [*TOKENS_SCHEMA.field("rounds").type.value_type, _FIRST]
    return TOKENS_SCHEMA.set(2, pa.field("rounds", pa.list_(pa.struct(fields))))


class TextCounter:
    """Counts tokens of texts; each distinct text of a batch is tokenised once.

    `shows_images` is whether a question that was counted shows an image in its place.
    """

    def __init__(self, counter: TokenCounter, max_images: int) -> None:
        self.counter, self.max_images = counter, max_images
        self.shows_images = False

    def questions(self, column: pa.ListArray) -> pa.ListArray:
        """From list<string> to list<list<int32>>: each alternative's tokens per offset, or one count without slots."""
        shown = pc.match_substring_regex(column.flatten(), SHOWN_SLOT.pattern)
        self.shows_images = self.shows_images or bool(pc.any(shown).as_py())
        return self._counts(column, self._question, self.counter.questions)

    def first_questions(self, column: pa.ListArray, systems: pa.StringArray) -> pa.ListArray:
        """As `questions`, for those that come first, below the system texts (rounds,); none where that is the same."""
        lists: list[list[list[int]]] = []
        for system, alternatives in zip(systems.to_pylist(), column.to_pylist(), strict=True):
            lists.append([])
            if self.counter.first_differs(system or None):
                written = (self._variants(text, self._question) for text in alternatives)
                lists[-1] += [self.counter.first_questions(variants, system or None) for variants in written]
        return pa.array(lists, _COUNTS)

    def follow_ups(self, column: pa.ListArray) -> pa.ListArray:
        """As `questions`, for questions as follow-ups of a join."""
        return self._counts(column, _follow_up, self.counter.questions, always=True)

    def answers(self, column: pa.ListArray) -> pa.ListArray:
        """As `questions`, for answers."""
        return self._counts(column, _answer, self._count_answers)

    def _question(self, question: str, offset: int) -> list[str | int]:
        if self.counter.template.images == INLINE:
            return question_parts(question, offset)
        return [question_text(question, offset)]

    def _count_answers(self, answers: list[list[str | int]]) -> list[int]:
        return self.counter.answers([str(text) for (text,) in answers])

    def _counts(self, column: pa.ListArray, write: Writer, count: Count, always: bool = False) -> pa.ListArray:
        """Tokens of a column; with `always`, per offset for every text."""
        texts = column.flatten().dictionary_encode()
        counts = self._distinct(texts.dictionary.to_pylist(), write, count, always).take(texts.indices.to_numpy())
        return nested(list_starts(column), counts.to_arrow(pa.int32()))

    def prefixes(self, systems: pa.StringArray) -> pa.Array:
        """Tokens before the first round for each system text; 0 for an empty one, which means the template's."""
        texts = systems.dictionary_encode()
        counts = [self.counter.prefix(text) if text else 0 for text in texts.dictionary.to_pylist()]
        return pa.array(counts, pa.int32()).take(texts.indices)

    def _distinct(self, texts: list[str], write: Writer, count: Count, always: bool) -> Ragged:
        """Tokens of each text, per offset where it has slots."""
        variants = [self._variants(text, write, always) for text in texts]
        written = list(chain.from_iterable(variants))
        counts: list[int] = []
        for start in range(0, len(written), _TEXTS_AT_ONCE):
            counts += count(written[start : start + _TEXTS_AT_ONCE])
        return Ragged.from_lengths(np.array(counts, np.int64), np.array([len(row) for row in variants], np.int64))

    def _variants(self, text: str, write: Writer, always: bool = False) -> list[list[str | int]]:
        """What a text becomes at every offset of image numbers, or once if it has no slots."""
        return [write(text, offset) for offset in range(self.max_images)] if always or has_slots(text) else [[text]]


def _follow_up(question: str, offset: int) -> list[str | int]:
    return [follow_up(question, offset)]


def _answer(answer: str, offset: int) -> list[str | int]:
    return [render_slots(answer, offset)]


def count_batch(batch: pa.Table, counter: TextCounter, named: bool) -> pa.Table:
    """The token table of some records (columns uid, images, rounds, system); `named`: count follow-ups too."""
    rounds = flat(batch, "rounds")
    questions, answers = (pc.struct_field(rounds.flatten(), name) for name in ("question", "answer"))
    starts = list_starts(rounds)
    one_image = pc.equal(pc.list_value_length(flat(batch, "images")), 1).to_numpy(zero_copy_only=False)
    with_name = np.repeat(one_image & named, np.diff(starts))
    columns = [
        counter.questions(questions),
        counter.follow_ups(_only(questions, with_name)),
        counter.answers(answers),
    ]
    systems = flat(batch, "system")
    schema = tokens_schema(counter.counter.first_may_differ)
    if counter.counter.first_may_differ:
        of_round = np.repeat(np.arange(len(systems)), np.diff(starts))
        columns.append(counter.first_questions(questions, systems.take(pa.array(of_round))))
    structs = pa.StructArray.from_arrays(columns, fields=list(schema.field("rounds").type.value_type))
    prefixes = counter.prefixes(systems)
    return pa.Table.from_arrays([flat(batch, "uid"), prefixes, nested(starts, structs)], schema=schema)


def _only(questions: pa.ListArray, selected: np.ndarray) -> pa.ListArray:
    """The questions of the selected rounds (rounds,), and no alternatives for the others."""
    lengths = np.where(selected, np.diff(list_starts(questions)), 0)
    return nested(starts_from_lengths(lengths), questions.filter(pa.array(selected)).flatten())


def count_tokens(
    dataset: str,
    records: Path,
    report: Path,
    tokenizer_name: str,
    settings: TokensConfig,
    out: Path,
    followups: bool = False,
) -> dict[str, Any]:
    """Write the token table of `dataset` and its manifest into `out`; return the manifest.

    `followups` counts questions as follow-ups of a join too.

    Raises:
        UserError: a file or the tokenizer is missing, or the tokenizer cannot be used.
    """
    records_sha256 = read_json(report)["sha256"]
    if not records.exists():
        raise UserError(f"{records} does not exist: run convert for {dataset} first")
    tokenizer = load_tokenizer(tokenizer_name)
    template = template_of(settings, tokenizer)
    try:
        counter = TokenCounter(tokenizer, template, settings.image_tokens)
        texts = TextCounter(counter, settings.max_images)
        identity = tokens_identity(tokenizer, template, settings.image_tokens)
        table = _count(records, texts, dataset, followups)
    except ValueError as error:
        raise UserError(f"{dataset} cannot be counted with {tokenizer_name}: {error}") from None

    write_table(out / f"{dataset}.parquet", table)
    manifest = {
        "v": 1,
        "dataset": dataset,
        "identity": identity,
        "template": template.to_dict(),
        "image_tokens": settings.image_tokens,
        "max_images": settings.max_images,
        "followups": followups,
        "shows_images_in_questions": texts.shows_images,
        "prefix": counter.prefix(),
        "image": [counter.image(number) for number in range(1, settings.max_images + 1)],
        "round_overhead": counter.round_overhead(),
        "between_rounds": counter.between_rounds(),
        "end": counter.end(),
        "rows": table.num_rows,
        "records_sha256": records_sha256,
        "sha256": table_sha256(table),
    }
    if counter.last_round():
        manifest["last_round"] = counter.last_round()
    write_json(out / f"{dataset}.json", manifest)
    return manifest


def _count(path: Path, counter: TextCounter, dataset: str, followups: bool) -> pa.Table:
    with open_table(path) as file:
        batches = file.iter_batches(_BATCH, columns=["uid", "images", "rounds", "system"])
        total = -(-file.metadata.num_rows // _BATCH)
        tables = [
            count_batch(pa.Table.from_batches([batch]), counter, followups)
            for batch in track(batches, f"counting {dataset} ({_BATCH} records at a time)", total)
        ]
    return pa.concat_tables(tables) if tables else tokens_schema(counter.counter.first_may_differ).empty_table()


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--dataset", required=True, help="dataset whose texts are counted")
    arguments.add_argument("--records", required=True, type=Path, help="records/<dataset>.parquet")
    arguments.add_argument("--report", required=True, type=Path, help="records/<dataset>.report.json")
    arguments.add_argument("--tokenizer", required=True, help="folder or hub name")
    arguments.add_argument("--settings", required=True, help="the section `tokens.<name>` as JSON, or @file")
    arguments.add_argument("--followups", action="store_true", help="a join takes follow-ups from this dataset")
    arguments.add_argument("--out", required=True, type=Path, help="folder to write into: tokens/<tokens>")
    args = arguments.parse_args()
    settings = load_settings(CompleteTokensConfig, args.settings)
    count_tokens(args.dataset, args.records, args.report, args.tokenizer, settings, args.out, args.followups)


if __name__ == "__main__":
    run_program(main)
