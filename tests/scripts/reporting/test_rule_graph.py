"""The picture of the graph: nothing that follows is drawn, what waits stands below, and no box lies on another."""

import re

from scripts.common.files import write_json
from scripts.reporting.rule_graph import graph, layers, reduced
from scripts.workflow.graph import break_cycles, printable_command

READS = {
    "fetch": [],
    "shard": ["fetch"],
    "convert": ["fetch", "shard"],
    "tokenizer": [],
    "plan": ["convert", "shard", "tokenizer"],
    "train": ["plan", "tokenizer"],
    "preview": ["plan"],
    "report": ["convert", "train", "fetch"],
}


def test_edges_that_follow_from_others_are_left_out():
    assert reduced(READS) == {
        "fetch": [],
        "shard": ["fetch"],
        "convert": ["shard"],
        "tokenizer": [],
        "plan": ["convert", "tokenizer"],
        "train": ["plan"],
        "preview": ["plan"],
        "report": ["train"],
    }


def test_rules_that_wait_for_each_other_in_turns_are_untangled():
    # Annotations are fetched, images chosen from them, and then the images fetched.
    rules = {
        "fetch": {"jobs": 3, "reads": {"wanted": 1, "miniature": 3}},
        "wanted": {"jobs": 1, "reads": {"fetch": 1}},
        "convert": {"jobs": 2, "reads": {"fetch": 2, "wanted": 1}},
    }
    reads, left_out = break_cycles(rules)
    assert left_out == [("fetch", "wanted")]
    assert reads == {"convert": ["fetch", "wanted"], "fetch": [], "wanted": ["fetch"]}


def test_everything_stands_below_what_it_waits_for():
    rows = layers(reduced(READS))
    level = {name: row for places in rows for name, row in places}
    assert all(level[name] > level[read] for name, names in reduced(READS).items() for read in names)
    # What is needed late stands near it, and a step that nothing needs right below the last that it needs.
    assert level["tokenizer"] == level["plan"] - 1 and level["preview"] == level["plan"] + 1
    long = layers({"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["a"], "f": ["e", "d"]})
    assert ("a>e", 1) in long[1] and ("a>e", 2) in long[2], "a long edge has places of its own"


def test_the_picture_holds_every_rule_once_and_no_box_lies_on_another(tmp_path):
    rules = {
        name: {
            "jobs": place + 1,
            "reads": dict.fromkeys(reads, place + 1),
            "stage": "media",
            "program": name,
            "message": "Do {wildcards.x} <b>",
        }
        for place, (name, reads) in enumerate(READS.items())
    }
    write_json(tmp_path / "graph.json", {"v": 1, "command": "snakemake", "snakemake": "9", "rules": rules})
    shown = graph(tmp_path / "graph.json")
    boxes = [tuple(map(float, box)) for box in re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)"', shown["picture"])]
    assert len(boxes) == len(READS) and shown["picture"].count("<path") == 7
    for x, y, width in boxes:
        assert not any(y == other_y and x < other_x < x + width for other_x, other_y, _ in boxes)
    assert shown["jobs"] == 36 and "1 job<" in shown["picture"] and "8 jobs<" in shown["picture"]
    assert shown["steps"][0]["said"] == [("Do ", False), ("x", True), (" <b>", False)]
    assert "<b>" not in shown["picture"]


def test_without_a_file_there_is_no_picture(tmp_path):
    assert graph(None) is None and graph(tmp_path / "graph.json") is None


def test_a_command_is_told_without_the_place_where_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/usr/lib/python3/snakemake/__main__.py", "--configfile", str(tmp_path / "my recipe.yaml"), "--cores", "2"]
    assert printable_command(words) == "snakemake --configfile 'my recipe.yaml' --cores 2"
