"""The report: complete, self-contained, escaped, reproducible, with the images that the model saw."""

import base64
import csv
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from scripts import evaluate, report
from scripts.common.errors import UserError
from scripts.common.files import write_json
from scripts.inference.blend_reader import BlendReader
from tests.blends import COLOURS
from tests.scripts.evaluation.trained_model import trained, write_suite
from tests.scripts.reporting.report_inputs import HOSTILE, forgetting, spoil, write_data, write_media, write_run

__all__ = ["trained"]

VOID = {"meta", "img", "br", "hr", "input", "link"}


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory) -> Path:
    """A results root with everything that a report reads, hostile strings in every text."""
    root = tmp_path_factory.mktemp("results")
    suite = write_suite(root / "suite")
    kinds = [{"name": f"kind {HOSTILE}", "pattern": ".", "images": "one", "scored": True}]
    write_json(root / "kinds.json", kinds)
    for run in ("mmca", "causal"):
        words = ["--name", run, "--model", trained.model, "--heldout", trained.heldout, "--root", trained.root]
        words += ["--kinds", root / "kinds.json", "--suite", f"talk={suite}", "--out", root / "evaluate" / run]
        words += ["--settings", '{"max_new_tokens": 16}']
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["evaluate", *map(str, words)])
            evaluate.main()
        write_run(root / "train" / run, run)
        write_json(root / "evaluate" / run / "forgetting.json", forgetting(run, same=run == "mmca"))
    spoil(root / "evaluate/causal")
    write_media(root / "media/coco", BlendReader(trained.heldout, trained.root))
    write_data(root)
    return root


@pytest.fixture
def build(results, tmp_path, monkeypatch):
    """Write a report from the given inputs (all of them if none are named); return its text."""

    def call(*names: str, out: Path = tmp_path / "report.html", extra: tuple[str, ...] = ()) -> str:
        inputs = {
            "records": "records/*.report.json",
            "validated": "validated/*.json",
            "media": "media/*/manifest.json",
            "plans": "plan/*/*.json",
            "finished": "train/*/finished.json",
            "metrics": "evaluate/*/metrics.json",
            "forgetting": "evaluate/*/forgetting.json",
        }
        words = ["--title", f"demo {HOSTILE}", "--out", str(out), *extra]
        for name in names or inputs:
            words += [f"--{name}", *map(str, sorted(results.glob(inputs[name])))]
        if not names:
            words += ["--suite", f"talk={results / 'suite/suite.json'}"]
        monkeypatch.setattr(sys, "argv", ["report", *words])
        report.main()
        return out.read_text(encoding="utf-8")

    return call


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order, all attributes and the visible text kept."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_is_well_formed_and_loads_nothing(build):
    text = build()
    page = Page(text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert addresses and all(value.startswith(("data:image/", "#")) for value in addresses)
    anchors = {value[1:] for name, value in page.attributes if name == "href"}
    assert anchors == {value for name, value in page.attributes if name == "id"}
    assert "url(" not in text and "@import" not in text
    assert f"demo {HOSTILE}" in page.text


def test_text_answers_stand_side_by_side_and_the_same_ones_once(build):
    page = build()
    section = page[page.index('<section id="text">') : page.index('<section id="dialogues">')]
    text = Page(section).text
    assert "causal It has forgotten how it talked before training. mmca It answers text exactly" in text
    assert f"Capital? {HOSTILE} before It is Paris. causal Paris … cut off mmca the same" in text
    assert text.count("It is Paris.") == 1 and "And 2 + 2? before 4 causal mmca the same" in text
    assert "causal 1 of 2 0.4000 (0.2000 to 0.8000)" in text and "-0.250 → -1.750" in text
    assert 'id="text"' not in build("records", "metrics")


def test_two_reports_have_the_same_bytes(build, tmp_path):
    assert build(out=tmp_path / "a.html") == build(out=tmp_path / "b.html")


def test_data_and_blends(build):
    text = Page(build("records", "validated", "media", "plans")).text
    assert "2,000 1,234 1,230 4 615 17 of 19" in text
    assert "rows found 1,234 of 2,000 published" in text and "dropped image missing: 4" in text
    assert "rounds per conversation 1.5 on average, at most 3" in text and "wordings" not in text
    assert "40 x 40, at most 50 x 50" in text and "zero bytes: 3 cmyk: 2" in text
    assert "epoch 0 epoch 1 held out" in text
    cell = "71 150 of 160 requested 1,200 tokens, 85 images"
    expected = (
        f"25%, 2 times, up to 3 in one conversation, after 1 epochs 0 {cell} {cell} held out: 9, too many tokens: 2"
    )
    assert expected in text
    assert "packs 5, 61.7% full 5, 61.7% full" in text
    assert "supervised tokens 678 678 678" in text


def test_scores_beside_chance(build, results):
    text = Page(build("metrics")).text
    for run in ("mmca", "causal"):
        metrics = json.loads((results / f"evaluate/{run}/metrics.json").read_text())
        row = metrics["checkpoints"]["final"]["heldout"]["groups"]["one"]
        assert f"{100 * row['accuracy']:.1f} %" in text
        assert f"chance {100 * row['chance']:.1f} %" in text
        assert f"{100 * row['blanked']['accuracy']:.1f} %, {100 * row['drop']['value']:.1f} points lower" in text
    assert f"kind {HOSTILE}" in text
    assert "the same model, images blanked" in text


def test_without_blanked_scores_the_page_does_not_mention_them(build, results):
    path = results / "evaluate/mmca/metrics.json"
    whole = path.read_text()
    metrics = json.loads(whole)
    for checkpoint in metrics["checkpoints"].values():
        for row in [*checkpoint["heldout"]["groups"].values(), *checkpoint["heldout"]["kinds"]]:
            for key in ("blanked", "drop"):
                row.pop(key, None)
    path.write_text(json.dumps(metrics))
    others = results / "evaluate/causal", results / "aside"
    others[0].rename(others[1])
    try:
        text = Page(build("metrics")).text
    finally:
        others[1].rename(others[0])
        path.write_text(whole)
    assert "Scores" in text and "blanked" not in text


def test_comparable_runs_form_a_study_of_data_efficiency(build, results):
    assert 'id="efficiency"' not in build(), "one run per attention is no study"
    for part in ("train", "evaluate"):
        shutil.copytree(results / part / "mmca", results / part / "longer")
    try:
        for path in (results / "train/longer/finished.json", results / "evaluate/longer/metrics.json"):
            write_json(path, json.loads(path.read_text()) | {"run": "longer"})
        settings = results / "train/longer/state/0123/settings.json"
        write_json(settings, json.loads(settings.read_text()) | {"epochs": 3})
        text = build()
        assert 'id="efficiency"' not in build("metrics", "finished"), "the number of conversations comes from the plans"
    finally:
        for part in ("train", "evaluate"):
            shutil.rmtree(results / part / "longer")
    part = text[text.index('id="efficiency"') : text.index('id="scores"')]
    assert "mmca minus causal, points" in part and ">154<" in part.replace("\n", "")
    assert part.count("<svg") == part.count("<tbody>") >= 1


def test_runs_are_compared_on_the_same_questions(build, results):
    text = Page(build("metrics", "finished")).text
    answers = {}
    for run in ("causal", "mmca"):
        lines = (results / f"evaluate/{run}/heldout/final.jsonl").read_text().splitlines()
        turns = [json.loads(line) for line in lines]
        answers[run] = {
            (turn["test"], turn["round"]): turn["correct"] for turn in turns if turn["kind"].startswith("kind")
        }
    pairs = [(answers["mmca"][key], answers["causal"][key]) for key in answers["causal"]]
    assert "mmca minus causal" in text and f"n = {len(pairs)} ({sum(a and not b for a, b in pairs)}," in text
    attention = "attention causal mmca"
    assert attention in text, "settings that differ are listed"
    assert "learning_rate 0.001" not in text


def test_curves(build):
    text = build("finished")
    assert len(re.findall(r'class="line run-\d"', text)) == 2
    assert re.search(r'class="dots run-1" d="M0.00 [\d.]+h0 M50.00 [\d.]+h0 M100.00 [\d.]+h0"', text)

    assert text.count("1,234 tokens/s, 321 of them supervised; 4e+09 flops/s (37.5% MFU: of the devices") == 2
    assert text.count("12.5% of the time waiting for data") == 2


def test_warnings_of_a_run_stand_beside_it(build):
    assert build().count("images disturb causal") == 1


def colours(text: str) -> set[str]:
    """The colour names of the plain pictures in a page."""
    found = set()
    for uri in re.findall(r'src="data:image/png;base64,([^"]+)"', text):
        pixel = Image.open(BytesIO(base64.b64decode(uri))).getpixel((5, 5))
        found.add(min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True))))
    return found


def test_a_feature_store_is_shown_with_what_it_costs_and_saves(build):
    text = Page(build("finished")).text
    assert "Feature store: 5,280 images, 2.77 GB on the disk. It saves 8.76e+14 operations" in text
    assert "they would be 23.4% of its operations" in text and text.count("Feature store") == 1


def test_dialogues_are_shown_with_the_images_that_the_model_saw(build, results):
    text = build()
    page = Page(text)
    assert "✗" in page.text and "✓" in page.text
    dialogue = text[text.index("<span>pair</span>") :]
    dialogue = dialogue[: dialogue.index("</article>")]
    assert colours(dialogue) == {"blue", "red"}
    assert dialogue.index("image 1") < dialogue.index("image 2")
    turns = [json.loads(line) for line in (results / "evaluate/mmca/talk/final.jsonl").read_text().splitlines()]
    assert all(turn["output"] in page.text for turn in turns)


def test_metrics_of_a_suite_have_intervals(build, results):
    text = Page(build("metrics")).text
    for run in ("mmca", "causal"):
        metrics = json.loads((results / f"evaluate/{run}/metrics.json").read_text())
        rows = metrics["checkpoints"]["final"]["suites"]["talk"]["metrics"]
        assert rows
        for name, row in rows.items():
            if row["value"] is not None and row["interval"]:
                low, high = row["interval"]
                assert name in text and f"{row['value']:.3f} {low:.3f} to {high:.3f}, n = {row['n']}" in text


def test_the_score_of_an_answer_is_shown_if_it_is_neither_correct_nor_incorrect(build, results):
    path = results / "evaluate/mmca/talk/final.jsonl"
    before = path.read_text()
    lines = [json.loads(line) for line in before.splitlines()]
    shared = [line | {"correct": None, "scores": {"rouge_l": 0.25}} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in shared))
    try:
        text = build()
    finally:
        path.write_text(before)
    dialogue = text[text.index("<span>pair</span>") :]
    assert '<b class="note">0.25</b>' in dialogue[: dialogue.index("</article>")]


def test_incorrect_answers_are_shown_with_their_images(build):
    text = build()
    mistakes = text[text.index('id="mistakes"') : text.index('id="data"')]
    assert mistakes.count("<article") == 12
    assert colours(mistakes) >= {"red", "blue"} and "not available" not in mistakes


def test_an_image_that_changed_is_not_shown(build, results):
    red = results / "suite/images/red.png"
    before = red.read_bytes()
    try:
        Image.new("RGB", (40, 30), "white").save(red)
        text = build()
    finally:
        red.write_bytes(before)
    dialogue = text[text.index("<span>pair</span>") :]
    dialogue = dialogue[: dialogue.index("</article>")]
    assert colours(dialogue) == {"blue"} and "not available" in dialogue


def test_without_media_the_page_lacks_only_images(build):
    assert "not available" in Page(build("metrics")).text


def test_an_empty_report_is_a_page(build, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "empty.html")])
    report.main()
    assert "VisualChat" in Page((tmp_path / "empty.html").read_text()).text


def test_invalid_input(build, results, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        build("records", extra=("--metrics", "nowhere.json"))
    twice = str(results / "evaluate/mmca/metrics.json")
    with pytest.raises(UserError, match="two of the given files belong to a run named 'mmca'"):
        build("records", extra=("--metrics", twice, twice))
    assert not (tmp_path / "report.html").exists()


def test_the_table_of_answers_is_readable_by_others(results):
    with open(results / "evaluate/mmca/talk/final.csv", newline="") as file:
        assert [row["test_name"] for row in csv.DictReader(file)] == ["alone", "alone", "words", "pair", "pair"]
