"""The rows that the benchmark draws as a person's own, and how it counts answers."""

import json
from pathlib import Path

from benchmarks.learn_to_look import accuracy, draw_rows


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def turns(row: dict) -> list[tuple[str, str]]:
    texts = ["".join(part.get("text", "") for part in message["content"]) for message in row["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_rows_show_one_image_and_no_question_answers_another(tmp_path):
    assert draw_rows(tmp_path, 40, 10, 1) == {
        "train.jsonl": 40,
        "heldout.jsonl": len(rows(tmp_path / "heldout.jsonl")),
    }
    training = rows(tmp_path / "train.jsonl")
    for row in training:
        assert (tmp_path / row["images"][0]).is_file()
        asked = turns(row)
        for place, (_, answer) in enumerate(asked):
            assert not any(answer in question for question, _ in asked[:place] + asked[place + 1 :])
    described = [row for row in training if "object" in turns(row)[0][1]]
    assert len(described) >= 20, "every second image is described"
    heldout = rows(tmp_path / "heldout.jsonl")
    assert {len(turns(row)) for row in heldout} == {1}
    assert not {row["images"][0] for row in heldout} & {row["images"][0] for row in training}
    again = tmp_path / "again"
    draw_rows(again, 40, 10, 1)
    assert (again / "train.jsonl").read_bytes() == (tmp_path / "train.jsonl").read_bytes()


def test_accuracy_is_that_of_the_held_out_file_alone(tmp_path):
    def turn(test: str, question: str, correct: bool, blanked: bool) -> dict:
        return {"test": test, "question": question, "correct": correct, "blanked": {"correct": blanked}}

    answers = [
        turn("scenes:heldout.jsonl-0", "What colour is the circle?", True, False),
        turn("scenes:heldout.jsonl-1", "What shape is the red object?", False, False),
        turn("scenes:heldout.jsonl-2", "How many objects are there?", True, True),
        turn("scenes:train.jsonl-7", "Describe the image.", False, False),
    ]
    (tmp_path / "final.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    lines = accuracy(tmp_path / "final.jsonl")
    assert [line.split()[:2] for line in lines] == [
        ["colour", "100.0%"],
        ["shape", "0.0%"],
        ["count", "100.0%"],
        ["all", "66.7%"],
    ]
    assert "n = 3), blanked 33.3%" in lines[-1]
