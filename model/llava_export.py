"""A model as a stock LLaVA of `transformers`, for software that supports that architecture and not this one.

Possible where the two compute the same: ordinary causal attention, LLaVA-1.5's projector, and an encoder whose features
LLaVA can select. Everything else is refused with the reason; MMCA in particular would silently become causal attention.
The weights give the same logits for the same tokens. The chat template of the exported processor writes the same text;
stock processors tokenise it as a whole and may split it a little differently from training.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from .modeling import VisualChatForConditionalGeneration
from .processing import VisualChatProcessor
from .template import IMAGE_TOKEN, INLINE, Template


def to_llava(
    model: VisualChatForConditionalGeneration, processor: VisualChatProcessor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return the model and its processor as a LLaVA, with copies of the weights.

    Raises ValueError, with the reason, if LLaVA cannot compute the same.
    """
    config = model.config
    strategy = _strategy(model)
    text = copy.deepcopy(config.text_config)
    text._attn_implementation = "sdpa"
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=copy.deepcopy(config.vision_config),
            text_config=text,
            image_token_index=config.image_token_id,
            image_seq_length=config.image_tokens,
            projector_hidden_act="gelu",
            vision_feature_select_strategy=strategy,
            vision_feature_layer=config.vision_feature_layer,
            tie_word_embeddings=text.tie_word_embeddings,
        )
    ).to(model.dtype)
    llava.model.vision_tower.load_state_dict(model.vision_tower.encoder.state_dict())
    llava.model.multi_modal_projector.load_state_dict(model.projector.state_dict())
    llava.model.language_model.load_state_dict(model.get_decoder().state_dict())
    llava.lm_head.load_state_dict(model.get_output_embeddings().state_dict())
    llava.generation_config = copy.deepcopy(model.generation_config)
    llava.eval()
    _check_features(model, llava)
    extra = config.vision_tokens - config.vision_patches if strategy == "full" else 1
    stock = LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=jinja_chat_template(processor.template, processor.tokenizer),
    )
    return llava, stock


def jinja_chat_template(template: Template, tokenizer: Any) -> str:
    """Write the prompt template in Jinja, the language of `apply_chat_template`.

    With `images: before` it writes the names of images into no sentence (`text_with_names`): it takes images before the
    text of a message, or behind the end of its last sentence, and refuses others with the reason.
    """

    def quoted(text: str) -> str:
        return repr(text.replace(IMAGE_TOKEN, ""))

    begin = "{{ bos_token }}" if template.bos and tokenizer.bos_token is not None else ""
    end = quoted(template.answer_end) if template.answer_end else "eos_token"
    trim = " | trim" if template.strip else ""
    question_header = f"{{{{ {quoted(template.question_header)} }}}}"
    if template.system_inside:
        own = "(loop.index0 == 1 and images.system)"
        default = "loop.index0 == 0" if template.system else "false"
        question_header = f"{{%- if not ({default} or {own}) -%}}{question_header}{{%- endif -%}}"
    headers = [quoted(template.header_before_answer(last)) for last in (True, False)]
    header = " ~ (images.shown | string) ~ ".join(map(quoted, template.image_header.split("{number}")))
    image = (
        "{%- set images.shown = images.shown + 1 -%}"
        f"{{{{ {header} ~ {IMAGE_TOKEN!r} ~ {quoted(template.image_end)} }}}}"
    )
    question = (
        question_header + (_INLINE_STRIPPED if template.strip else _INLINE).replace("IMAGE", image)
        if template.images == INLINE
        else _BEFORE.replace("IMAGE", image) + question_header + f"{{{{ images.text{trim} }}}}"
    )
    return (
        "{%- set images = namespace(shown=0, system=false, text='', after_text=false, behind=false, split=false) -%}"
        f"{begin}"
        "{%- if messages[0].role != 'system' -%}"
        f"{{{{ {quoted(template.system_text())} }}}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- set text = message.content if message.content is string else "
        "message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | select | join('\n') -%}"
        "{%- if message.role == 'system' -%}"
        f"{{%- set images.system = (text{trim}) != '' -%}}"
        f"{{{{ {quoted(template.system_header)} ~ text{trim} ~ {quoted(template.system_end)} if images.system "
        f"else {quoted(template.without_system)} }}}}"
        "{%- elif message.role == 'assistant' -%}"
        f"{{{{ {quoted(template.answer_start)} ~ text{trim} ~ {end} }}}}"
        "{%- else -%}"
        "{%- if loop.index0 > (1 if messages[0].role == 'system' else 0) -%}"
        f"{{{{ {quoted(template.round_end)} }}}}"
        "{%- endif -%}"
        f"{question}"
        f"{{{{ {headers[0]} if loop.index0 + 2 >= messages | length else {headers[1]} }}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    )


_INLINE = (
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- set images.after_text = false -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}"
    "{%- set images.after_text = false -%}IMAGE"
    "{%- elif part.text -%}"
    "{{ '\n' if images.after_text else '' }}{{ part.text }}{%- set images.after_text = true -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
)
"""The texts and images of a message in their places; IMAGE stands for what an image becomes."""

_INLINE_STRIPPED = _INLINE.replace("{{ message.content }}", "{{ message.content | trim }}").replace(
    "{{ part.text }}",
    "{%- set text = part.text.lstrip() if loop.first else part.text -%}{{ text.rstrip() if loop.last else text }}",
)
"""The same without blanks and newlines at the edges."""

_BEFORE = (
    "{%- set images.text = text -%}"
    "{%- if message.content is not string -%}"
    "{%- set images.after_text = false -%}{%- set images.behind = false -%}{%- set images.split = false -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type != 'image' -%}"
    "{%- set images.split = images.split or (images.after_text and images.behind) -%}"
    "{%- set images.after_text = true -%}"
    "{%- else -%}"
    "{%- set images.split = images.split or (images.after_text and message.content[0].type == 'image') -%}"
    "{%- set images.behind = images.behind or images.after_text -%}IMAGE"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if images.behind -%}"
    "{%- set images.text = text.rstrip() -%}"
    "{%- set line = images.text.split('\n')[-1] -%}"
    # "1." may be a label of a list, which is not the end of a sentence.
    "{%- if images.split or line[-1:] not in ['.', '?', '!'] or (line[-1:] == '.' and line | trim | length < 7) -%}"
    "{{ raise_exception('this chat template shows images before the text: write the images of a message before its "
    "text, or behind the end of its last sentence') }}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{%- endif -%}"
)
"""The images of a message; sets `images.text` to its text. IMAGE stands for what an image becomes."""


def _strategy(model: VisualChatForConditionalGeneration) -> str:
    """Which of the encoder's tokens LLaVA has to select: 'full' for all, 'default' for all but the first.

    Raises ValueError if it cannot compute what this model does.
    """
    config, reasons = model.config, []
    if config.attention != "causal":
        reasons.append(f"attention {config.attention!r}: LLaVA would attend causally instead")
    if config.projector != "mlp":
        reasons.append(f"projector {config.projector!r}: LLaVA's is 'mlp'")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        reasons.append("the language model's head has a bias: LLaVA's has none")
    if model.vision_tower.takes_patches or config.image_size != config.vision_config.image_size:
        reasons.append("the encoder needs its images prepared in a way that LLaVA does not support")
    if reasons:
        raise ValueError(f"this model cannot be exported as LLaVA: {'; '.join(reasons)}")
    with torch.no_grad():
        side = config.image_size
        blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=model.device)
        tokens = model.vision_tower.encode(blank).last_hidden_state.shape[1]
    if config.vision_tokens == tokens:
        return "full"
    if config.vision_tokens == tokens - 1:
        return "default"
    raise ValueError("this model cannot be exported as LLaVA: the encoder has several tokens that are not patches")


def _check_features(model: VisualChatForConditionalGeneration, llava: LlavaForConditionalGeneration) -> None:
    """Raise ValueError unless both give the same features of an image; some encoders normalise their output again."""
    side = model.config.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    with torch.no_grad():
        ours = model.image_embeds(pixels)[0]
        theirs = llava.to(model.device).get_image_features(pixels, return_dict=True).pooler_output[0]
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * ours.abs().max().item()):
        raise ValueError(
            f"this model cannot be exported as LLaVA: it reads layer {model.config.vision_feature_layer} of the "
            "encoder, which LLaVA reads differently; choose an inner layer (vision_layer: -2)"
        )
