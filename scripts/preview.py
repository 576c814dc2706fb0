"""Show ten conversations of a blend as a person reads them: images, the rendered prompt, supervised tokens coloured.

Reads   blend/<blend>/epoch-000 (and the media shards it refers to), the tokenizer
Writes  preview.html   one page with everything in it

What the page shows went through the same template and tokenizer as training. Read it before training: wrong images,
doubled headers and answers that are not supervised are seen at a glance here, and nowhere else until the model is bad.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2

from model.template import Segment, Template, encode, segments
from scripts.blending.tokens_identity import load_tokenizer, tokens_identity
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic
from scripts.config.tokens import TokensConfig
from scripts.inference.blend_reader import BlendReader, Sample
from scripts.reporting.report_images import data_uri

SHOWN = 10
_LOOKED_AT = 400
_PAGE = Path(__file__).parent / "blending" / "preview.html.jinja"


@dataclass(frozen=True)
class PreviewSpan:
    """A stretch of a rendered conversation; `kind` is header, text, image, answer or end.

    `tokens` are the texts of the tokens of an answer, one after the other.
    """

    kind: str
    text: str = ""
    tokens: tuple[str, ...] = ()
    uri: str | None = None
    small: bool = False


@dataclass(frozen=True)
class Shown:
    """One conversation of the page."""

    sample: Sample
    pieces: list[PreviewSpan]
    labels: int


def write_preview(blend: Path, root: Path, tokenizer_name: str, settings: TokensConfig, out: Path) -> None:
    """Write the page.

    Raises:
        UserError: the blend is missing or damaged, or was counted with another tokenizer or template.
    """
    reader, tokenizer, template = BlendReader(blend, root), load_tokenizer(tokenizer_name), settings.template.template()
    if tokens_identity(tokenizer, template, settings.image_tokens) != reader.manifest["tokens_identity"]:
        raise UserError(
            f"{blend} was counted with another tokenizer than {tokenizer_name}, another template or other tokens per "
            "image: preview it with the settings of its token tables"
        )
    shown = []
    for unit in choose_units(reader):
        sample = reader[unit]
        encoded = encode(sample.messages, tokenizer, template, settings.image_tokens)
        labels = sum(label >= 0 for label in encoded.labels)
        if (len(encoded), labels) != (sample.n_tokens, sample.n_labels):
            raise UserError(f"unit {unit} of {blend} has {len(encoded)} tokens and not {sample.n_tokens}: plan again")
        shown.append(Shown(sample, list(rendered(sample, tokenizer, template)), labels))
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(**strict, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    with atomic(out, "w") as file:
        file.write(page.render(manifest=reader.manifest, shown=shown, image_tokens=settings.image_tokens))


def choose_units(reader: BlendReader) -> list[int]:
    """Up to ten units, spread over the part, in turn from every dataset that is met on the way."""
    step = max(1, len(reader) // _LOOKED_AT)
    by_dataset: dict[str, list[int]] = {}
    for unit in range(0, len(reader), step):
        by_dataset.setdefault(reader[unit].dataset, []).append(unit)
    turns = [
        (turn, dataset, unit)
        for dataset, units in by_dataset.items()
        for turn, unit in enumerate(units[:: max(1, len(units) // SHOWN)])
    ]
    return sorted(unit for _, _, unit in sorted(turns)[:SHOWN])


def rendered(sample: Sample, tokenizer, template: Template) -> Iterator[PreviewSpan]:
    """The conversation piece by piece, exactly as it is tokenised."""
    said = {part["text"] for message in sample.messages for part in message["content"] if part["type"] == "text"}
    for segment in segments(sample.messages, template):
        if segment.kind == "image":
            uri, small = data_uri(sample.images[segment.image])
            yield PreviewSpan("image", f"image {segment.image + 1}", uri=uri, small=small)
        elif segment.kind == "end":
            yield PreviewSpan("end", tokenizer.eos_token)
        elif segment.supervised:
            yield PreviewSpan("answer", segment.text, tokens=_tokens(segment, tokenizer))
        else:
            yield PreviewSpan("text" if segment.text in said else "header", segment.text)


def _tokens(segment: Segment, tokenizer) -> tuple[str, ...]:
    """The text of a segment cut at its tokens; tokens that share a character are shown as one."""
    spans = tokenizer(
        segment.text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )["offset_mapping"]  # fmt: skip
    ends = sorted({end for _, end in spans} | {len(segment.text)})
    return tuple(segment.text[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start)


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--blend", required=True, type=Path, help="folder of the shards: blend/<blend>/epoch-000")
    arguments.add_argument("--root", required=True, type=Path, help="the results root, which image references begin at")
    arguments.add_argument("--tokenizer", required=True, help="folder or hub name")
    arguments.add_argument("--settings", required=True, help="the section `tokens.<name>` as JSON, or @file")
    arguments.add_argument("--out", required=True, type=Path, help="page to write: blend/<blend>/preview.html")
    args = arguments.parse_args()
    write_preview(args.blend, args.root, args.tokenizer, load_settings(TokensConfig, args.settings), args.out)


if __name__ == "__main__":
    run_program(main)
