"""Conversations that join a batch and leave it get the logits that they get alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from model.configuration import VisualChatConfig
from model.conversation_batch import ConversationBatch
from model.image_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from tests.tiny_models import user

COLOURS = ("red", "blue", "green", "white")
QUESTIONS = [
    [user("What is on the left of this?", 0)],
    [user("Hello?")],
    [user("Which image has more?", 1, 2), {"role": "assistant", "content": "The second."}, user("And now?", 0)],
    [user("How many?", 3, 3, 1)],
]


@pytest.fixture(scope="module", params=["mmca", "causal", "dattn"])
def model(request, folder):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config).eval()


@pytest.fixture(scope="module")
def pixels(processor):
    return [processor.preprocess_image(Image.new("RGB", (40, 30), colour)) for colour in COLOURS]


def start(model, processor, pixels, questions):
    """The logits behind each question, and the batch."""
    encoded = [processor.encode(messages) for messages in questions]
    images = ImageCache(model).model_inputs([pixels[index] for row in encoded for index in row.image_indices])
    empty = ConversationBatch.empty(model, len(encoded))
    return empty.extend([row.input_ids for row in encoded], [row.modality for row in encoded], images)


def alone(model, processor, pixels, question, tokens):
    """The logits behind a question and behind each of `tokens`, computed from scratch by the model alone."""
    encoded = processor.encode(question)
    batch = processor.collate([(encoded, pixels)])
    ids = torch.cat((batch["input_ids"], torch.tensor([tokens], dtype=torch.int64)), 1)
    images = {"pixel_values": batch["pixel_values"]} if "pixel_values" in batch else {}
    with torch.inference_mode():
        return model(input_ids=ids, **images).logits[0, len(encoded) - 1 :]


def check(model, processor, pixels, logits: dict[int, list], tokens: dict[int, list]):
    for number, rows in logits.items():
        expected = alone(model, processor, pixels, QUESTIONS[number], tokens[number])
        torch.testing.assert_close(torch.stack(rows), expected, atol=2e-4, rtol=2e-4)


def test_rows_that_join_and_leave(model, processor, pixels):
    appended = {number: [] for number in range(4)}
    all_logits = {number: [] for number in range(4)}

    def step(batch, members):
        tokens = [40 + 7 * number + len(appended[number]) for number in members]
        logits, batch = batch.extend([[token] for token in tokens], [[1]] * len(tokens), {})
        for row, number in enumerate(members):
            appended[number].append(tokens[row])
            all_logits[number].append(logits[row])
        return batch

    def join(numbers):
        logits, batch = start(model, processor, pixels, [QUESTIONS[number] for number in numbers])
        for row, number in enumerate(numbers):
            all_logits[number].append(logits[row])
        return batch

    running = step(step(join([0, 1]), [0, 1]), [0, 1])
    running = ConversationBatch.concat([running, join([2])])
    running = step(running, [0, 1, 2])
    running = step(running.select_rows([1, 2]), [1, 2])
    running = ConversationBatch.concat([running, join([3])]).select_rows([2, 0])
    step(step(running, [3, 1]), [3, 1])
    check(model, processor, pixels, all_logits, appended)
    assert [len(appended[number]) for number in range(4)] == [3, 6, 2, 2]


def test_a_row_continues_from_a_part_of_another_one(model, processor, pixels):
    question = QUESTIONS[2]
    encoded = processor.encode(question)
    first = len(processor.encode(question[:1]))
    _, batch = start(model, processor, pixels, [question, QUESTIONS[0]])
    prefix = batch.select_rows([0]).truncate(first)
    assert prefix.lengths == [first]
    rest, modality = encoded.input_ids[first:], encoded.modality[first:]
    fresh = processor.encode(QUESTIONS[1])
    images = ImageCache(model).model_inputs([pixels[0]])
    logits, both = ConversationBatch.concat([prefix, ConversationBatch.empty(model)]).extend(
        [rest, fresh.input_ids], [modality, fresh.modality], images
    )
    check(model, processor, pixels, {2: [logits[0]], 1: [logits[1]]}, {2: [], 1: []})
    assert both.lengths == [len(encoded), len(fresh)]
    again = ConversationBatch.concat([prefix]).extend([rest], [modality], images)[0]
    torch.testing.assert_close(again[0], logits[0], atol=2e-4, rtol=2e-4)


def test_a_batch_takes_no_more_memory_than_its_longest_row(model, processor, pixels):
    _, batch = start(model, processor, pixels, QUESTIONS)
    single = start(model, processor, pixels, QUESTIONS[1:2])[1]
    left = batch.select_rows([1])
    assert left.modality.shape[1] == left.lengths[0] == len(processor.encode(QUESTIONS[1]))
    assert left.nbytes == single.nbytes and all(x.untyped_storage().nbytes() == x.nbytes for x in left.text[0])
