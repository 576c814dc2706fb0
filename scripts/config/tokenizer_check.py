"""Whether a tokenizer is that of a decoder: another one gives the decoder the numbers of other words.

Two tokenizers are the same if they turn texts into the same numbers; files differ for many reasons that change nothing.
Where the decoder's folder holds no tokenizer, only sizes can be compared: a tokenizer may have fewer tokens than the
decoder has rows, because tables are padded, but neither more nor far fewer.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.template import IMAGE_TOKEN
from scripts.common.files import read_json
from scripts.config.base_facts import MINIATURE, BaseFacts, cached_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILE = "tokenizer.json"
_FILES = (_FILE, "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_LEAST_SHARE = 0.9
"""Of a decoder's rows that its tokenizer uses; published tables are padded by at most a twentieth."""
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 2024, 1234567 people paid $3.50 (or 99 %) for it!",
    "  indented\n\n\tlines, CamelCase, snake_case and don't, we'll",
    "Größe, naïve, Москва, 東京で会いましょう, مرحبا, 🙂👍🏽",
    "def f(x):\n    return {'a': [x, None]}  # why?",
    "### Question:\nWhich image shows a red circle?\n\n### Answer:\nThe second one.",
)


def tokenizer_problem(tokenizer: str, language: str, facts: BaseFacts | None, root: Path) -> str:
    """What is wrong with `tokenizer` for the decoder `language`, as far as files on this machine show it; or nothing.

    Args:
        tokenizer: its folder or hub name, or `miniature`.
        language: the same of the decoder.
        facts: what is known of the decoder.
        root: results root, which names may be relative to.
    """
    if tokenizer == language:
        return _missing(language, root)
    if MINIATURE in (tokenizer, language):
        return (
            f"{tokenizer} is not the tokenizer of the decoder {language}; write tokenizer: auto, which is the decoder's"
        )
    file = _file(tokenizer, root)
    if file is None:
        return ""
    own = _file(language, root)
    if own is not None and own.resolve() == file.resolve():
        return ""
    from tokenizers import Tokenizer

    try:
        given = Tokenizer.from_file(str(file))
        decoders = Tokenizer.from_file(str(own)) if own is not None else None
    except Exception:  # noqa: BLE001 - the library raises plain exceptions; `load_tokenizer` reports a damaged file
        return ""
    return difference(given, decoders, facts.rows if facts is not None else None, tokenizer, language)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any((folder / file).is_file() for file in _FILES)


def lacks_chat_template(language: str, root: Path) -> bool:
    """Whether a decoder's tokenizer is on this machine and has no chat template: then it was not tuned to chat."""
    file = _file(language, root)
    if language == MINIATURE or file is None or (file.parent / "chat_template.jinja").is_file():
        return False
    settings = file.parent / "tokenizer_config.json"
    fields = read_json(settings) if settings.is_file() else {}
    return not fields.get("chat_template") and not (file.parent / "additional_chat_templates").is_dir()


def _missing(language: str, root: Path) -> str:
    """Whether the folder of a decoder, if it is one, lacks a tokenizer."""
    folders = [folder for folder in (Path(language), root / language) if (folder / "config.json").is_file()]
    if language == MINIATURE or not folders or has_tokenizer(folders[0]):
        return ""
    return f"{folders[0]} holds no tokenizer; put the decoder's tokenizer.json into it, or name a folder that has it"


def difference(given: "Tokenizer", decoders: "Tokenizer | None", rows: int | None, name: str, language: str) -> str:
    """How a tokenizer differs from that of a decoder, with what to write; empty if it does not.

    Args:
        given: the tokenizer.
        decoders: the decoder's own, if it has one.
        rows: of the decoder's embedding table, if known.
        name: of the tokenizer, for the message.
        language: of the decoder, for the message.
    """
    size = _rows(given)
    table = f"{rows:,} rows" if rows is not None else "a table of unknown size"
    sizes = f"it has {size:,} tokens, and the decoder {table}"
    if decoders is not None:
        text = next((text for text in _TEXTS if _ids(given, text) != _ids(decoders, text)), None)
        if text is not None:
            return (
                f"{name} is not the tokenizer of {language}, whose own one ({_rows(decoders):,} tokens) turns {text!r} "
                f"into other numbers; {sizes}. Write tokenizer: {language}, or tokenizer: auto"
            )
    # A tokenizer that is the decoder's and has more tokens has got new ones, for which the table grows.
    if rows is None or rows * _LEAST_SHARE <= size <= (rows if decoders is None else size):
        return ""
    return (
        f"{name} cannot be the tokenizer of {language}: {sizes}. Write the tokenizer that the decoder was trained "
        "with; with its files in the decoder's folder, tokenizer: auto is enough"
    )


def _ids(tokenizer: "Tokenizer", text: str) -> Any:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _rows(tokenizer: "Tokenizer") -> int:
    """The number of tokens, without the placeholder of images, which this project adds itself."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return len(vocabulary) - (IMAGE_TOKEN in vocabulary)


def tokenizer_folder(name: str, root: Path) -> Path | None:
    """The folder with the tokenizer `name`, if it is on this machine."""
    if name == MINIATURE:
        folders: list[Path | None] = [root / "bases/miniature/tokenizer"]
    else:
        folders = [Path(name), root / name, cached_folder(name, _FILE)]
    return next((folder for folder in folders if folder is not None and has_tokenizer(folder)), None)


def _file(name: str, root: Path) -> Path | None:
    """The tokenizer.json of a folder or of a hub model in the local cache."""
    folder = tokenizer_folder(name, root)
    return folder / _FILE if folder is not None and (folder / _FILE).is_file() else None
