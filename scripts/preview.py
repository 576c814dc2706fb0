"""Show ten conversations of a blend on a page: images, the rendered prompt, supervised tokens coloured.

Reads   blend/<blend>/epoch-000 (and the media shards it refers to), the tokenizer
Writes  preview.html   one page with everything in it

The page is made with the same template and tokenizer as training. Read it before training: wrong images, doubled
headers and answers that are not supervised are obvious here, and otherwise show only in the quality of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from model.joined_tokens import Piece, piece_offsets
from model.template import Template, encode, segments, tokenised
from scripts.blending.tokens_identity import load_tokenizer, template_of, tokens_identity
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic
from scripts.config.tokens import CompleteTokensConfig, TokensConfig
from scripts.inference.blend_reader import BlendReader, Sample
from scripts.reporting.report_images import data_uri

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 10
_SCANNED = 400
_PAGE = Path(__file__).parent / "blending" / "preview.html.jinja"


@dataclass(frozen=True)
class PreviewSpan:
    """A stretch of a rendered conversation; `kind` is header, text, image, answer or end.

    `tokens` are the texts of the tokens of an answer, one after the other. An answer that is not supervised is a text,
    and its end a header.
    """

    kind: str
    text: str = ""
    tokens: tuple[str, ...] = ()
    uri: str | None = None
    small: bool = False


@dataclass(frozen=True)
class ShownConversation:
    """One conversation of the page, with the number of its supervised tokens."""

    sample: Sample
    spans: list[PreviewSpan]
    labels: int


def write_preview(blend: Path, root: Path, tokenizer_name: str, settings: TokensConfig, out: Path) -> None:
    """Write the page.

    Raises:
        UserError: the blend is missing or damaged, or was counted with another tokenizer or template.
    """
    reader, tokenizer = BlendReader(blend, root), load_tokenizer(tokenizer_name)
    template = template_of(settings, tokenizer)
    if tokens_identity(tokenizer, template, settings.image_tokens) != reader.manifest["tokens_identity"]:
        raise UserError(
            f"{blend} was counted with another tokenizer than {tokenizer_name}, another template or other tokens per "
            "image: preview it with the settings of its token tables"
        )
    shown = []
    for position in choose_conversations(reader):
        sample = reader[position]
        encoded = encode(sample.messages, tokenizer, template, settings.image_tokens)
        labels = sum(label >= 0 for label in encoded.labels)
        if (len(encoded), labels) != (sample.n_tokens, sample.n_labels):
            raise UserError(
                f"conversation {position} of {blend} has {len(encoded)} tokens, not {sample.n_tokens} as planned: "
                "run plan again"
            )
        shown.append(ShownConversation(sample, list(rendered(sample, tokenizer, template)), labels))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    with atomic(out, "w") as file:
        file.write(page.render(manifest=reader.manifest, shown=shown, image_tokens=settings.image_tokens))


def choose_conversations(reader: BlendReader) -> list[int]:
    """Up to ten conversations, spread over the part, taken in turn from every dataset found there."""
    step = max(1, len(reader) // _SCANNED)
    by_dataset: dict[str, list[int]] = {}
    for position in range(0, len(reader), step):
        by_dataset.setdefault(reader[position].dataset, []).append(position)
    turns = [
        (turn, dataset, position)
        for dataset, positions in by_dataset.items()
        for turn, position in enumerate(positions[:: max(1, len(positions) // SHOWN)])
    ]
    return sorted(position for _, _, position in sorted(turns)[:SHOWN])


def rendered(sample: Sample, tokenizer: "PreTrainedTokenizerBase", template: Template) -> Iterator[PreviewSpan]:
    """The conversation span by span, exactly as it is tokenised and trained on."""
    for piece, _ in tokenised(segments(sample.messages, template), tokenizer, template):
        if piece.image is not None:
            uri, small = data_uri(sample.images[piece.image])
            yield PreviewSpan("image", f"image {piece.image + 1}", uri=uri, small=small)
        elif piece.supervised and any(segment.from_message for segment, _ in piece.parts):
            yield PreviewSpan("answer", piece.text, tokens=_tokens(piece, tokenizer, template.joined))
        elif piece.supervised:
            yield PreviewSpan("end", piece.text)
        else:
            for segment, text in piece.parts:
                yield PreviewSpan("text" if segment.from_message else "header", text)


def _tokens(piece: Piece, tokenizer: "PreTrainedTokenizerBase", joined: bool) -> tuple[str, ...]:
    """The text of an answer divided into its tokens; tokens that share a character are shown as one."""
    if joined:
        spans = piece_offsets(piece, tokenizer)
    else:
        spans = tokenizer(
            piece.text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )["offset_mapping"]  # fmt: skip
    ends = sorted({end for _, end in spans} | {len(piece.text)})
    return tuple(piece.text[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start)


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--blend", required=True, type=Path, help="folder of the shards: blend/<blend>/epoch-000")
    arguments.add_argument(
        "--root", required=True, type=Path, help="results root, which image references are relative to"
    )
    arguments.add_argument("--tokenizer", required=True, help="folder or hub name")
    arguments.add_argument("--settings", required=True, help="the section `tokens.<name>` as JSON, or @file")
    arguments.add_argument("--out", required=True, type=Path, help="page to write: blend/<blend>/preview.html")
    args = arguments.parse_args()
    write_preview(args.blend, args.root, args.tokenizer, load_settings(CompleteTokensConfig, args.settings), args.out)


if __name__ == "__main__":
    run_program(main)
