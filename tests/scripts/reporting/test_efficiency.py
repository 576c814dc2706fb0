"""Data efficiency: grouping of runs, means and intervals over seeds, paired differences, and the chart."""

from pathlib import Path

import pytest

from scripts.common.files import write_json
from scripts.config.run import RunConfig
from scripts.reporting.efficiency import studies
from scripts.reporting.means import mean_of, student_quantile
from scripts.reporting.scores import columns, run_colours

LENGTHS = {"a": 1000, "b": 1004}


def write(root: Path, name: str, attention: str, epochs: int, seed: str, several: float, **settings) -> None:
    """An evaluated run on the blend `seed`, with this accuracy about several images."""
    number = "ab".find(seed) + 1
    named = {"model": f"m-{number}", "blend": f"data-{number}", "attention": attention, "epochs": epochs}
    run = RunConfig(**named | settings)
    state = root / "train" / name / "state/0"
    write_json(state / "settings.json", run.model_dump(mode="json"))
    finished = {"run": name, "state": "state/0", "attention": attention, "epochs": epochs}
    write_json(root / "train" / name / "finished.json", finished | {"plans": [f"plan {seed}"] * epochs})
    none = {"n": 0, "accuracy": None, "interval": None, "chance": None}
    row = {"n": 200, "accuracy": several, "interval": [0, 1], "chance": 0.3, "correct": 1}
    heldout = {"groups": {"one": none, "several": row}, "kinds": [], "loss": {"overall": None, "datasets": {}}}
    checkpoint = {"checkpoint": "0", "heldout": heldout, "suites": {}}
    write_json(root / "evaluate" / name / "metrics.json", {"run": name, "checkpoints": {"final": checkpoint}})


def find_studies(root: Path, confidence: float = 0.95):
    for seed, length in LENGTHS.items():
        write_json(root / f"plan/{seed}.json", {"sha256": f"plan {seed}", "conversations": length})
    metrics, finished = sorted(root.glob("evaluate/*/*.json")), sorted(root.glob("train/*/finished.json"))
    shown = columns(metrics, run_colours(metrics, finished))
    return studies(shown, finished, sorted(root.glob("plan/*.json")), confidence)


def test_runs_that_differ_in_attention_length_and_seeds_alone_form_a_study(tmp_path):
    accuracies = {
        ("mmca", 1): (0.6, 0.64),
        ("mmca", 2): (0.8, 0.9),
        ("causal", 1): (0.5, 0.56),
        ("causal", 2): (0.7, 0.85),
    }
    for (attention, epochs), pair in accuracies.items():
        for seed, accuracy in zip("ab", pair, strict=True):
            write(tmp_path, f"{attention}-{epochs}-{seed}", attention, epochs, seed, accuracy, ranks=epochs)
    write(tmp_path, "other", "mmca", 1, "a", 0.1, learning_rate=0.5)
    write(tmp_path, "larger", "mmca", 1, "a", 0.1, model="large-1")
    (study,) = find_studies(tmp_path)
    assert [attention["name"] for attention in study.attentions] == ["mmca", "causal"]
    (group,) = study.groups
    assert group.label == "Several images" and [row["seen"] for row in group.rows] == [1002, 2004]
    first, second = group.rows
    assert first["means"]["mmca"].value == pytest.approx(0.62) and first["means"]["mmca"].n == 2
    assert second["means"]["causal"].value == pytest.approx(0.775)
    # Seed by seed: 0.10 and 0.08, then 0.10 and 0.05.
    difference = first["differences"]["causal"]
    assert difference.value == pytest.approx(0.09)
    assert difference.interval[1] - difference.value == pytest.approx(12.7062 * 0.01, rel=1e-4)
    assert second["differences"]["causal"].value == pytest.approx(0.075)
    assert group.chart.count('class="line run-0"') == 2 and "M50.00 38.00" in group.chart


def test_a_single_run_or_repetitions_alone_are_no_study(tmp_path):
    write(tmp_path, "one", "mmca", 2, "a", 0.5)
    assert find_studies(tmp_path) == []
    write(tmp_path, "again", "mmca", 2, "b", 0.6)
    assert find_studies(tmp_path) == []
    (tmp_path / "train/again/finished.json").unlink()
    write(tmp_path, "other", "causal", 2, "a", 0.4)
    assert find_studies(tmp_path) == [], "one run per attention is no study"
    (tmp_path / "train/other/finished.json").unlink()
    write(tmp_path, "again", "mmca", 2, "b", 0.6)
    write(tmp_path, "longer", "mmca", 4, "a", 0.7)
    (study,) = find_studies(tmp_path)
    (group,) = study.groups
    assert (
        group.rows[0]["means"]["mmca"].n == 2 and group.rows[1]["means"]["mmca"].interval is None and study.others == []
    )


def test_runs_without_plans_are_left_out(tmp_path):
    for epochs in (1, 2):
        write(tmp_path, f"run-{epochs}", "mmca", epochs, "c", 0.5)
    assert find_studies(tmp_path) == []


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.95, 4, 2.13185),
        (0.995, 9, 3.24984),
        (0.975, 30, 2.04227),
    ],
)
def test_quantiles_of_student_s_t_are_those_of_the_tables(share, freedom, value):
    assert student_quantile(share, freedom) == pytest.approx(value, rel=1e-5)


def test_means_of_repetitions():
    three = mean_of([0.5, 0.6, 0.7], 0.95)
    assert (three.n, three.value) == (3, pytest.approx(0.6))
    low, high = three.interval
    assert high - three.value == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5) == three.value - low
