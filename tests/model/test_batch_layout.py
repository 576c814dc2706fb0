"""The layout of a batch: rows without padding, tokens and images in their places, labels where they are predicted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch_layout import BatchLayout, LabelIndex, LayoutOptions
from model.documents import IMAGE, PAD, TEXT, compute_position_ids
from tests.model.attention_cases import CASES, packed_rows, pad, parse_document_ids, parse_modality, rows

OPTIONS = {
    "mmca": LayoutOptions("self", "sum", "sdpa", 99),
    "causal": LayoutOptions("causal", "lse", "sdpa", 99),
    "dattn": LayoutOptions("self", "lse", "sdpa", 99),
    "fused": LayoutOptions("self", "sum", "triton", 99),
    "fused causal": LayoutOptions("causal", "lse", "triton", 99),
}


def check(texts: list[str], options: LayoutOptions, unpad: bool) -> None:
    modality, ids = parse_modality(texts), parse_document_ids(texts)
    layout = BatchLayout.build(modality, options=options, document_ids=ids, unpad=unpad)
    total = modality.numel()
    numbers = torch.arange(total).view_as(modality) + 1
    table = numbers[:, :, None].double()
    images = numbers[modality == IMAGE][:, None].double()
    assert layout.image_tokens == len(images)
    joined = layout.join(layout.select(table), images if len(images) else None)
    # Every row of the decoder is the token of which it has the position.
    flat = joined.flatten().long() - 1
    assert torch.equal(layout.position_ids.flatten(), compute_position_ids(modality, ids).flatten()[flat])
    assert torch.equal(layout.arrange(numbers).flatten(), flat + 1)
    computed = (
        (modality != PAD).flatten() if layout.attention.order is not None else torch.ones(total, dtype=torch.bool)
    )
    assert sorted(flat.tolist()) == computed.nonzero()[:, 0].tolist() and layout.tokens == int(computed.sum())
    restored = layout.restore(joined)
    assert torch.equal(restored[modality != PAD], table[modality != PAD])
    assert layout.embed(lambda x: x, numbers).tolist() == [
        n for n in (flat + 1).tolist() if modality.flatten()[n - 1] != IMAGE
    ]

    labels = torch.where((modality == TEXT) & (numbers % 3 > 0), numbers, -100)
    index = LabelIndex.build(labels, modality, ids, layout.attention.order)
    starts = ids.diff(dim=1, prepend=torch.zeros_like(ids[:, :1])) != 0 if ids is not None else None
    first = torch.zeros_like(modality, dtype=torch.bool) if starts is None else starts
    expected = [
        (int(numbers[row, t - 1]), int(labels[row, t]))
        for row, t in (labels >= 0).nonzero().tolist()
        if t > 0 and modality[row, t - 1] != PAD and not first[row, t]
    ]
    found = zip((index.select(flat.view(1, -1, 1))[:, 0] + 1).tolist(), index.targets.tolist(), strict=True)
    assert list(found) == expected


@pytest.mark.parametrize("unpad", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
def test_every_token_is_in_its_place_in_named_cases(texts, options, unpad):
    check(texts, options, unpad)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.one_of(rows, packed_rows), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    name=st.sampled_from(sorted(OPTIONS)),
    unpad=st.booleans(),
)
def test_every_token_is_in_its_place_in_random_cases(texts, side, name, unpad):
    check(pad(texts, side), OPTIONS[name], unpad)


def test_a_layout_without_padding_has_one_row():
    layout = BatchLayout.build(parse_modality(["tiit...", "ttttttt"]), options=OPTIONS["mmca"])
    assert layout.position_ids.tolist() == [[0, 3, 0, 1, 2, 3, 4, 5, 6, 1, 2]]
    assert layout.attention.order is not None and layout.place is None


def test_a_continuation_is_laid_out_for_its_own_tokens():
    layout = BatchLayout.build(parse_modality(["tiittt"]), 2, options=OPTIONS["mmca"])
    assert layout.position_ids.tolist() == [[4, 5]] and layout.text.tolist() == [0, 1] and layout.shape == (1, 2)


def test_nothing_is_predicted_from_padding():
    modality = parse_modality(["..tt", "tttt"])
    layout = BatchLayout.build(modality, options=OPTIONS["mmca"])
    index = LabelIndex.build(torch.arange(8).view(2, 4), modality, order=layout.attention.order)
    assert index.targets.tolist() == [3, 5, 6, 7] and index.documents.tolist() == [0, 1, 1, 1]
    assert index.selection.source.tolist() == [0, 2, 3, 4]
