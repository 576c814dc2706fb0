"""A survey of own data as text for a terminal."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator

from scripts.inspection.survey import ShownConversation, Survey, quantile

_LABEL = 12
_WIDTH = 118
_EXAMPLES = 2


def as_text(survey: Survey, conversations: int) -> str:
    """The survey, with up to `conversations` of its conversations."""
    shown = _shown(survey.shown[:conversations])
    return "\n".join([*_summary(survey), *_losses(survey), *_lengths(survey), *_cut(survey), *shown])


def _summary(survey: Survey) -> Iterator[str]:
    files = survey.files
    rest = "" if survey.complete else "; there are more"
    names = ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    yield from _entry("data", f"{survey.rows:,} rows read of {names}{rest}")
    yield from _entry("form", _counted(survey.forms, "rows") or "none was recognised")
    yield from _entry("members", _counted(survey.members - survey.ignored, "rows"))
    if survey.ignored:
        yield from _entry("ignored", _counted(survey.ignored, "rows"))
    unsupervised = f"; {survey.unsupervised:,} answers are shown, but not trained on" if survey.unsupervised else ""
    yield from _entry("turns", _counted(survey.roles, "") + unsupervised)
    named = _counted(survey.images, "") or "rows name none"
    where = f" ({survey.chosen_images})" if survey.chosen_images else ""
    yield from _entry("images", f"{named}; {survey.image_files:,} image files are there{where}")


def _losses(survey: Survey) -> Iterator[str]:
    share = survey.lost / survey.rows if survey.rows else 0.0
    yield from _entry("lost", f"{survey.lost:,} rows ({share:.1%})" if survey.lost else "no row")
    for reason, entry in _by_count(survey.dropped.as_dict()):
        yield from _entry("", f"{entry['count']:,} {reason}")
        for example in entry["examples"][:_EXAMPLES]:
            yield from _entry("", f"    {example}")
        if hint := survey.hints.get(reason):
            yield from _entry("", f"    -> {hint.advice}" + (f":  {hint.line}" if hint.line else ""))
    for reason, entry in _by_count(survey.noted.as_dict()):
        if not reason.startswith("ignored:"):
            yield from _entry("noted", f"{entry['count']:,} {reason}, such as {entry['examples'][0]}")


def _lengths(survey: Survey) -> Iterator[str]:
    if not survey.tokens:
        return
    how = f"counted with {survey.tokenizer}" if survey.tokenizer else "estimated; --tokenizer NAME counts them"
    yield from _entry(
        "tokens",
        f"median {quantile(survey.tokens, 0.5):,}, 95 % up to {quantile(survey.tokens, 0.95):,}, "
        f"longest {max(survey.tokens):,} in a conversation ({how})",
    )
    counts = Counter(survey.n_images)
    yield from _entry(
        "",
        "images in a conversation: " + ", ".join(f"{number} in {counts[number]:,}" for number in sorted(counts)[:8]),
    )


def _cut(survey: Survey) -> Iterator[str]:
    for limit, count in survey.beyond.items():
        yield from _entry(
            "beyond", f"{count:,} conversations have more than {limit}: their last rounds are cut off, or all of them"
        )


def _shown(conversations: Iterable[ShownConversation]) -> Iterator[str]:
    for conversation in conversations:
        yield ""
        about = f"{conversation.form}, {conversation.tokens:,} tokens"
        yield f"{conversation.origin} ({about}); + marks what is trained on:"
        text = ""
        kinds: list[str] = []
        for part in conversation.parts:
            shown = f"[{part.text}]" if part.kind == "image" else part.text
            text += shown
            kinds += [part.kind] * len(shown)
        start = 0
        for line in text.split("\n"):
            mark = "+" if "answer" in kinds[start : start + len(line)] else " "
            yield from (f"  {mark} {piece}" for piece in textwrap.wrap(line, _WIDTH - 4))
            start += len(line) + 1


def _entry(label: str, text: str) -> list[str]:
    indent = " " * (_LABEL + len(text) - len(text.lstrip(" ")))
    first, *more = textwrap.wrap(text.strip(), _WIDTH - len(indent), break_on_hyphens=False) or [""]
    return [f"{label:<{_LABEL}}{indent[_LABEL:]}{first}", *(f"{indent}{line}" for line in more)]


def _counted(counts: Counter[str], unit: str) -> str:
    return ", ".join(f"{name} ({count:,} {unit})".replace(" )", ")") for name, count in counts.most_common())


def _by_count(reasons: dict[str, dict]) -> list[tuple[str, dict]]:
    return sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0]))
