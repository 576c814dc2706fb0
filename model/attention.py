"""Attention over text and images in two branches: MMCA, causal and D-Attn as one registered function with two switches.

For a text token with query q, keys and values of the text up to itself (t) and of the images before it (i), MMCA
(multi-modal causal attention, arXiv 2309.14327, figure 4) is

    out = softmax(q K_t^T * scaling) V_t  +  softmax(q K_i^T * scaling) V_i

where the second term is 0 if no image lies before. An image token attends to itself alone, so that its row is its own
value. The switches:

    image_rows   'self'    an image row is its own value
                 'causal'  an image row attends to everything before it
    merge        'sum'     the two branches are normalised apart and added
                 'lse'     the two are merged by log-sum-exp, which is one softmax over the keys of both

    name      image_rows   merge
    mmca      self         sum
    causal    causal       lse       ordinary causal attention
    dattn     self         lse       D-Attn, arXiv 2502.01906

Importing this module registers the names in the AttentionInterface of `transformers` and, on purpose, not in its
AttentionMaskInterface: so the library builds no mask. No dense T x T mask exists here either: the text of each row is
moved together and gets ordinary causal attention; the image branch runs once per *ordinal text segment* (a stretch of
text behind the same images): the last segments of all rows in one call, those before them in the next, each over the
images before it. Where everything lies is computed once per forward (`Layout.build`) and reused by all layers.

Shapes: B batch, H heads, G key-value heads, D head width, T tokens of this forward, K tokens including the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

PAD, TEXT, IMAGE = 0, 1, 2

# What some decoders ask of their attention function and this one does not compute: a wrong answer if it were ignored.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "sinks", "position_bias", "head_mask")


@dataclass
class Segment:
    """The s-th text segments, from the end, of all rows that have one: the first `rows` rows of the image block.

    Each has at most `length` text tokens, which read at most `key_length` image tokens; `key_mask`
    (rows, 1, 1, key_length) tells which, or is None where every row reads all of them.
    """

    rows: int
    length: int
    key_length: int
    key_mask: Tensor | None


@dataclass
class Layout:
    """Where text, images and padding lie in a batch. An index counts in the B*T tokens of the flattened batch.

    The text block (B, Nt) holds the text tokens of each row, moved together; the image block (B, Ni) the image tokens,
    with rows by falling number of segments. A forward over whole sequences (T = K) fills the indices; one that
    continues a cache (T < K) fills the masks.
    """

    key_length: int  # K
    own: Tensor  # (B, T, 1, 1) bool: image and padding tokens
    mixed: bool  # there are both text and images
    token_index: Tensor | None = None  # (B*N,) tokens that are not padding, moved together; None: they already are
    token_slot: Tensor | None = None  # (B*T,) where each of them went in `token_index`
    key_index: Tensor | None = None  # (B*Nt + B*Ni,) the text block, then the image block
    query_index: Tensor | None = None  # (B*Nt + Q,) the text block, then the segments
    slot: Tensor | None = None  # (B*T + 1,) where each token went in `key_index`; the last is for what is dropped
    target: Tensor | None = None  # (Q,) the token of each place of the segments; B*T: none, dropped
    segments: list[Segment] = field(default_factory=list)
    all_mask: Tensor | None = None  # (B, 1, T, K) bool: the keys each query reads, behind a cache
    text_mask: Tensor | None = None
    image_mask: Tensor | None = None
    no_image: Tensor | None = None  # (B, T, 1, 1) bool: queries without an image before them, behind a cache
    calls: int = 0  # attention calls with this layout: the model checks that its decoder really makes them

    @classmethod
    def build(cls, modality_q: Tensor, modality_k: Tensor) -> Layout:
        """Compute the layout of a forward.

        `modality_q` (B, T) and `modality_k` (B, K) hold 0 for padding, 1 for text and 2 for image; the queries are the
        last T keys. Works on the CPU, because the sizes are needed there, and returns tensors on the given device.
        """
        kinds = modality_k.detach().cpu().to(torch.int64)
        length = modality_q.shape[1]
        own = kinds[:, kinds.shape[1] - length :, None, None] != TEXT
        layout = cls(kinds.shape[1], own, bool((kinds == IMAGE).any() and (kinds == TEXT).any()))
        if length == kinds.shape[1]:
            layout._fill_indices(kinds)
        else:
            layout._fill_masks(kinds, length)
        return layout._to(modality_q.device)

    def _fill_indices(self, kinds: Tensor) -> None:
        """Find the places of all kinds of tokens. `kinds` (B, T)."""
        is_token, is_image = kinds != PAD, kinds == IMAGE
        if (is_token[:, 1:] & ~is_token[:, :-1]).any():
            index, slot, _ = _move_together(is_token)
            self.token_index, self.token_slot = index.flatten(), slot.flatten()
        if not self.mixed:
            return
        text, text_slot, is_text = _move_together(kinds == TEXT)
        # A segment begins where the number of image tokens before the text changes. All these are (B, Nt).
        before = is_image.cumsum(1).flatten()[text].masked_fill(~is_text, 0)
        begins = (before != F.pad(before[:, :-1], (1, 0))) & is_text
        count = begins.sum(1, keepdim=True)
        # Counted from the end: the last segment is mostly the longest, and like lengths waste little in one call.
        ordinal = (count - begins.cumsum(1)).masked_fill(before == 0, -1)

        order = count[:, 0].argsort(descending=True, stable=True)
        image, image_slot, _ = _move_together(is_image)
        image_slot += (order.argsort() - torch.arange(len(order)))[:, None] * image.shape[1]
        queries, targets = [text.flatten()], []
        for number in range(int(count.max())):
            rows = order[: int((count > number).sum())]
            inside = ordinal[rows] == number
            places, _, filled = _move_together(inside)
            tokens = text[rows].flatten()[places]
            queries.append(tokens.flatten())
            targets.append(tokens.masked_fill(~filled, kinds.numel()).flatten())
            key_lengths = before[rows].masked_fill(~inside, 0).amax(1)
            mask = torch.arange(int(key_lengths.max())) < key_lengths[:, None, None, None]
            self.segments.append(Segment(len(rows), tokens.shape[1], mask.shape[-1], None if mask.all() else mask))
        self.key_index = torch.cat((text.flatten(), image[order].flatten()))
        self.query_index = torch.cat(queries)
        self.slot = F.pad(torch.where(is_image, text.numel() + image_slot, text_slot).flatten(), (0, 1))
        self.target = torch.cat(targets) if targets else None

    def _fill_masks(self, kinds: Tensor, length: int) -> None:
        """Write down what each of the last `length` tokens reads. `kinds` (B, K)."""
        place = torch.arange(kinds.shape[1])
        before = place <= place[-length:, None]
        itself = place == place[-length:, None]
        self.all_mask = ((kinds != PAD)[:, None, None] & before) | itself
        if self.mixed:
            self.text_mask = ((kinds == TEXT)[:, None, None] & before) | itself
            image_mask = (kinds == IMAGE)[:, None, None] & before
            no_image = ~image_mask.any(-1, keepdim=True)
            # A query that reads nothing would be 0/0: it reads everything, and its answer is not used.
            self.image_mask, self.no_image = image_mask | no_image, no_image.transpose(1, 2)

    def _to(self, device: torch.device) -> Layout:
        if device.type != "cpu":
            for owner in (self, *self.segments):
                for name, value in vars(owner).items():
                    if isinstance(value, Tensor):
                        setattr(owner, name, value.to(device, non_blocking=True))
        return self


def _move_together(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the true places of each row of `mask` (B, T) to its left.

    Returns the flat index (B, N) of what lies at each new place, the flat new place (B, T) of each old one (both 0
    where there is none), and which new places are filled (B, N). N is the largest number of true places in a row.
    """
    counts = mask.sum(1)
    filled = torch.arange(int(counts.max())) < counts[:, None]
    index = torch.zeros(filled.shape, dtype=torch.int64).masked_scatter(filled, mask.flatten().nonzero()[:, 0])
    slot = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, filled.flatten().nonzero()[:, 0])
    return index, slot, filled


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    image_rows: str,
    merge: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention function in the form that `transformers` calls.

    `query` (B, H, T, D); `key` and `value` (B, G, K, D), the cache included, with H a multiple of G. Returns
    (B, T, H, D); rows of padding are without meaning. Raises ValueError without a layout, or if the decoder asks for
    something that is not computed here.
    """
    if layout is None:
        raise ValueError(
            "this attention needs to know where text and images lie: call VisualChatForConditionalGeneration, "
            "not its language model alone"
        )
    if layout.key_length != key.shape[2]:
        raise ValueError(
            f"the attention got {key.shape[2]} keys, but the modality of {layout.key_length} tokens; "
            "only a DynamicCache that this model filled can be continued"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"the decoder asks its attention for {name!r}, which is not computed here")
    layout.calls += 1
    sdpa = partial(_sdpa, dropout=dropout, scaling=scaling)

    # A batch without an image has no second branch, and the first is the softmax over all keys.
    if merge == "lse" or not layout.mixed:
        out = _joint(sdpa, query, key, value, layout)
        return (torch.where(layout.own, _own(value, query), out) if image_rows == "self" else out), None
    out = _sum(sdpa, query, key, value, layout)
    if image_rows == "causal":
        out = torch.where(layout.own, _joint(sdpa, query, key, value, layout), out)
    return out, None


def _joint(sdpa: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """One softmax over all keys up to the query: ordinary causal attention. Returns (B, T, H, D)."""
    if layout.all_mask is not None:
        return sdpa(query, key, value, mask=layout.all_mask)
    if layout.token_index is None:
        return sdpa(query, key, value, causal=True)
    batch, heads = query.shape[:2]
    query, key, value = (_heads(_take(_rows(x), layout.token_index), batch, x.shape[1]) for x in (query, key, value))
    out = sdpa(query, key, value, causal=True)
    return _take(out.flatten(0, 1).flatten(1), layout.token_slot).unflatten(0, (batch, -1)).unflatten(-1, (heads, -1))


def _sum(sdpa: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
    if layout.text_mask is not None:
        image = sdpa(query, key, value, mask=layout.image_mask).masked_fill(layout.no_image, 0)
        return torch.where(layout.own, _own(value, query), sdpa(query, key, value, mask=layout.text_mask) + image)

    (batch, heads, length), groups = query.shape[:3], key.shape[1]
    sizes = [segment.rows * segment.length for segment in layout.segments]
    texts = len(layout.query_index) - sum(sizes)
    text_query, *queries = _take(_rows(query), layout.query_index).split([texts, *sizes])
    keys, values = (_take(_rows(x), layout.key_index).tensor_split([texts]) for x in (key, value))
    text_key, image_key = (_heads(x, batch, groups) for x in keys)
    text_value, image_value = (_heads(x, batch, groups) for x in values)

    text = sdpa(_heads(text_query, batch, heads), text_key, text_value, causal=True)
    own = image_value.transpose(1, 2).repeat_interleave(heads // groups, 2)
    out = _take(torch.cat((text.flatten(0, 1), own.flatten(0, 1))).flatten(1), layout.slot)
    if layout.segments:
        images = []
        for segment, part in zip(layout.segments, queries, strict=True):
            seen = (slice(segment.rows), slice(None), slice(segment.key_length))
            image = sdpa(_heads(part, segment.rows, heads), image_key[seen], image_value[seen], mask=segment.key_mask)
            images.append(image.flatten(0, 1).flatten(1))
        out.index_add_(0, layout.target, torch.cat(images))
    return out[:-1].view(batch, length, heads, -1)


def _own(value: Tensor, query: Tensor) -> Tensor:
    """The values (B, G, K, D) of the queries' own tokens, which are the last, for all heads: (B, T, H, D)."""
    batch, heads, length = query.shape[:3]
    return value[:, :, -length:].transpose(1, 2).repeat_interleave(heads // value.shape[1], 2)


def _rows(x: Tensor) -> Tensor:
    """(B, heads, T, D) -> (B*T, heads*D)"""
    return x.transpose(1, 2).flatten(0, 1).flatten(1)


def _heads(rows: Tensor, batch: int, heads: int) -> Tensor:
    """(B*T, heads*D) -> (B, heads, T, D)"""
    return rows.view(batch, len(rows) // batch, heads, -1).transpose(1, 2)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of a matrix by their number.

    A look-up in an embedding table, because its backward pass is faster than that of other gathers on the CPU and,
    unlike theirs, deterministic on a GPU.
    """
    return F.embedding(index, rows)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    *,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Scaled dot product attention with grouped heads. Returns (B, T, H, D)."""
    groups = query.shape[1] // key.shape[1]
    if mask is not None and groups > 1:  # the fast kernels that take a mask know no grouped heads
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout, causal, scale=scaling, enable_gqa=groups > 1
    ).transpose(1, 2)


SWITCHES = {
    "mmca": {"image_rows": "self", "merge": "sum"},
    "causal": {"image_rows": "causal", "merge": "lse"},
    "dattn": {"image_rows": "self", "merge": "lse"},
}
for _name, _switches in SWITCHES.items():
    AttentionInterface.register(_name, partial(attend, **_switches))
