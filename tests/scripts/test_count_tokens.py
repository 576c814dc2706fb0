"""Token tables: exact counts of every alternative, and an identity that follows what is counted."""

from copy import deepcopy
from dataclasses import fields

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.template import Template, image_token_id
from scripts.blending.tokens_identity import load_tokenizer, template_of, tokens_identity
from scripts.common.errors import UserError
from scripts.config.tokens import TemplateTexts, TokensConfig
from scripts.count_tokens import TOKENS_SCHEMA, count_tokens
from tests.scripts.blending.plan_fixtures import TOKENS, PlanWorkspace, caption, llava, llava_dial, pair, record, turn
from tests.tiny_models import make_tokenizer

RECORDS = [
    llava(0, "a"),
    record("llava:two", ["a", "b"], [turn("Both <|image:1|>?", "<|image:0:letter|>", [0, 1])]),
    llava_dial(1, "b", 2),
    pair(0, "a", "b", 2),
    caption(0, "a"),
    record("own:text", [], [turn("Hello?", "Hi.")]),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return PlanWorkspace(tmp_path_factory.mktemp("tokens"), RECORDS)


@pytest.fixture(scope="module")
def tokenizer(workspace):
    return AutoTokenizer.from_pretrained(workspace.tokenizer)


def table(workspace, dataset):
    return {
        row["uid"]: row["rounds"] for row in pq.read_table(workspace.folder / f"tokens/{dataset}.parquet").to_pylist()
    }


def length(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_texts_without_slots_have_one_count_per_alternative(workspace, tokenizer):
    (round_,) = table(workspace, "coco_caption")["coco_caption:0"]
    texts = workspace.records["coco_caption:0"]["rounds"][0]
    assert round_["question"] == [[length(tokenizer, text)] for text in texts["question"]]
    assert round_["answer"] == [[length(tokenizer, text)] for text in texts["answer"]]


def test_texts_with_slots_have_a_count_for_every_offset(workspace, tokenizer):
    rounds = table(workspace, "otter_mimicit_cgd")["otter_mimicit_cgd:0"]
    expected = [length(tokenizer, f"Compare 0.1: {n} and {n + 1}?") for n in range(1, 9)]
    assert rounds[1]["question"] == [expected]
    words = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
    assert rounds[1]["answer"] == [[length(tokenizer, f"{word}.") for word in words]]


def test_follow_up_forms_are_counted_for_single_images_of_the_joins_datasets(workspace, tokenizer):
    rounds = table(workspace, "llava_dial")["llava_dial:1"]
    assert rounds[1]["named"] == [[length(tokenizer, f"In image {n}, is it 1 or 1?") for n in range(1, 9)]]
    llava_rounds = table(workspace, "llava")
    assert llava_rounds["llava:0"][0]["named"] != []
    assert llava_rounds["llava:two"][0]["named"] == []
    assert table(workspace, "coco_caption")["coco_caption:0"][0]["named"] == []


def test_text_without_images_is_counted_too(workspace, tokenizer):
    assert table(workspace, "own")["own:text"][0]["question"] == [[length(tokenizer, "Hello?")]]


def test_the_manifest_holds_what_is_fixed(workspace, tokenizer):
    manifest = workspace.count("llava")
    assert manifest["prefix"] == 1
    assert manifest["image"] == [
        length(tokenizer, f"### Image {n}:\n") + TOKENS.image_tokens + length(tokenizer, "\n\n") for n in range(1, 9)
    ]
    assert manifest["rows"] == 2
    assert manifest["template"] == Template().to_dict()
    assert pq.read_schema(workspace.folder / "tokens/llava.parquet").equals(TOKENS_SCHEMA)


def test_counting_again_gives_equal_bytes(workspace):
    path = workspace.folder / "tokens/llava.parquet"
    before = path.read_bytes()
    assert workspace.count("llava") == workspace.count("llava")
    assert path.read_bytes() == before


def test_batches_do_not_matter(workspace, monkeypatch):
    whole = workspace.count("llava")
    monkeypatch.setattr("scripts.count_tokens._BATCH", 1)
    assert workspace.count("llava") == whole


def test_the_identity_survives_saving_and_added_special_tokens(tokenizer, tmp_path):
    identity = tokens_identity(tokenizer, Template(), 16)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokens_identity(again, Template(), 16) == identity
    again.add_special_tokens({"extra_special_tokens": ["<more>"]})
    assert tokens_identity(again, Template(), 16) == identity


def test_a_language_models_own_tokenizer_gets_the_image_placeholder(tokenizer, tmp_path):
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab={"<s>": 0, "</s>": 1, "a": 2}, merges=[])))
    plain.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    plain.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert image_token_id(loaded) == 3
    assert tokens_identity(loaded, Template(), 16) == tokens_identity(plain, Template(), 16)
    assert len(load_tokenizer(tokenizer.name_or_path)) == len(tokenizer)


def test_the_identity_follows_everything_that_is_counted(tokenizer, tmp_path):
    other = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / "other", ["Quite another text, with other pairs."]))
    headless = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / "headless", bos=False))
    wordy = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / "wordy"))
    wordy.add_tokens(["What is"])
    identities = {
        tokens_identity(tokenizer, Template(), 16),
        tokens_identity(tokenizer, Template(), 17),
        tokens_identity(tokenizer, Template(system="Be kind."), 16),
        *(tokens_identity(changed, Template(), 16) for changed in (other, headless, wordy)),
    }
    assert len(identities) == 6


def test_the_template_of_an_entry(tokenizer):
    def template(**texts):
        return template_of(TokensConfig(tokenizer="x", image_tokens=4, **texts), tokenizer)

    assert template() == template(template={}) == template(template="paper") == Template()
    values = {"system": "Be kind.", "system_header": "S", "system_end": "s", "image_header": "I", "image_end": "i"}
    values |= {"question_header": "Q", "answer_header": "A", "answer_end": "a", "round_end": "r"}
    values |= {"bos": False, "images": "inline", "special": True, "strip": True, "joined": True, "system_inside": True}
    values |= {"without_system": "W", "last_answer_header": "L", "answer_start": " "}
    assert set(values) == set(TemplateTexts.model_fields) == {field.name for field in fields(Template)}
    assert template(template=values) == Template(**values)


def test_the_chat_template_of_the_tokenizer(tokenizer):
    settings = TokensConfig(tokenizer="x", image_tokens=4, template="chat")
    with pytest.raises(UserError, match=r"`template: paper`") as error:
        template_of(settings, tokenizer)
    assert "has no chat template" in str(error.value)
    chatty = deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    chatty.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    template = template_of(settings, chatty)
    assert (template.images, template.image_header, template.image_end) == ("inline", "", "")
    assert (template.question_header, template.answer_header) == ("user: ", "</s>assistant:")
    assert (template.answer_start, template.answer_end) == (" ", "</s>")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("report", "report.json does not exist"), ("records", "run convert"), ("tokenizer", "no tokenizer")],
)
def test_what_is_missing_is_named(workspace, tmp_path, missing, message):
    paths = {
        "records": workspace.folder / "records/llava.parquet",
        "report": workspace.folder / "records/llava.report.json",
        "tokenizer": workspace.tokenizer,
    }
    paths[missing] = tmp_path / f"nothing/llava.{'report.json' if missing == 'report' else 'parquet'}"
    with pytest.raises(UserError, match=message):
        count_tokens("llava", paths["records"], paths["report"], str(paths["tokenizer"]), TOKENS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
