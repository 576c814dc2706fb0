"""The serve program: which models it serves, invalid input, and start and shutdown."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from scripts import serve
from scripts.common.errors import UserError
from scripts.serving.examples import find_examples, read_examples, results_root, training_summary
from scripts.serving.served_model import newest_export
from tests.preload import client as preload
from tests.scripts.evaluation.trained_model import trained, write_suite
from tests.scripts.serving.running_server import COLOUR, question

__all__ = ["trained"]

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 300


def export(root: Path, run: str, which: str, sha256: str, age: int = 0) -> Path:
    """A folder that looks like an exported model, `age` seconds old."""
    folder = root / "exported" / run / which
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"run": run, "which": which, "sha256": sha256}))
    os.utime(folder / "config.json", (10**9 - age, 10**9 - age))
    return folder


def folders(*words: str) -> dict[str, Path]:
    return serve.model_folders(serve.arguments().parse_args(words))


def test_the_newest_run_is_served_with_its_best_checkpoint_if_it_differs(tmp_path):
    with pytest.raises(UserError, match="no model has been exported"):
        newest_export(tmp_path)
    old, new = export(tmp_path, "old", "final", "a", age=50), export(tmp_path, "new", "final", "b")
    export(tmp_path, "new", "best", "b")
    assert folders("--root", str(tmp_path)) == {"new/final": new}
    best = export(tmp_path, "old", "best", "c")
    os.utime(old / "config.json")
    assert folders("--root", str(tmp_path)) == {"old/final": old, "old/best": best}


def test_names(tmp_path):
    final, other = export(tmp_path, "run", "final", "a"), tmp_path / "a=b"
    other.mkdir()
    assert folders("--model", str(final), "--model", f"mine={final}", "--model", str(other)) == {
        "run/final": final,
        "mine": final,
        "a=b": other,
    }
    with pytest.raises(UserError, match="have the same name run/final; name one of them as NAME=FOLDER"):
        folders("--model", str(final), "--model", str(final))


def test_invalid_input(tmp_path, monkeypatch):
    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["serve", "--model", str(tmp_path / "nowhere"), *words])
        serve.main()

    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    with pytest.raises(UserError, match="reachable for others: set an API key"):
        run("--host", "0.0.0.0")
    (tmp_path / "key").write_text("\n")
    with pytest.raises(UserError, match="must hold an API key"):
        run("--api-key-file", str(tmp_path / "key"))
    with serve.listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            run("--port", str(taken.getsockname()[1]))
    with pytest.raises(UserError, match="there is no model"):
        run("--port", "0")


def test_examples(tmp_path):
    suite = write_suite(tmp_path / "suite")
    dialogues = json.loads(suite.read_text())
    dialogues["later"] = [["First?", "images/red.png"], ["Second?"], ["Third?", "images/blue.png"]]
    dialogues["gone"] = [["First?", "images/nowhere.png"]]
    suite.write_text(json.dumps(dialogues))
    examples = read_examples(suite)
    assert [[path.name for path in one.images] for one in examples] == [
        ["green.png"],
        ["blue.png", "red.png"],
        ["red.png"],
    ]
    assert examples[-1].questions == ("First?", "Second?"), "the third is about an image that is not shown"
    dialogues["outside"] = [["First?", "../../secret.png"]]
    suite.write_text(json.dumps(dialogues))
    with pytest.raises(UserError, match="lies outside"):
        read_examples(suite)
    suite.write_text("[1]")
    with pytest.raises(UserError, match="holds no dialogues"):
        read_examples(suite)
    assert find_examples(None) == find_examples(tmp_path) == []


def test_training_summary(tmp_path):
    for path, content in (
        ("train/run/finished.json", {"state": "state/x", "epochs": 3}),
        ("train/run/state/x/settings.json", {"blend": "mine"}),
        ("plan/mine/epoch-000.json", {"conversations": 7, "datasets": {"a": {"realised": 7}, "b": {"realised": 0}}}),
        (
            "evaluate/run/metrics.json",
            {
                "checkpoints": {
                    "final": {"heldout": {"groups": {"one": {"n": 4, "accuracy": 0.5}, "several": {"n": 0}}}}
                }
            },
        ),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    final = export(tmp_path, "run", "final", "a")
    assert results_root(final) == tmp_path and results_root(tmp_path) is None
    assert training_summary(tmp_path, "run") == {
        "datasets": {"a": 7},
        "conversations": 7,
        "epochs": 3,
        "accuracy": {"final": {"one": [0.5, None]}},
        "miniature": False,
    }
    assert training_summary(tmp_path, "other") == {"miniature": False} and training_summary(None, "run") == {}


def test_the_program_serves_and_exits(trained, tmp_path):
    final = tmp_path / "exported/tiny/final"
    shutil.copytree(trained.model, final)
    words = [sys.executable, "-m", "scripts.serve", "--root", str(tmp_path), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = preload.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().removeprefix("ready: open ").strip()
        body = {"model": "final", "messages": [question(COLOUR, "blue")]}
        answer = requests.post(f"{url}v1/chat/completions", json=body, timeout=PATIENCE)
        assert answer.json()["choices"][0]["message"]["content"] == "It is blue."
        assert "VisualChat" in requests.get(url, timeout=PATIENCE).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
