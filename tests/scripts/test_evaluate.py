"""The whole evaluation with a tiny trained model: numbers, files, determinism, invalid input."""

import csv
import json
import sys
from pathlib import Path

import pytest

from scripts import evaluate
from scripts.common.errors import UserError
from scripts.evaluation.statistics import majority_accuracy
from scripts.inference.answering import ModelRunner
from tests.blends import write_blend
from tests.scripts.evaluation.trained_model import Trained, rewritten, trained, write_suite, write_tasks
from tests.tiny_models import make_model

__all__ = ["trained"]

KINDS = [
    {"name": "colour", "pattern": "^Which colour", "images": "one", "scored": True},
    {"name": "count", "pattern": "^How many", "images": "several", "scored": True},
    {"name": "words", "pattern": "^Say", "images": "one", "scored": False},
    {"name": "never", "pattern": "^Why", "images": "one", "scored": True},
]


@pytest.fixture
def run(monkeypatch):
    """Run the program; return its metrics."""

    def call(out: Path, model: Trained, *flags: str, heldout: Path | None = None, settings: dict | None = None) -> dict:
        words = ["--name", "tiny", "--model", model.model, "--heldout", heldout or model.heldout, "--root", model.root]
        words += ["--settings", json.dumps({"max_new_tokens": 16} | (settings or {})), "--out", out, *flags]
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        evaluate.main()
        return json.loads((out / "metrics.json").read_text())

    return call


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_accuracy_drops_with_blanked_images(trained, run, tmp_path):
    (tmp_path / "kinds.json").write_text(json.dumps(KINDS))
    heldout = run(tmp_path / "out", trained, "--kinds", tmp_path / "kinds.json")["checkpoints"]["final"]["heldout"]
    turns = lines(tmp_path / "out/heldout/final.jsonl")

    assert [kind["name"] for kind in heldout["kinds"]] == ["colour", "count", "never"]
    colour, count, never = heldout["kinds"]
    assert colour["n"] == sum(turn["question"].startswith("Which colour") for turn in turns) > 20
    assert never["n"] == 0 and never["accuracy"] is None
    assert not any(turn["question"].startswith("Say") for turn in turns)

    assert heldout["groups"]["one"]["accuracy"] == colour["accuracy"] > 0.7
    assert heldout["groups"]["several"]["n"] == count["n"]
    assert colour["blanked"]["accuracy"] < 0.6
    assert colour["drop"]["value"] == pytest.approx(colour["accuracy"] - colour["blanked"]["accuracy"])
    asked = [turn for turn in turns if turn["kind"] == "colour"]
    assert colour["chance"] == majority_accuracy([turn["references"][0] for turn in asked])
    assert colour["correct"] == sum(turn["correct"] for turn in asked)


def test_answers_to_blanked_images_depend_on_the_text_alone(trained, run, tmp_path):
    run(tmp_path / "out", trained)
    outputs, blanked = {}, {}
    for turn in lines(tmp_path / "out/heldout/final.jsonl"):
        outputs.setdefault(turn["prompt"], set()).add(turn["output"])
        blanked.setdefault(turn["prompt"], set()).add(turn["blanked"]["output"])
    assert max(map(len, outputs.values())) >= 3
    assert set(map(len, blanked.values())) == {1}


def test_loss_is_the_mean_over_supervised_tokens(trained, run, tmp_path):
    import torch

    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.decoded_images import DecodedImageCache
    from scripts.inference.model_loading import load_model

    loss = run(tmp_path / "out", trained)["checkpoints"]["final"]["heldout"]["loss"]
    model, processor = load_model(trained.model)
    images, blend = DecodedImageCache(processor), BlendReader(trained.heldout, trained.root)
    total, tokens, dataset_total, dataset_tokens = 0.0, 0, 0.0, 0
    for unit in range(len(blend)):
        sample = blend[unit]
        pixels = [images.get(*pair) for pair in zip(sample.image_sha256, sample.images, strict=True)]
        batch = processor.collate([(processor.encode(sample.messages), pixels)])
        with torch.no_grad():
            summed = model(**batch, num_items_in_batch=1).loss.item()
        total, tokens = total + summed, tokens + sample.n_labels
        if sample.dataset == "llava":
            dataset_total, dataset_tokens = dataset_total + summed, dataset_tokens + sample.n_labels
    assert loss["overall"]["tokens"] == tokens
    assert loss["overall"]["loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert loss["datasets"]["llava"]["loss"] == pytest.approx(dataset_total / dataset_tokens, rel=1e-4)


def test_correct_and_incorrect_answers_are_recognised(trained, run, tmp_path):
    run(tmp_path / "first", trained, settings={"blank_images": False})
    own = {turn["test"]: turn["output"] for turn in lines(tmp_path / "first/heldout/final.jsonl") if turn["round"] == 1}

    def with_answer(member: dict, answer: str) -> dict:
        question = member["messages"][0]
        return member | {"messages": [question, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]}

    loud = {test: output.upper() + " ." for test, output in own.items()}
    right = rewritten(trained.heldout, tmp_path / "right", lambda m: with_answer(m, loud["+".join(m["uids"])]))
    wrong = rewritten(trained.heldout, tmp_path / "wrong", lambda m: with_answer(m, own["+".join(m["uids"])] + " not"))
    for heldout, expected in ((right, 1.0), (wrong, 0.0)):
        result = run(tmp_path / f"out{expected}", trained, heldout=heldout, settings={"max_new_tokens": 32})
        kinds = result["checkpoints"]["final"]["heldout"]["kinds"]
        assert sum(kind["n"] for kind in kinds) == len(own)
        assert {kind["accuracy"] for kind in kinds} == {expected}


def test_two_evaluations_write_the_same_bytes(trained, run, tmp_path):
    suite = write_suite(tmp_path / "suite")
    for name in ("a", "b"):
        run(tmp_path / name, trained, "--suite", f"talk={suite}")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert str(tmp_path) not in "".join(data.decode() for data in files(tmp_path / "a").values())


def test_answers_do_not_depend_on_the_batch(trained, run, tmp_path):
    run(tmp_path / "many", trained, settings={"batch_size": 64, "limit": 16})
    run(tmp_path / "one", trained, settings={"batch_size": 1, "limit": 16})
    outputs = [[turn["output"] for turn in lines(tmp_path / name / "heldout/final.jsonl")] for name in ("many", "one")]
    assert outputs[0] == outputs[1]


def test_files_of_a_suite(trained, run, tmp_path):
    metrics = run(tmp_path / "out", trained, "--suite", f"talk={write_suite(tmp_path / 'suite')}")
    turns = lines(tmp_path / "out/talk/final.jsonl")
    assert [(turn["test"], turn["round"]) for turn in turns] == [
        ("alone", 1), ("alone", 2), ("words", 1), ("pair", 1), ("pair", 2),
    ]  # fmt: skip
    assert all(turn["checkpoint"] == metrics["checkpoints"]["final"]["checkpoint"] for turn in turns)
    alone, pair = turns[1], turns[3]
    assert turns[0]["output"] and turns[0]["output"] + "</s>" in alone["prompt"]
    assert [image["path"] for image in alone["images"]] == ["images/green.png"] and alone["new_images"] == 0
    assert [image["path"] for image in pair["images"]] == ["images/blue.png", "images/red.png"]
    assert pair["prompt"].count("<image>") == 2
    assert turns[4]["correct"] is None and turns[4]["references"] == []

    with open(tmp_path / "out/talk/final.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["test_name", "image_path", "question", "answer"]
    assert table[4] == ["pair", "images/blue.png images/red.png", "Which colour is the first image?", pair["output"]]
    assert table[5][1] == ""

    talk = metrics["checkpoints"]["final"]["suites"]["talk"]
    assert talk["n"] == 4 and talk["correct"] == sum(bool(turn["correct"]) for turn in turns)
    assert [test["rounds"] for test in talk["tests"]] == [2, 1, 2]
    assert json.loads((tmp_path / "out/talk/final.json").read_text())["correct"] == talk["correct"]


def test_both_checkpoints_of_an_export(trained, run, tmp_path):
    (tmp_path / "exported").mkdir()
    for name in ("final", "best"):
        (tmp_path / "exported" / name).symlink_to(trained.model)
    exported = Trained(trained.root, tmp_path / "exported", trained.heldout)
    metrics = run(
        tmp_path / "out", exported, settings={"checkpoints": ["final", "best"], "limit": 6, "blank_images": False}
    )
    assert metrics["checkpoints"]["final"] == metrics["checkpoints"]["best"]
    assert (tmp_path / "out/heldout/best.csv").read_bytes() == (tmp_path / "out/heldout/final.csv").read_bytes()
    assert metrics["checkpoints"]["best"]["heldout"]["loss"]["overall"]["conversations"] == 6
    assert "blanked" not in metrics["checkpoints"]["best"]["heldout"]["kinds"][0]


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path):
    folder = tmp_path / "lr=2e-3"
    folder.mkdir()
    assert evaluate.checkpoints_of([str(folder)], ["final"]) == {"final": folder / "final"}
    assert evaluate.checkpoints_of([f"best={folder}"], ["final"]) == {"best": folder}


def test_without_held_out_conversations_there_are_only_dialogues(trained, run, tmp_path, capsys):
    empty = rewritten(trained.heldout, tmp_path / "empty", lambda member: None)
    metrics = run(tmp_path / "out", trained, "--suite", f"talk={write_suite(tmp_path / 'suite')}", heldout=empty)
    heldout = metrics["checkpoints"]["final"]["heldout"]
    assert heldout["loss"]["overall"] is None and heldout["kinds"] == []
    assert metrics["checkpoints"]["final"]["suites"]["talk"]["n"] == 4
    assert "empty" in capsys.readouterr().err


def test_referenced_images_are_read_from_the_root(trained, run, tmp_path):
    heldout = write_blend(
        tmp_path / "blend", 6, trained.model, stem="heldout", seed=1, shards=1, images="referenced", root=tmp_path
    )
    embedded = write_blend(tmp_path / "embedded", 6, trained.model, stem="heldout", seed=1, shards=1)
    here = Trained(tmp_path, trained.model, heldout)
    run(tmp_path / "a", here)
    run(tmp_path / "b", here, heldout=embedded)
    assert (tmp_path / "a/heldout/final.jsonl").read_bytes() == (tmp_path / "b/heldout/final.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "talk"], "write NAME=FILE"),
        (["--suite", "../x=suite.json"], "write NAME=FILE"),
        (["--suite", "heldout=suite.json"], "is taken"),
        (["--suite", "a=nowhere.json"], "nowhere.json does not exist"),
        (["--kinds", "nowhere.json"], "nowhere.json does not exist"),
        (["--heldout", "nowhere"], "nowhere/manifest.json does not exist"),
        (["--model", "nowhere"], "several models need unique names"),
        (["--settings", '{"batches": 1}'], "batches"),
    ],
)
def test_invalid_input(trained, run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", trained, *flags)
    assert not (tmp_path / "out").exists()


def test_the_error_of_a_dialogue_that_outgrows_the_context(trained, run, tmp_path):
    (tmp_path / "suite.json").write_text(json.dumps({"long": [["Say red."], ["word " * 2000]]}))
    with pytest.raises(UserError, match=r"test 'long', round 2 has .* tokens, but the model reads at most 1024"):
        run(tmp_path / "out", trained, "--suite", f"talk={tmp_path / 'suite.json'}")


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupt generation after the first `after` batches; `None` only counts them."""
    generate, calls = ModelRunner._generate, []

    def call(after: int | None) -> list:
        calls.clear()

        def stop(runner, batch, *rest):
            calls.append(len(batch))
            if after is not None and len(calls) > after:
                raise KeyboardInterrupt
            return generate(runner, batch, *rest)

        monkeypatch.setattr(ModelRunner, "_generate", stop)
        return calls

    return call


def test_an_interrupted_evaluation_continues(trained, run, interrupted, tmp_path):
    flags = ("--suite", f"talk={write_suite(tmp_path / 'suite')}")
    settings = {"batch_size": 2, "limit": 4}
    whole = interrupted(None)
    run(tmp_path / "whole", trained, *flags, settings=settings)
    needed = len(whole)
    interrupted(needed - 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", trained, *flags, settings=settings)
    assert not (tmp_path / "out/metrics.json").exists()
    left = interrupted(None)
    run(tmp_path / "out", trained, *flags, settings=settings)
    assert len(left) == 2 < needed
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    # Answers to equal prompts are not generated again.
    more = interrupted(None)
    run(tmp_path / "out", trained, *flags, "--suite", f"again={write_suite(tmp_path / 'again')}", settings=settings)
    assert more == []


def test_task_files_beside_dialogues(trained, run, tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    flags = [word for name, path in tasks.items() for word in ("--suite", f"{name}={path}")]
    metrics = run(tmp_path / "out", trained, *flags, settings={"limit": 1, "blank_images": False})
    suites = metrics["checkpoints"]["final"]["suites"]

    choices = lines(tmp_path / "out/choices/final.jsonl")
    assert suites["choices"]["output_type"] == "multiple_choice" and suites["choices"]["version"] == "1"
    for turn in choices:
        assert turn["output"] == turn["choices"][turn["losses"].index(min(turn["losses"]))]
        assert turn["correct"] == (turn["output"] == turn["references"][0]) == bool(turn["scores"]["acc"])
        assert {"prompt", "seed", "versions", "checkpoint", "settings"} <= set(turn)
        assert turn["images"][0].keys() == {"path", "sha256"}
    assert suites["choices"]["metrics"]["acc"]["value"] > 0.7

    free = suites["free"]["metrics"]
    assert {"exact_match", "bleu", "perplexity", "exact_match,loud"} <= set(free)
    assert free["exact_match,loud"]["value"] == free["exact_match"]["value"] > 0.7
    assert 1.0 < free["perplexity"]["value"] < 3.0
    turn = lines(tmp_path / "out/free/final.jsonl")[0]
    assert turn["settings"]["max_new_tokens"] == 12 and turn["answer_loss"][1] > 1
    assert set(suites["orders"]["metrics"]) == {"exact_match", "order_sensitivity", "all_versions", "consistency"}
    assert suites["likely"]["metrics"]["perplexity"]["value"] == pytest.approx(free["perplexity"]["value"], rel=1e-5)
    assert suites["likely"]["n"] == 0


def test_answer_losses_cover_the_last_answer_alone(trained):
    import torch

    from scripts.config.evaluate import EvaluationConfig
    from scripts.evaluation.dialogues import with_answer
    from scripts.inference.answering import Prompt

    runner = ModelRunner(trained.model, EvaluationConfig())
    history = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "It is red."}]
    prompt = Prompt("x", [*history, {"role": "user", "content": "Say blue."}], [], list)
    both = [with_answer(prompt, answer) for answer in ("It is blue.", "It is red.")]
    ((nats, tokens, greedy), (other, *_)) = runner.answer_losses(both, "x")
    encoded = runner.processor.encode(both[0].messages)
    labels = torch.tensor([encoded.labels])
    start = len(runner.processor.encode(prompt.messages))
    assert (
        tokens
        == sum(label != -100 for label in encoded.labels[start:])
        < sum(label != -100 for label in encoded.labels)
    )
    labels[:, :start] = -100
    with torch.no_grad():
        expected = runner.model(input_ids=torch.tensor([encoded.input_ids]), labels=labels, num_items_in_batch=1).loss
    assert nats == pytest.approx(expected.item(), rel=1e-4)
    assert nats < other and greedy == (runner.generate([prompt], "x") == ["It is blue."])


def test_sampling_depends_on_the_seed(trained, run, tmp_path):
    task = write_tasks(tmp_path / "tasks", sample=True)["free"]

    def outputs(name: str, seed: int) -> list[str]:
        run(
            tmp_path / name,
            trained,
            "--suite",
            f"free={task}",
            settings={"seed": seed, "limit": 1, "blank_images": False},
        )
        return [turn["output"] for turn in lines(tmp_path / name / "free/final.jsonl")]

    first = outputs("a", 1)
    assert outputs("b", 1) == first != outputs("c", 2)


def test_several_models_at_once_are_compared(trained, monkeypatch, tmp_path):
    (tmp_path / "other").mkdir()
    untrained = make_model(tmp_path / "other")
    task = write_tasks(tmp_path / "tasks")["free"]
    words = ["--name", "two", "--model", f"before={untrained}", "--model", f"after={trained.model}"]
    words += ["--suite", f"free={task}", "--settings", '{"max_new_tokens": 12}', "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    evaluate.main()
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    exact = metrics["compared"]["free"]["after - before"]["exact_match"]
    values = [
        metrics["checkpoints"][name]["suites"]["free"]["metrics"]["exact_match"]["value"]
        for name in ("after", "before")
    ]
    assert exact["difference"] == pytest.approx(values[0] - values[1]) and exact["p"] < 0.05
    low, high = exact["interval"]
    assert 0 < low <= exact["difference"] <= high


def test_answers_of_datasets_without_kinds_are_scored_as_free_text(trained, run, tmp_path):
    kinds = tmp_path / "kinds.json"
    kinds.write_text(json.dumps([{"name": "any", "pattern": ".", "images": "one", "scored": True}]))
    settings = {"limit": 16, "blank_images": False}
    metrics = run(tmp_path / "out", trained, "--kinds", kinds, "--without-kinds", "llava", settings=settings)
    heldout, turns = metrics["checkpoints"]["final"]["heldout"], lines(tmp_path / "out/heldout/final.jsonl")
    mine = [turn for turn in turns if turn["dataset"] == "llava"]
    others = [turn for turn in turns if turn["dataset"] != "llava"]
    assert (
        mine
        and others
        and {turn["kind"] for turn in others} == {"any"}
        and {turn["kind"] for turn in mine} == {"llava"}
    )
    row = heldout["datasets"].pop("llava")
    assert heldout["datasets"] == {} and row["n"] == len(mine)
    f1 = row["metrics"]["token_f1"]
    assert f1["value"] == pytest.approx(sum(turn["scores"]["token_f1"] for turn in mine) / len(mine))
    assert f1["interval"][0] <= f1["value"] <= f1["interval"][1]
    assert not any("scores" in turn for turn in others)
    assert heldout["loss"]["datasets"]["llava"]["interval"]


def test_of_a_dataset_that_is_not_asked_only_the_loss_is_measured(trained, run, tmp_path):
    settings = {"limit": 16, "blank_images": False}
    whole = run(tmp_path / "whole", trained, settings=settings)["checkpoints"]["final"]["heldout"]
    part = run(tmp_path / "part", trained, "--loss-only", "llava", settings=settings)["checkpoints"]["final"]["heldout"]
    assert part["loss"] == whole["loss"] and "llava" in part["loss"]["datasets"]
    asked = {turn["dataset"] for turn in lines(tmp_path / "whole/heldout/final.jsonl")}
    assert asked - {"llava"} == {turn["dataset"] for turn in lines(tmp_path / "part/heldout/final.jsonl")}
    assert "llava" in asked and set(part["datasets"]) == set(whole["datasets"]) - {"llava"}


def test_long_references_are_counted_and_no_exact_match(trained, run, tmp_path, capsys):
    metrics = run(tmp_path / "out", trained, settings={"limit": 16, "blank_images": False, "max_new_tokens": 1})
    heldout = metrics["checkpoints"]["final"]["heldout"]
    rows = heldout["datasets"].values()
    assert sum(row["long_references"] for row in rows) == sum(row["n"] for row in rows) > 0
    assert heldout["kinds"] == [] and "references are longer than evaluate.max_new_tokens" in capsys.readouterr().err
