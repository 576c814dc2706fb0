"""The checks before the first step, in real runs: what is refused leaves nothing, and warnings stay with the run."""

import json
import shutil
from pathlib import Path

from scripts.common.files import read_json
from scripts.config.model import ModelConfig
from scripts.config.run import RunConfig
from scripts.config.tokens import TokensConfig
from scripts.inference.model_assembly import make_model
from scripts.training.before_training import new_rows, trained_before
from tests.runs import SETTINGS, TrainingSetup, finished, state_of
from tests.tiny_models import IMAGE_TOKENS


def test_a_projector_that_is_never_trained_is_refused_before_anything_is_saved(lab: TrainingSetup, tmp_path: Path):
    status, output = lab.train(tmp_path / "out", ranks=1, train_projector=False)
    assert status == 1 and "would never be trained" in output and "Traceback" not in output
    state = state_of(tmp_path / "out")
    assert not list((state / "checkpoints").iterdir()) and not (state / "finished.json").exists()


def test_a_conversation_that_the_decoder_cannot_read_is_refused(lab: TrainingSetup, tmp_path: Path):
    language = tmp_path / "language"
    shutil.copytree(lab.bases["language"], language)
    config = read_json(language / "config.json")
    (language / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 24}))
    names = {kind: str(path) for kind, path in (lab.bases | {"language": language}).items()}
    tokens = TokensConfig(tokenizer="t", image_tokens=IMAGE_TOKENS)
    make_model(ModelConfig(vision="v", language="l", tokens="t"), tokens, names, lab.root, tmp_path / "model")
    status, output = lab.train(tmp_path / "out", model=tmp_path / "model", ranks=1)
    assert status == 1 and "but the decoder reads 24" in output and "Traceback" not in output


def test_warnings_are_printed_logged_and_kept_through_a_stop(lab: TrainingSetup, tmp_path: Path):
    out = tmp_path / "out"
    changes = {"ranks": 1, "weight_decay": 20.0, "epochs": 2}
    process = lab.start(out, flags=["--minutes", "0.000001"], **changes)
    output = process.communicate()[1]
    assert process.returncode == 75 and "weight decay shrinks" in output
    status, output = lab.train(out, **changes)
    assert status == 0, output
    (warning,) = finished(out)["warnings"]
    assert warning.startswith("weight decay shrinks the embeddings") and "`weight_decay: 0`" in warning
    assert f"WARNING: {warning}" in (state_of(out) / "log.txt").read_text()


def test_the_placeholder_of_images_is_the_only_new_row(lab: TrainingSetup):
    # The tokenizer of the tests has the placeholder already, so the decoder has a row for it.
    assert new_rows(lab.model) == 0


def test_weights_of_a_stage_that_is_still_to_come_are_unknown(tmp_path: Path):
    assert trained_before(RunConfig(**SETTINGS), tmp_path) == set()
    assert trained_before(RunConfig(**SETTINGS | {"start": "align"}), tmp_path) is None
