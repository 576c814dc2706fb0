"""The diagram of the graph: implied edges are left out, rules are below their dependencies, boxes do not overlap."""

import re

from scripts.common.files import write_json
from scripts.reporting.rule_graph import graph, laid_out, reduced
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


def test_cycles_of_rules_are_broken():
    # Annotations are fetched, images chosen from them, and then the images fetched.
    rules = {
        "fetch": {"jobs": 3, "reads": {"select_subset": 1, "miniature": 3}},
        "select_subset": {"jobs": 1, "reads": {"fetch": 1}},
        "convert": {"jobs": 2, "reads": {"fetch": 2, "select_subset": 1}},
    }
    reads, left_out = break_cycles(rules)
    assert left_out == [("fetch", "select_subset")]
    assert reads == {"convert": ["fetch", "select_subset"], "fetch": [], "select_subset": ["fetch"]}


def test_every_rule_is_below_its_dependencies():
    down = {name: y for name, (_, y) in laid_out(reduced(READS)).boxes.items()}
    assert all(down[name] > down[read] for name, names in reduced(READS).items() for read in names)
    # What is needed late stands near it, and a step that nothing needs right below the last that it needs.
    levels = sorted(set(down.values()))
    assert levels.index(down["tokenizer"]) == levels.index(down["plan"]) - 1
    assert levels.index(down["preview"]) == levels.index(down["plan"]) + 1


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
    picture = shown["picture"]
    boxes = [tuple(map(float, box)) for box in re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)"', picture)]
    assert len(boxes) == len(READS) and picture.count("<path") == 7
    right, bottom = map(float, re.search(r'viewBox="-1 -1 (\d+) (\d+)"', picture).groups())
    for x, y, width in boxes:
        assert not any(y == other_y and x < other_x < x + width for other_x, other_y, _ in boxes)
        assert 0 <= x <= right - width and 0 <= y < bottom
    # From the foot of one box to the head of another.
    feet, heads = {y + 34 for _, y, _ in boxes}, {y for _, y, _ in boxes}
    for line in re.findall(r'<path d="M(.*?)"', picture):
        numbers = [float(number) for number in re.findall(r"[\d.]+", line)]
        assert len(numbers) % 6 == 2
        assert min(abs(numbers[1] - foot) for foot in feet) < 1.5, "a line begins at the foot of a box"
        assert min(abs(numbers[-1] - head) for head in heads) < 1.5, "a line ends at the head of a box"
    assert graph(tmp_path / "graph.json") == shown, "the same file gives the same picture"
    assert shown["jobs"] == 36 and "1 job<" in picture and "8 jobs<" in picture
    assert shown["steps"][0]["message"] == [("Do ", False), ("x", True), (" <b>", False)]
    assert "<b>" not in picture


def test_the_picture_needs_no_other_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(laid_out(READS).boxes) == len(READS)


def test_without_a_file_there_is_no_picture(tmp_path):
    assert graph(None) is None and graph(tmp_path / "graph.json") is None


def test_a_printed_command_has_no_paths_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/usr/lib/python3/snakemake/__main__.py", "--configfile", str(tmp_path / "my recipe.yaml"), "--cores", "2"]
    assert printable_command(words) == "snakemake --configfile 'my recipe.yaml' --cores 2"
