"""The real package lmms-eval evaluates a model through our entry point, with the same results as our evaluation.

`make test-lmms` makes an environment for this, `.neighbours/lmms`; elsewhere these tests are skipped.
"""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageFile

lmms_eval = pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed here; `make test-lmms` runs these tests"
)

from scripts.config.evaluate import EvaluationConfig  # noqa: E402 (after importorskip)
from scripts.evaluation.checkpoint_evaluation import CheckpointEvaluation  # noqa: E402 (after importorskip)
from scripts.evaluation.suite_reader import read_suite  # noqa: E402 (after importorskip)
from scripts.evaluation.vqa import normalise_vqa  # noqa: E402 (after importorskip)
from scripts.inference.answering import ModelRunner  # noqa: E402 (after importorskip)
from tests.scripts.evaluation.trained_model import trained, write_tasks  # noqa: E402 (after importorskip)

__all__ = ["trained"]

FUNCTIONS = """
import os
from PIL import Image
HERE = os.path.dirname(__file__)
def visual(doc): return [Image.open(os.path.join(HERE, doc["image"])).convert("RGB")]
def text(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    asked = "You said " + previous_output[-1] + " " + doc["question"]
    return visual(doc), asked, round_idx > 1, previous_output, round_idx
def rounds(doc, results): return {"rounds": len(results[0] if isinstance(results[0], list) else results)}
"""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Neither the user's caches nor the hub are used."""
    with pytest.MonkeyPatch.context() as patch:
        # The harness lets Pillow read truncated images from then on; other tests must not inherit that.
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("sets")))
        yield


def ask(model: Path, folder: Path, *tasks: str, simple: bool = False, **options) -> dict:
    """Run tasks of `folder` through the harness; return its results by task."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    arguments = ",".join(f"{name}={value}" for name, value in {"pretrained": model, "device": "cpu", **options}.items())
    manager = TaskManager(include_path=str(folder), include_defaults=False, model_name="visualchat")
    return simple_evaluate(
        model="visualchat",
        model_args=arguments,
        tasks=list(tasks),
        task_manager=manager,
        batch_size=8,
        force_simple=simple,
        log_samples=True,
        bootstrap_iters=0,
        cli_args=None,
    )


def outputs(result: dict, task: str) -> dict[int, str]:
    """The outputs by document."""
    return {sample["doc_id"]: sample["filtered_resps"] for sample in result["samples"][task]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, home) -> Path:
    """The task files of our own tests with absolute paths, and one with several rounds."""
    place = tmp_path_factory.mktemp("tasks") / "files"
    tasks = write_tasks(place)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"image": str(place / row["image"]), "target": row["choices"].index(row["answer"])} for row in rows]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "utils.py").write_text(FUNCTIONS)
    for path in tasks.values():
        task = yaml.safe_load(path.read_text())
        task["dataset_kwargs"]["data_files"]["test"] = str(place / "rows.jsonl")
        task.pop("process_results", None)
        task.pop("cluster_key", None)
        task.pop("filter_list", None)
        aggregated = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
        likely = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
        task["metric_list"] = likely if path.stem == "choices" else aggregated
        if path.stem == "choices":
            task["doc_to_target"] = "target"
            path.write_text(
                yaml.safe_dump(task).replace("doc_to_visual: image", "doc_to_visual: !function utils.visual")
            )
            continue
        if path.stem == "likely":
            path.unlink()
            continue
        path.write_text(yaml.safe_dump(task))
    base = yaml.safe_load((place / "free.yaml").read_text()) | {
        "task": "talk",
        "output_type": "generate_until_multi_round",
        "metric_list": [{"metric": "rounds", "aggregation": "mean", "higher_is_better": True}],
    }
    text = yaml.safe_dump(base).replace("doc_to_visual: image", "doc_to_visual: !function utils.visual")
    text = text.replace("doc_to_text: question", "doc_to_text: !function utils.text")
    (place / "talk.yaml").write_text(text + "process_results: !function utils.rounds\n")
    return place


def ours(trained, task: Path, out: Path) -> list:
    suite = read_suite(task, image_root="/", allow_code=True)
    return CheckpointEvaluation("final", trained.model, EvaluationConfig(batch_size=8, max_new_tokens=12), out).suite(
        "x", suite
    )


def test_the_entry_point_is_found():
    from lmms_eval.models import get_model_manifest

    assert get_model_manifest("visualchat").chat_class_path == "scripts.evaluation.lmms.VisualChat"


@pytest.mark.parametrize("simple", [False, True])
def test_one_task_file_gives_the_same_answers_in_both(trained, folder, tmp_path, simple):
    result = ask(trained.model, folder, "free", simple=simple)
    summary, turns = ours(trained, folder / "free.yaml", tmp_path)
    theirs = outputs(result, "free")
    assert [theirs[index] for index in sorted(theirs)] == [[turn.output] for turn in turns]
    value = summary["metrics"]["exact_match"]["value"]
    assert result["results"]["free"]["exact_match,none"] == pytest.approx(value) and value > 0.7


def test_multiple_choice_gives_the_same_results(trained, folder, tmp_path):
    result = ask(trained.model, folder, "choices", simple=True)
    summary, turns = ours(trained, folder / "choices.yaml", tmp_path)
    losses = {
        sample["doc_id"]: [resp[0] for resp in sample["filtered_resps"]] for sample in result["samples"]["choices"]
    }
    for index, turn in enumerate(turns):
        assert losses[index] == pytest.approx(turn.losses, rel=1e-4)
    for name in ("acc", "acc_norm"):
        assert result["results"]["choices"][f"{name},none"] == pytest.approx(summary["metrics"][name]["value"])
    assert summary["metrics"]["acc"]["value"] > 0.7


@pytest.mark.parametrize("simple", [False, True])
def test_several_rounds(trained, folder, simple):
    result = ask(trained.model, folder, "talk", simple=simple)
    assert result["results"]["talk"]["rounds,none"] == 2
    rounds = outputs(result, "talk")[0][0]
    runner = ModelRunner(trained.model, EvaluationConfig(max_new_tokens=12))
    from scripts.evaluation.lmms import _prompt, _simple_messages

    row = json.loads((folder / "rows.jsonl").read_text().splitlines()[0])
    image = Image.open(row["image"]).convert("RGB")
    (first,) = runner.generate([_prompt(_simple_messages(row["question"], [image]), "x")], "x")
    again = f"You said {first} {row['question']}"
    (second,) = runner.generate([_prompt(_simple_messages(again, [image]), "x")], "x")
    assert rounds == [first, second]


def test_rounds_may_be_one_conversation(trained, folder):
    alone = outputs(ask(trained.model, folder, "talk"), "talk")
    carried = outputs(ask(trained.model, folder, "talk", keep_history=True), "talk")
    assert {place: rounds[0][0] for place, rounds in alone.items()} == {
        p: rounds[0][0] for p, rounds in carried.items()
    }
    assert alone != carried


def test_a_reference_is_a_log_likelihood_and_a_choice_a_loss(trained, folder):
    from lmms_eval.models import get_model

    model = get_model("visualchat", force_simple=True)(pretrained=str(trained.model), device="cpu")
    row = json.loads((folder / "rows.jsonl").read_text().splitlines()[0])
    model.task_dict = {"x": {"test": [row]}}

    class Request:
        task_name, doc_id = "x", 0

        def __init__(self, continuation):
            self.args = (row["question"], continuation, lambda doc: [row["image"]], 0, "x", "test")

    asked = [Request(" It is red."), Request(lambda doc: "It is red.")]
    (loss, greedy), (likelihood, same) = [result.text for result in model.loglikelihood(asked)]
    assert loss > 0 and likelihood == pytest.approx(-loss) and greedy == same


def test_videos_and_unknown_options_are_errors(trained):
    from scripts.evaluation.lmms import VisualChat, _prompt

    with pytest.raises(ValueError, match="shows a video"):
        _prompt([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "task, document 0")
    with pytest.raises(ValueError, match="no option 'colour'"):
        VisualChat(pretrained=str(trained.model), colour="red")


def test_our_vqa_normaliser_equals_that_of_lmms_eval():
    import random

    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    theirs, generator = EvalAIAnswerProcessor(), random.Random(5)
    pieces = [
        "a",
        "the",
        "two",
        "none",
        "dont",
        "y'all'dve",
        "1,000",
        "U.S.",
        "half-full",
        "left - right",
        "?",
        "10.5",
        "/",
    ]
    pieces += ["Couldnt've", "somebody'd", "[x]", "wont.", "id've", "Im", "@ home", "it's", ";", "...", "ten"]
    for _ in range(2000):
        text = " ".join(generator.choices(pieces, k=generator.randint(1, 6)))
        assert normalise_vqa(text) == theirs.process_digit_article(theirs.process_punctuation(text)), text
