"""Task files: data formats, keys, and invalid files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from scripts.common.errors import UserError
from scripts.evaluation.suite_reader import read_suite
from scripts.evaluation.suites import Suite
from scripts.evaluation.task_files import task_data
from scripts.evaluation.task_templates import load_yaml
from scripts.inference.generation import GenerationOptions

ROWS = [
    {"id": "a", "image": "images/red.png", "question": "Which colour?", "answer": "red"},
    {"id": "b", "image": "images/blue.png", "question": "And this?", "answer": ["blue", "navy"]},
]
TASK = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "doc_to_visual": "image",
    "doc_to_text": "question",
    "doc_to_target": "answer",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"images/{colour}.png")
    lines(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(folder: Path, **changes) -> Path:
    task = {key: value for key, value in (TASK | changes).items() if value is not None}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder / "task.yaml"


def read(folder: Path, allow_code: bool = False, **changes) -> Suite:
    return read_suite(write(folder, **changes), allow_code=allow_code)


def last_rounds(suite: Suite) -> list[tuple]:
    """Images, question and references of the last round of every test."""
    rounds = [dialogue.rounds[-1] for dialogue in suite.dialogues]
    return [([image.path for image in each.images], each.question, each.references) for each in rounds]


EXPECTED = [(["images/red.png"], "Which colour?", ("red",)), (["images/blue.png"], "And this?", ("blue", "navy"))]


def test_reading_a_task(folder):
    suite = read(folder, metadata={"version": 2.0}, generation_kwargs={"max_new_tokens": 5, "until": ["\n\n"]})
    assert last_rounds(suite) == EXPECTED
    assert [dialogue.name for dialogue in suite.dialogues] == ["a", "b"]
    assert (suite.version, suite.output_type) == ("2.0", "generate_until")
    assert suite.generation == GenerationOptions(max_new_tokens=5, until=("\n\n",))
    assert [each.metric.name for each in suite.metrics] == ["exact_match"]
    assert set(suite.files) == {"task.yaml", "rows.jsonl"}
    assert task_data(folder / "task.yaml") == [folder / "rows.jsonl"]


def test_data_formats(folder):
    (folder / "list.json").write_text(json.dumps(ROWS))
    (folder / "inner.json").write_text(json.dumps({"rows": ROWS}))
    stored = [row | {"image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}} for row in ROWS]
    stored = [row | {"answer": row["answer"] if isinstance(row["answer"], list) else [row["answer"]]} for row in stored]
    (folder / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(stored), folder / "hub/test-00000-of-00001.parquet")
    for changes in (
        {"dataset_kwargs": {"data_files": "list.json"}},
        {"dataset_kwargs": {"data_files": ["*.jsonl"]}},
        {"dataset_kwargs": {"data_files": "inner.json", "field": "rows"}},
        {"dataset_path": "list.json", "dataset_kwargs": None},
        {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": "hub/*.parquet"}}},
        {"dataset_path": "hub", "dataset_kwargs": None},
    ):
        assert last_rounds(read(folder, **changes)) == EXPECTED, changes
    (folder / "rows.csv").write_text(
        'image,question,answer\nimages/red.png,"Which, here?",None\nimages/red.png,How many?,2\n'
    )
    found = last_rounds(read(folder, dataset_path="csv", dataset_kwargs={"data_files": "rows.csv"}))
    assert found == [(["images/red.png"], "Which, here?", ("None",)), (["images/red.png"], "How many?", ("2",))]


def test_folders_of_images(folder):
    lines(folder / "images/metadata.jsonl", [{"file_name": "blue.png", "text": "a blue square"}])
    captions = {"doc_to_text": "Describe the image.", "doc_to_target": "text", "metric_list": [{"metric": "cider"}]}
    found = read(folder, dataset_path="imagefolder", dataset_kwargs={"data_dir": "images"}, **captions)
    assert last_rounds(found) == [(["images/blue.png"], "Describe the image.", ("a blue square",))]
    assert last_rounds(read(folder, dataset_path="images", dataset_kwargs=None, **captions)) == last_rounds(found)
    for colour in ("red", "blue"):
        (folder / "classes" / colour).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder / f"classes/{colour}/0.png")
    classes = {"doc_to_text": "Which colour?", "doc_to_target": "label", "doc_to_choice": ["blue", "red"]}
    found = read(folder, dataset_path="imagefolder", dataset_kwargs={"data_dir": "classes"}, **classes)
    assert [references for *_, references in last_rounds(found)] == [("blue",), ("red",)]


@pytest.mark.parametrize(
    ("tests", "answers"),
    [
        ('{"ask": 5}', "{}"),
        ('{"ask": true}', "{}"),
        ('{"ask": [5]}', "{}"),
        ('{"ask": [["What?"]]}', "[1]"),
        ("[5]", "{}"),
        ('{"ask": [["What?", ' + "7" * 5000 + "]]}", "{}"),
        ("[" * 100_000, "{}"),
    ],
)
def test_dialogues_of_another_form_are_one_error(folder, tests, answers):
    (folder / "talk.json").write_text(tests)
    (folder / "answers.json").write_text(answers)
    with pytest.raises(UserError, match=r"(talk|answers)\.json"):
        read(
            folder,
            dataset_path="dialogues",
            dataset_kwargs={"data_files": "talk.json"},
            doc_to_visual=None,
            doc_to_text=None,
            doc_to_messages="messages",
            doc_to_target="answers",
        )


def test_dialogues_of_the_original_as_a_task(folder):
    tests = {"ask_1": [["What?", "images/red.png"], ["And?", "images/blue.png"]], "ask_2": [["Why?"]]}
    (folder / "talk.json").write_text(json.dumps(tests))
    (folder / "answers.json").write_text(json.dumps({"ask_1": ["red", None]}))
    suite = read(
        folder,
        dataset_path="dialogues",
        dataset_kwargs={"data_files": "talk.json"},
        output_type="generate_until_multi_round",
        doc_to_visual=None,
        doc_to_text=None,
        doc_to_messages="messages",
        doc_to_target="answers",
        cluster_key="{{ test_name.split('_')[0] }}",
    )
    first, second = suite.dialogues
    assert (first.name, first.cluster, second.cluster) == ("ask_1", "ask", "ask")
    assert [(each.question, len(each.images), each.references) for each in first.rounds] == [
        ("What?", 1, ("red",)),
        ("And?", 1, ()),
    ]
    assert second.rounds[0].references == ()


def test_messages_with_templates_and_given_answers(folder):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "Hello {{ id }}"}]},
        {"role": "assistant", "content": "Hello"},
        {
            "role": "user",
            "content": [{"type": "image", "url": "images/red.png"}, {"type": "text", "text": "{{question}}"}],
        },
    ]
    suite = read(folder, doc_to_text=None, doc_to_messages=messages)
    context, last = suite.dialogues[1].rounds
    assert suite.dialogues[1].system == "Be brief."
    assert (context.question, context.given, [image.path for image in context.images]) == (
        "Hello b",
        "Hello",
        ["images/blue.png"],
    )
    assert (last.question, last.given, last.references) == ("And this?", None, ("blue", "navy"))
    multi = read(
        folder,
        doc_to_text=None,
        doc_to_target=None,
        doc_to_messages=messages[1:3],
        output_type="generate_until_multi_round",
    )
    assert multi.dialogues[0].rounds[0].given is None and multi.dialogues[0].rounds[0].references == ("Hello",)


@pytest.mark.parametrize(
    ("target", "index"), [(1, 1), ("blue", 1), ("B", 1), ("{{ 2 - 1 }}", 1), ("{{ choices[0] }}", 0)]
)
def test_choices_and_the_correct_one(folder, target, index):
    lines(folder / "rows.jsonl", [ROWS[0] | {"choices": ["red", "blue"], "correct": target}])
    template = isinstance(target, str) and "{" in target
    suite = read(
        folder, output_type="multiple_choice", doc_to_choice="choices", doc_to_target=target if template else "correct"
    )
    (last,) = suite.dialogues[0].rounds
    assert (last.choices, last.target, last.references) == (("red", "blue"), index, (("red", "blue")[index],))
    assert [each.metric.name for each in suite.metrics] == ["acc", "acc_norm"]


def test_choices_may_be_a_template_or_a_mapping(folder):
    for choices in ("{{ ['red', 'blue'] }}", {"A": "red", "B": "blue"}, ["red", "blue"]):
        suite = read(folder, output_type="multiple_choice", doc_to_choice=choices, doc_to_target="{{ 'A' }}")
        assert suite.dialogues[0].rounds[0].choices == ("red", "blue")


@pytest.mark.parametrize(("first", "second"), [("a.yaml", "a.yaml"), ("b.yaml", "a.yaml")])
def test_circular_includes_are_an_error(tmp_path, first, second):
    (tmp_path / "a.yaml").write_text(f"include: {first}\ntask: a\n")
    (tmp_path / "b.yaml").write_text(f"include: {second}\ntask: b\n")
    with pytest.raises(UserError, match=r"a\.yaml includes itself"):
        load_yaml(tmp_path / "a.yaml", allow_code=False)


def test_prompts_around_the_question_and_files_that_include_others(folder):
    write(folder, lmms_eval_specific_kwargs={"default": {"post_prompt": "\nOne word."}})
    (folder / "more.yaml").write_text("include: task.yaml\ntask: more\ndoc_to_text: 'In {{ question | upper }}'\n")
    assert read_suite(folder / "more.yaml").dialogues[0].rounds[0].question == "In WHICH COLOUR?\nOne word."


def test_sampling(folder):
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert read(folder, generation_kwargs=given).generation == GenerationOptions(
        do_sample=True, temperature=0.7, top_p=0.9
    )
    assert read(folder, generation_kwargs=given | {"temperature": 0}).generation == GenerationOptions()


def test_image_paths_must_not_leave_their_folder(folder):
    Image.new("RGB", (8, 8)).save(folder.parent / "secret.png")
    lines(folder / "rows.jsonl", [ROWS[0] | {"image": "../secret.png"}])
    with pytest.raises(UserError, match=r"document 0, image 1: image '../secret.png' lies outside of"):
        read(folder)
    assert last_rounds(read_suite(write(folder), allow_outside=True))[0][0] == ["../secret.png"]


FUNCTIONS = """
from PIL import Image
def visual(doc): return [Image.new("RGB", (4, 4), doc["answer"] if isinstance(doc["answer"], str) else "blue")]
def text(doc, lmms_eval_specific_kwargs): return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]
def results(doc, results): return {"half": 0.5 * (results[0] in doc["answer"])}
"""


def test_functions_of_a_task_run_only_if_allowed(folder):
    (folder / "utils.py").write_text(FUNCTIONS + f"open({str(folder / 'ran')!r}, 'w')\n")
    write(folder, doc_to_visual=None, doc_to_text=None, metric_list=[{"metric": "half", "aggregation": "mean"}])
    with open(folder / "task.yaml", "a") as file:
        file.write("doc_to_visual: !function utils.visual\ndoc_to_text: !function utils.text\n")
        file.write("process_results: !function utils.results\n")
        file.write("lmms_eval_specific_kwargs: {default: {post_prompt: ' Say.'}}\n")
    with pytest.raises(UserError, match=r"its own Python function 'utils.text'|its own Python function 'utils.visual'"):
        read_suite(folder / "task.yaml")
    assert task_data(folder / "task.yaml") == [folder / "rows.jsonl"]
    assert not (folder / "ran").exists()
    (folder / "utils.py").write_text(FUNCTIONS)
    suite = read_suite(folder / "task.yaml", allow_code=True)
    assert suite.dialogues[0].rounds[0].question == "Which colour? Say."
    assert [image.path for image in suite.dialogues[0].rounds[0].images] == ["made"]
    assert suite.metrics[0].metric.name == "half"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ question.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) }}",
        "{{ nothing }}",
        "{% if %}",
    ],
)
def test_templates_are_sandboxed(folder, template):
    with pytest.raises(UserError, match=r"document 0, doc_to_text: the template .* cannot be rendered"):
        read(folder, doc_to_text=template)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_txt": "x"}, "doc_to_txt: Extra inputs are not permitted.*Known keys: task, dataset_path"),
        ({"doc_to_text": None}, "needs either doc_to_text"),
        ({"dataset_path": "lmms-lab/MME", "dataset_kwargs": None}, "must be downloaded first"),
        ({"dataset_kwargs": {"data_files": {"test": "no.jsonl"}}}, "no.jsonl"),
        ({"dataset_kwargs": {"data_files": {"train": "rows.jsonl"}}}, "but not the split 'test'"),
        ({"dataset_kwargs": {"token": True}}, "dataset_kwargs has 'token'"),
        ({"doc_to_visual": "picture"}, "document 0: doc_to_visual names 'picture', but the fields are id, image"),
        ({"output_type": "multiple_choice"}, "needs doc_to_choice"),
        (
            {"output_type": "multiple_choice", "doc_to_choice": ["x", "y"]},
            "document 0, doc_to_target: 'red' is none of",
        ),
        ({"output_type": "loglikelihood", "doc_to_target": None}, "needs doc_to_target"),
        ({"metric_list": [{"metric": "bleurt"}]}, "there is no metric 'bleurt'"),
        ({"metric_list": [{"metric": "acc"}]}, "acc needs output_type multiple_choice"),
        ({"metric_list": [{"metric": "bleu", "aggregation": "median"}]}, "the aggregation of bleu is fixed"),
        ({"output_type": "loglikelihood", "metric_list": [{"metric": "bleu"}]}, "generates none"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "shout"}]}]}, "there is no filter 'shout'"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]}]}, "filter regex"),
        ({"num_fewshot": 5}, "num_fewshot"),
        (
            {"doc_to_text": None, "doc_to_messages": [{"role": "assistant", "content": "x"}]},
            "unexpected role 'assistant'",
        ),
        (
            {"doc_to_text": None, "doc_to_messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "a part must be",
        ),
    ],
)
def test_invalid_tasks(folder, changes, message):
    with pytest.raises(UserError, match=message):
        read(folder, **changes)


def test_broken_files(folder):
    (folder / "task.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        read_suite(folder / "task.yaml")
    (folder / "rows.jsonl").write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2 is not valid JSON"):
        read(folder)
    with pytest.raises(UserError, match=r"\.json file of dialogues or a \.yaml task file"):
        read_suite(folder / "task.txt")
