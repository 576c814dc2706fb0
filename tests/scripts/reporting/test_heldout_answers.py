"""The report shows answers to held-out conversations beside images and references, and scores by dataset."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.reporting.heldout_answers import CONVERSATIONS, heldout_datasets
from scripts.reporting.scores import Column

TEMPLATES = Path(__file__).parents[3] / "scripts/reporting"


def line(number, dataset="pets", rounds=1, images=("aa",)):
    return {
        "test": f"{dataset}:{number}",
        "round": rounds,
        "question": f"Question {number}?",
        "prompt": "",
        "images": [{"sha256": sha256} for sha256 in images],
        "new_images": len(images) if rounds == 1 else 0,
        "output": f"<b>Output {number}</b>",
        "references": [f"Reference {number}."],
        "correct": None,
        "dataset": dataset,
        "scores": {"chrf": 0.5, "token_f1": 0.25},
    }


@pytest.fixture
def column(tmp_path):
    lines = [line(number) for number in range(CONVERSATIONS + 3)] + [line(0, rounds=2), line(0, "llava")]
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout/final.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    row = {"value": 0.5, "interval": [0.25, 0.75], "n": 16, "blanked": 0.125}
    # By name, as in the file.
    metrics = dict.fromkeys(("chrf", "rouge_l", "token_f1"), row)
    pets = {"closed": False, "n": 16, "metrics": metrics, "long_references": 4}
    return Column("mmca", "final", 0, tmp_path, {"heldout": {"datasets": {"pets": pets}}})


class Images:
    def heldout(self, hashes, first):
        return [SimpleNamespace(number=first + index, uri=sha256, small=False) for index, sha256 in enumerate(hashes)]


def test_conversations_come_in_the_order_of_the_plan_with_their_rounds(column):
    (pets,) = heldout_datasets([column], Images())
    assert (pets["name"], pets["left_out"], len(pets["conversations"])) == ("pets", 3, CONVERSATIONS)
    assert [metric["name"] for metric in pets["metrics"]] == ["token_f1", "rouge_l", "chrf"]
    first = pets["conversations"][0]
    assert first["rounds"][0]["answers"][0]["score"] == 0.25
    assert first["name"] == "pets:0" and [len(turn["images"]) for turn in first["rounds"]] == [1, 0]
    assert [len(each["rounds"]) for each in pets["conversations"][1:]] == [1] * (CONVERSATIONS - 1)


def test_the_page_has_scores_answers_references_and_what_lowers_scores(column):
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    page = {"heldout_datasets": heldout_datasets([column], Images()), "confidence": "95%"}
    text = " ".join(environment.get_template("heldout_answers.jinja").render(page=page).split())
    assert "<b>0.500</b>" in text and "(0.250 to 0.750) n = 16" in text and "images blanked 0.125" in text
    assert "4 of 16 references are longer" in text and "3 more held-out conversations" in text
    assert "&lt;b&gt;Output 0&lt;/b&gt;" in text and "Reference 0." in text and 'src="aa"' in text


def test_runs_without_such_datasets_have_no_section(tmp_path):
    assert heldout_datasets([Column("mmca", "final", 0, tmp_path, {"heldout": {"kinds": []}})], Images()) == []
