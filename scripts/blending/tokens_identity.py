"""What decides a token count: the identity that ties a token table, a plan, a blend and a model together.

Two tokenizers have the same identity if they split every plain text alike. It is taken from what the tokenizer does,
not from the bytes of its files, because saving a tokenizer again reorders files and adding `<image>` changes no text.
"""

import json
from typing import TYPE_CHECKING

from model.chat_template import template_from_tokenizer
from model.template import IMAGE_TOKEN, Template
from scripts.common.errors import UserError
from scripts.common.files import canonical_json, text_sha256
from scripts.common.verified_folder import check_folder
from scripts.config.tokens import AUTO, CHAT, PAPER, TemplateTexts, TokensConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITTING = ("normalizer", "pre_tokenizer", "model")


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """A tokenizer from a folder or the hub, with the image placeholder that a language model's own lacks.

    Raises:
        UserError: there is none, or it is damaged or cannot be loaded.
    """
    from transformers import AutoTokenizer

    check_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no tokenizer could be loaded from {name!r}: {reason}") from None
    if IMAGE_TOKEN not in tokenizer.all_special_tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def template_of(settings: TokensConfig, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The prompt template of an entry of `tokens`: that of the paper, the tokenizer's own, or the one written there.

    Raises:
        UserError: the tokenizer's chat template is wanted, but there is none, or it cannot be used.
    """
    if isinstance(settings.template, TemplateTexts):
        return settings.template.template()
    if settings.template == PAPER or (settings.template == AUTO and not tokenizer.chat_template):
        return Template()
    try:
        return template_from_tokenizer(tokenizer)
    except ValueError as error:
        raise UserError(
            f"template: {CHAT} cannot be used with the tokenizer {tokenizer.name_or_path}: {error}. Write the texts of "
            f"the template below `template` in the section `tokens`, or use `template: {PAPER}`"
        ) from None


def tokens_identity(tokenizer: "PreTrainedTokenizerBase", template: Template, image_tokens: int) -> str:
    """Hash of a fast tokenizer of `transformers`, the prompt template and the tokens of an image.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: save it with a tokenizer.json")
    state = json.loads(backend.to_str())
    # Special tokens never come from text (see model/template.py), so having more of them changes no count.
    added = [token for token in state.get("added_tokens") or [] if not token["special"]]
    facts = {
        "splitting": {part: state.get(part) for part in _SPLITTING},
        "added": added,
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
        "template": template.to_dict(),
        "image_tokens": image_tokens,
    }
    return text_sha256(canonical_json(facts))
