"""The preview: one self-contained page that shows what the model reads."""

import html
import re
import sys
from html.parser import HTMLParser

import pytest
from transformers import AutoTokenizer

from model.chat_template import template_from_tokenizer
from model.template import Template, encode, render
from scripts.common.errors import UserError
from scripts.config.tokens import TemplateTexts
from scripts.inference.blend_reader import BlendReader, Sample
from scripts.preview import choose_conversations, main, rendered, write_preview
from tests.model.chat_families import FAMILIES, tokenizer_of
from tests.scripts.blending.plan_fixtures import TOKENS, PlanWorkspace, record, turn
from tests.scripts.blending.synthetic_blend import World, write_blend
from tests.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World.build(tmp_path_factory.mktemp("world"))
    world.blend(world.plan(), world.root / "blend/demo/epoch-000", images="referenced")
    return world


def preview(world, out, tokenizer=None, settings=TOKENS):
    write_preview(world.root / "blend/demo/epoch-000", world.root, str(tokenizer or world.tokenizer), settings, out)
    return out.read_text()


@pytest.fixture(scope="module")
def page(world):
    return preview(world, world.root / "blend/demo/preview.html")


class _Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]


def test_the_page_holds_everything_in_itself(page):
    parser = _Sources()
    parser.feed(page)
    assert parser.tags.count("article") == 10
    assert "script" not in parser.tags and "link" not in parser.tags
    assert parser.tags.count("img") >= 10
    assert all(value.startswith("data:image/") for value in parser.found)
    assert "url(" not in page and "@import" not in page


def test_building_it_again_gives_equal_bytes(world, page, tmp_path):
    assert preview(world, tmp_path / "again.html") == page
    assert str(world.root) not in page


def test_every_dataset_of_the_blend_is_shown(world, page):
    assert set(re.findall("<h2>(.*?)</h2>", page)) == set(world.entries)


def test_conversations_are_spread_over_datasets(world):
    reader = BlendReader(world.root / "blend/demo/epoch-000", world.root)
    positions = choose_conversations(reader)
    assert positions == sorted(set(positions)) and len(positions) == 10
    assert {reader[position].dataset for position in positions} == set(world.entries)


def test_the_spans_are_the_rendered_template_and_only_answers_are_coloured(world):
    reader = BlendReader(world.root / "blend/demo/epoch-000", world.root)
    tokenizer, template = AutoTokenizer.from_pretrained(world.tokenizer), Template()
    for position in range(0, len(reader), 5):
        sample = reader[position]
        spans = list(rendered(sample, tokenizer, template))
        shown = [("<image>" if p.kind == "image" else p.text, p.kind in ("answer", "end")) for p in spans]
        assert shown == render(sample.messages, template)
        for span in spans:
            if span.kind == "answer":
                assert "".join(span.tokens) == span.text
        # Every shown token is a token: a byte-level tokenizer of ASCII text has no tokens that share a character.
        assert sum(len(p.tokens) for p in spans) + sum(p.kind == "end" for p in spans) == sample.n_labels


def own_blend(tmp_path, rounds, settings=TOKENS):
    workspace = PlanWorkspace(tmp_path, [record("own:1", [], rounds)])
    workspace.count("own", settings)
    workspace.plan_file({"own": {}})
    write_blend(workspace.path(), tmp_path / "records", {}, tmp_path / "blend", tmp_path)
    return workspace


def test_a_blend_of_another_template_with_answers_that_are_not_supervised(tmp_path):
    settings = TOKENS.model_copy(update={"template": TemplateTexts(answer_end="#\n", images="inline", bos=False)})
    rounds = [turn("First <this>?", "Never learned.", supervised=False), turn("And?", "Learned.")]
    workspace = own_blend(tmp_path, rounds, settings)
    write_preview(tmp_path / "blend", tmp_path, str(workspace.tokenizer), settings, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    learned = [re.sub("<.*?>", "", span) for span in re.findall('<span class="answer">(<i>.*?)</span>', page)]
    assert learned[-1] == "Learned." and not any("Never" in text for text in learned)
    assert '<span class="text">Never learned.</span>' in page
    (sample,) = BlendReader(tmp_path / "blend", tmp_path)
    assert [message.get("supervised") for message in sample.messages] == [None, False, None, None]


@pytest.mark.parametrize("answer_end", ["", "<|end|>\n"])
def test_what_is_coloured_is_what_is_supervised(tmp_path, answer_end):
    """Also with a text of its own that closes an answer; an answer that is not supervised is shown like a question."""
    template = Template(answer_end=answer_end, images="inline")
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / "tokenizer"))
    user = {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there?"}]}
    answers = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in ("Ho.", "Hi.")]
    messages = [user, answers[0] | {"supervised": False}, user, answers[1]]
    sample = Sample(["own:1"], "own", messages, [], [], 0, 0, 0)
    spans = list(rendered(sample, tokenizer, template))
    end = answer_end or "</s>"
    assert [(span.kind, span.text) for span in spans if span.kind != "header"] == [
        *(("text", "Hello \nthere?"), ("text", "Ho."), ("text", "Hello \nthere?"), ("answer", "Hi."), ("end", end)),
    ]
    assert [span.text for span in spans if span.kind == "header"].count(end) == 1


@pytest.mark.parametrize(("family", "kind"), [("llama 2", "prepend"), ("qwen 3", "qwen"), ("phi", "phi")])
def test_with_a_chat_template_the_coloured_tokens_are_those_that_training_supervises(family, kind):
    tokenizer = tokenizer_of(kind, FAMILIES[family].jinja)
    template = template_from_tokenizer(tokenizer)
    question = {"role": "user", "content": [{"type": "text", "text": "Why 12?"}]}
    answers = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in ("No \u00fc.", "Yes, 3.")]
    messages = [question, answers[0] | {"supervised": False}, question, answers[1]]
    spans = list(rendered(Sample(["own:1"], "own", messages, [], [], 0, 0, 0), tokenizer, template))
    coloured = [span for span in spans if span.kind in ("answer", "end")]
    assert "".join(span.text for span in coloured) == FAMILIES[family].answer.replace("Red.", "Yes, 3.")
    tokens = [token for span in coloured for token in (span.tokens or (span.text,))]
    labels = [label for label in encode(messages, tokenizer, template, 1).labels if label >= 0]
    # Phi's tokenizer puts a blank before an answer, which has no character of its own.
    assert len(tokens) == len(labels) - (kind == "phi")
    # Tokens of Phi take the newline behind them.
    written = "".join(text for text, _ in render(messages, template))
    assert "".join(span.text for span in spans) == (written.replace("|>\n", "|>") if kind == "phi" else written)


def test_texts_cannot_break_the_page_and_no_character_is_lost(tmp_path):
    question, answer = 'Is <b>1</b> & 2 < "3"?', "</span><script>alert(1)</script> naïve 日本 🙂"
    workspace = own_blend(tmp_path, [turn(question, answer)])
    write_preview(tmp_path / "blend", tmp_path, str(workspace.tokenizer), TOKENS, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<script>" not in page and "<b>1" not in page
    assert html.escape(question, quote=False) in page.replace("&#34;", '"')
    shown = re.findall('<span class="answer">(<i>.*?)</span>', page, re.DOTALL)[-1]
    assert html.unescape("".join(re.findall("<i>(.*?)</i>", shown, re.DOTALL))) == answer


def test_another_tokenizer_than_the_blends_is_refused(world, tmp_path):
    other = make_tokenizer(tmp_path / "other", ["Quite another text, with other pairs."])
    with pytest.raises(UserError, match="counted with another tokenizer"):
        preview(world, tmp_path / "p.html", tokenizer=other)
    with pytest.raises(UserError, match="counted with another tokenizer"):
        preview(world, tmp_path / "p.html", settings=TOKENS.model_copy(update={"image_tokens": 3}))
    assert not (tmp_path / "p.html").exists()


def test_the_program(world, page, tmp_path, monkeypatch):
    arguments = {
        "--blend": world.root / "blend/demo/epoch-000",
        "--root": world.root,
        "--tokenizer": world.tokenizer,
        "--settings": TOKENS.rerun_key(),
        "--out": tmp_path / "p.html",
    }
    monkeypatch.setattr(sys, "argv", ["preview", *(str(text) for pair in arguments.items() for text in pair)])
    main()
    assert (tmp_path / "p.html").read_text() == page
