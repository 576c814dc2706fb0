"""Images in the middle of questions: every equality of the model holds wherever the images of a conversation stand."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AttentionInterface

from model.attention import SWITCHES
from model.chat import ChatSession
from model.configuration import VisualChatConfig
from model.conversation_batch import ConversationBatch
from model.conversation_cache import ConversationCache
from model.image_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.template import IGNORE_INDEX, Template
from tests.model.attention_cases import oracle
from tests.model.conversations import ATTENTIONS, PICTURES, batch_of, picture
from tests.model.test_packing import PACKS
from tests.tiny_models import IMAGE_TOKENS

TEMPLATE = Template(
    images="inline", image_header="", image_end="", question_header="\n### Question:\n", round_end="", answer_end="\n"
)


def question(*parts: str | int) -> dict:
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "index": part}
            for part in parts
        ],
    }


def answer(text: str, **options) -> dict:
    return {"role": "assistant", "content": text} | options


CONVERSATIONS = (
    [question("Which image has more, ", 0, " or ", 1, "?"), answer("The second image.")],
    [question("yes or no?"), answer("yes")],
    [
        question(2, ": What is on the left?"),
        answer("A red circle.", supervised=False),
        question("How many are on ", 0, 1, "\nand how many on the first? "),
        answer("Two."),
    ],
    [question("What is it? ", 1), answer("A circle.")],
    [question(0, 2), answer("no")],
)


@pytest.fixture(scope="module")
def processor(processor) -> VisualChatProcessor:
    return VisualChatProcessor(processor.image_processor, processor.tokenizer, IMAGE_TOKENS, TEMPLATE)


@pytest.fixture(scope="module", params=ATTENTIONS)
def model(request, folder):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config).eval()


@pytest.fixture(scope="module")
def unpacked(processor) -> dict:
    return batch_of(processor, *CONVERSATIONS)


def test_images_lie_between_the_words_of_their_question(processor):
    encoded = processor.encode(CONVERSATIONS[0])
    kinds = "".join("i" if kind == 2 else "t" for kind in encoded.modality)
    assert kinds.strip("t").count("i") == 2 * IMAGE_TOKENS and "t" in kinds.strip("t")
    before = encoded.input_ids[: kinds.index("i")]
    assert processor.tokenizer.decode(before[1:]) == "\n### Question:\nWhich image has more, "


def formula_losses(model, batch: dict, patch: pytest.MonkeyPatch) -> torch.Tensor:
    """The losses of the labels of one conversation, with the attention computed query by query from its definition."""
    ids, modality, labels = batch["input_ids"], batch["modality"], batch["labels"]
    switches = SWITCHES[model.config.attention]

    def formula(module, query, key, value, attention_mask=None, attention_plan=None, **options):
        return oracle(query, key, value, modality, None, **switches), None

    embeds = model.get_input_embeddings()(ids)
    embeds[modality == 2] = model.image_embeds(batch["pixel_values"]).flatten(0, 1)
    with patch.context() as patched:
        patched.setitem(AttentionInterface._global_mapping, model.config.attention, formula)
        positions = torch.arange(ids.shape[1])[None]
        hidden = model.get_decoder()(inputs_embeds=embeds, position_ids=positions).last_hidden_state
    logits = model.get_output_embeddings()(hidden)[0, :-1]
    targets = labels[0, 1:]
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")[targets >= 0]


def test_losses_are_those_of_the_formula(model, processor, unpacked, monkeypatch):
    """In float64, conversation by conversation; an answer that is not supervised has none."""
    model = model.double()
    with torch.no_grad():
        ours, documents = model.token_losses(**unpacked)
        for number in (0, 2, 4):
            batch = batch_of(processor, CONVERSATIONS[number])
            expected = formula_losses(model, batch, monkeypatch)
            assert len(expected) == sum(label != IGNORE_INDEX for label in batch["labels"][0].tolist())
            torch.testing.assert_close(ours[documents == number], expected, rtol=1e-8, atol=1e-8)
    model.float()


def test_packed_losses_and_gradients_are_those_of_single_rows(model, processor, unpacked):
    real = unpacked["modality"] != 0
    length = max(int(real[list(pack)].sum()) for pack in PACKS)
    batch = {"pixel_values": unpacked["pixel_values"]}
    for name, fill in (("input_ids", 0), ("labels", IGNORE_INDEX), ("modality", 0), ("document_ids", 0)):
        batch[name] = torch.full((len(PACKS), length), fill)
        for row, pack in zip(batch[name], PACKS, strict=True):
            values = [
                torch.full((int(real[n].sum()),), number) if name == "document_ids" else unpacked[name][n][real[n]]
                for number, n in enumerate(pack, start=1)
            ]
            row[: sum(map(len, values))] = torch.cat(values)
    results = []
    for inputs in (batch, unpacked):
        model.zero_grad()
        losses, _ = model.token_losses(**inputs)
        losses.sum().backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        results.append((losses.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_cached_conversation_equals_one_forward(model, processor, step):
    if not model.supports_image_states:
        pytest.skip("an ordinary cache holds all tokens: test_modeling")
    batch = batch_of(processor, CONVERSATIONS[2])
    ids, modality = batch["input_ids"], batch["modality"]
    with torch.no_grad():
        full = model(ids, modality, batch["pixel_values"]).logits[0]
        waiting = iter(model.compute_image_states(batch["pixel_values"]))
        cache, parts, start = ConversationCache(model.config), [], 0
        while start < ids.shape[1]:
            stop = min(start + step, ids.shape[1])
            while stop < ids.shape[1] and modality[0, stop] == modality[0, stop - 1] == 2:
                stop += 1
            new = [next(waiting) for _ in range(int((modality[0, start:stop] == 2).sum()) // IMAGE_TOKENS)]
            parts.append(model(ids[:, start:stop], past_key_values=cache, image_states=new).logits[0])
            start = stop
    text = modality[0] == 1
    torch.testing.assert_close(torch.cat(parts)[text], full[text], rtol=1e-4, atol=1e-5)


def test_rows_that_continue_in_one_batch_equal_single_forwards(model, processor):
    """As in the server: conversations of different lengths, extended together, with images among the new tokens."""
    encoded = [processor.encode(messages) for messages in CONVERSATIONS[:3]]
    cut = [len(row) // 3 for row in encoded]
    for row, place in enumerate(cut):
        while encoded[row].modality[place - 1] == 2:
            cut[row] = place = place + 1
    cache, batch = ImageCache(model), ConversationBatch.empty(model, 3)
    done = [0, 0, 0]
    for ends in (cut, [len(row) for row in encoded]):
        tokens = [row.input_ids[start:end] for row, start, end in zip(encoded, done, ends, strict=True)]
        kinds = [row.modality[start:end] for row, start, end in zip(encoded, done, ends, strict=True)]
        new = []
        for row, start, end in zip(encoded, done, ends, strict=True):
            first, last = (row.modality[:place].count(2) // IMAGE_TOKENS for place in (start, end))
            new += [PICTURES[index] for index in row.image_indices[first:last]]
        logits, batch = batch.extend(tokens, kinds, cache.model_inputs(new))
        done = ends
    for row, messages in enumerate(CONVERSATIONS[:3]):
        alone = batch_of(processor, messages)
        del alone["labels"], alone["attention_mask"]
        with torch.no_grad():
            expected = model(**alone).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


def test_a_chat_continues_behind_images_between_words(model, processor):
    """The second answer, computed from the cache of the first, is that of the whole conversation."""
    model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
    session = ChatSession(model, processor)
    first = session.ask(["Is ", red, " like ", blue, "?"], max_new_tokens=4)
    second = session.ask([blue, " and this, ", red, ": which?"], max_new_tokens=4)
    messages = [
        question("Is ", 0, " like ", 1, "?"),
        answer(first),
        question(2, " and this, ", 3, ": which?"),
    ]
    assert session.history == [*messages, answer(second)]
    batch = processor(messages, [red, blue, blue, red])
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert processor.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True) == second


def test_the_order_of_images_between_words_matters(model, processor):
    swapped = [question("Which image has more, ", 1, " or ", 0, "?"), answer("The second image.")]
    pictures = [picture(0), picture(1)]
    one, other = (batch_of(processor, messages, pictures=pictures) for messages in (CONVERSATIONS[0], swapped))
    with torch.no_grad():
        assert abs(model(**one).loss.item() - model(**other).loss.item()) > 1e-6
