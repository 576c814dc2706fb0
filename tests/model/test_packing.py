"""Packed = unpacked: conversations in one row of the batch give what they give in rows of their own."""

from __future__ import annotations

import pytest
import torch

from model.configuration import VisualChatConfig
from model.documents import compute_position_ids
from model.modeling import VisualChatForConditionalGeneration
from model.template import IGNORE_INDEX
from tests.model.conversations import ATTENTIONS, ONE_IMAGE, TEXT_ONLY, TWO_IMAGES, batch_of

CONVERSATIONS = (TWO_IMAGES, TEXT_ONLY, ONE_IMAGE, TWO_IMAGES, ONE_IMAGE)
PACKS = ((0, 1, 2), (3, 4))


@pytest.fixture(scope="module", params=ATTENTIONS)
def model(request, folder):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config)


@pytest.fixture(scope="module")
def unpacked(processor) -> dict:
    return batch_of(processor, *CONVERSATIONS)


def packed(unpacked: dict, side: str = "right") -> dict:
    """The same conversations with several in a row, and their `document_ids`."""
    real = unpacked["modality"] != 0
    names = {"input_ids": 0, "labels": IGNORE_INDEX, "modality": 0}
    rows = {name: [torch.cat([unpacked[name][n][real[n]] for n in pack]) for pack in PACKS] for name in names}
    rows["document_ids"] = [
        torch.cat([torch.full((int(real[n].sum()),), number) for number, n in enumerate(pack, start=1)])
        for pack in PACKS
    ]
    length = max(map(len, rows["input_ids"]))
    batch = {"pixel_values": unpacked["pixel_values"]}
    for name, values in rows.items():
        batch[name] = torch.full((len(values), length), names.get(name, 0))
        for target, value in zip(batch[name], values, strict=True):
            target[slice(len(value)) if side == "right" else slice(length - len(value), None)] = value
    return batch


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_positions_are_those_of_single_rows(model, unpacked, side):
    batch = packed(unpacked, side)
    inputs = {name: batch[name] for name in ("input_ids", "modality", "document_ids", "pixel_values")}
    with torch.no_grad():
        together = model(**inputs).logits
        alone = model(**{name: unpacked[name] for name in ("input_ids", "modality", "pixel_values")}).logits
    real, where = unpacked["modality"] != 0, batch["document_ids"] != 0
    torch.testing.assert_close(together[where], alone[real], rtol=1e-4, atol=1e-5)
    positions = compute_position_ids(batch["modality"], batch["document_ids"])
    assert torch.equal(positions[where], compute_position_ids(unpacked["modality"])[real])


def test_losses_and_gradients_are_those_of_single_rows(model, unpacked):
    batch = packed(unpacked)
    results = []
    for inputs in (batch, unpacked):
        model.zero_grad()
        losses, documents = model.token_losses(**inputs)
        losses.sum().backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        results.append((losses.detach(), documents, gradients))
    (ours, our_documents, our_gradients), (theirs, their_documents, their_gradients) = results
    assert torch.equal(our_documents, their_documents), "documents are numbered in reading order"
    assert set(our_documents.tolist()) == set(range(len(CONVERSATIONS)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-5)
    assert model(**batch).loss.item() == pytest.approx(model(**unpacked).loss.item(), rel=1e-5)


def test_another_document_of_the_row_changes_nothing(model, unpacked):
    batch = packed(unpacked)
    inputs = {name: batch[name] for name in ("input_ids", "modality", "document_ids", "pixel_values")}
    first = batch["document_ids"][0] == 1
    changed = inputs | {"input_ids": inputs["input_ids"].clone(), "pixel_values": inputs["pixel_values"].clone()}
    changed["input_ids"][0, (batch["document_ids"][0] > 1) & (batch["modality"][0] == 1)] = 20
    changed["pixel_values"][2] = 255 - changed["pixel_values"][2]  # the image of the third conversation
    with torch.no_grad():
        before, after = model(**inputs).logits[0], model(**changed).logits[0]
    torch.testing.assert_close(before[first], after[first], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(before[batch["document_ids"][0] == 3], after[batch["document_ids"][0] == 3], atol=1e-5)


def test_a_label_on_the_first_token_of_a_document_is_not_predicted_from_the_one_before(model, unpacked):
    batch = packed(unpacked)
    begins = batch["document_ids"].diff(dim=1, prepend=torch.zeros(2, 1, dtype=torch.int64)) > 0
    labelled = batch | {"labels": torch.where(begins, batch["input_ids"], batch["labels"])}
    with torch.no_grad():
        assert torch.equal(model.token_losses(**labelled)[0], model.token_losses(**batch)[0])


def test_packed_documents_cannot_continue_a_cache(model, unpacked):
    batch = packed(unpacked)
    inputs = {name: batch[name] for name in ("input_ids", "modality", "document_ids", "pixel_values")}
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    longer = {"modality": torch.nn.functional.pad(batch["modality"], (0, 1), value=1)}
    ids = torch.nn.functional.pad(batch["document_ids"], (0, 1), value=9)
    with pytest.raises(ValueError, match="packed documents cannot continue a cache"):
        model(batch["input_ids"][:, :1], **longer, document_ids=ids, past_key_values=cache)
