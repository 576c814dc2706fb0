"""What the rules ask about a configuration."""

import json
import subprocess

import pytest
import yaml

from scripts.common.errors import UserError
from scripts.config import settings
from scripts.config.blend import BlendDatasetConfig
from scripts.config.custom import CustomDatasetConfig
from scripts.config.holdout import HoldoutConfig
from scripts.workflow import lock_inputs, targets
from tests.workflow.project import ROOT, TINY


@pytest.fixture
def tiny():
    return settings.load(TINY)


def test_a_fixed_blend_trains_on_its_one_epoch_again_and_again(tiny):
    blend = tiny.blends["mixed"].model_copy(update={"redraw": False})
    run = tiny.runs["first"].model_copy(update={"epochs": 3})
    fixed = tiny.model_copy(update={"blends": {"mixed": blend}, "runs": {"first": run}})
    assert targets.epoch_parts(fixed, "first") == ["epoch-000"] * 3
    assert targets.blend_parts(fixed, "mixed") == ["epoch-000", "heldout"]


def test_every_epoch_of_a_redrawn_blend_is_a_part_of_its_own(tiny):
    longer = tiny.model_copy(update={"runs": {"first": tiny.runs["first"].model_copy(update={"epochs": 2})}})
    assert targets.epoch_parts(longer, "first") == ["epoch-000", "epoch-001"]
    assert targets.blend_parts(longer, "mixed") == ["epoch-000", "epoch-001", "heldout"]


def test_the_join_needs_the_records_that_it_joins(tiny):
    assert set(targets.datasets_of(tiny, "mixed")) == {"coco_caption", "llava", "llava_dial", "otter_mimicit_cgd"}


def test_how_shards_are_stored_is_no_cause_of_the_plan(tiny):
    other = tiny.blends["mixed"].model_copy(update={"shards": 5, "images": "referenced"})
    assert targets.plan_rerun_key(tiny, "mixed") == targets.plan_rerun_key(
        tiny.model_copy(update={"blends": {"mixed": other}}), "mixed"
    )


def test_what_is_done_with_mixed_conversations_is_a_cause_of_the_plan(tiny):
    other = tiny.holdout.model_copy(update={"mixed": "drop"})
    assert targets.plan_rerun_key(tiny, "mixed") != targets.plan_rerun_key(
        tiny.model_copy(update={"holdout": other}), "mixed"
    )


def test_the_number_of_images_is_no_cause_of_the_bases(tiny):
    more = tiny.miniature.model_copy(update={"images": 7})
    assert targets.world_rerun_key(tiny) == targets.world_rerun_key(tiny.model_copy(update={"miniature": more}))
    richer = tiny.miniature.model_copy(update={"shapes": 6})
    assert targets.world_rerun_key(tiny) != targets.world_rerun_key(tiny.model_copy(update={"miniature": richer}))


def test_a_root_belongs_to_one_configuration(tmp_path):
    targets.check_root(str(tmp_path / "results"), "one")
    targets.claim_root(str(tmp_path / "results"), "one")
    targets.claim_root(str(tmp_path / "results"), "one")
    with pytest.raises(UserError, match="'one', not of 'two'"):
        targets.check_root(str(tmp_path / "results"), "two")


def test_the_interpreter_of_snakemake_runs_the_steps_unless_conda_does():
    assert "PATH=" in targets.shell_prefix("/code", conda=False).replace("PYTHONPATH=", "")
    assert " PATH=" not in targets.shell_prefix("/code", conda=True)


def test_a_run_with_pixels_waits_for_the_sources_that_its_blend_shows(tiny):
    assert targets.pixel_manifests(tiny, "first") == []
    expected = [f"out/pixels/miniature/coco-0000{i}-of-00002.json" for i in range(2)]
    assert targets.pixel_manifests(tiny, "second") == expected
    assert targets.processor_folder(tiny, "miniature", "out") == "out/bases/miniature/vision"
    model = tiny.models["small"].model_copy(update={"vision": "openai/clip-vit-large-patch14"})
    other = tiny.model_copy(update={"models": {"small": model}})
    assert targets.pixel_manifests(other, "second")[0].startswith("out/pixels/openai--clip-vit-large-patch14/")
    assert targets.processor_folder(other, "openai--clip-vit-large-patch14", "out") == model.vision


def test_a_run_with_features_waits_for_the_output_of_its_encoder(tiny):
    expected = [f"out/features/miniature/layer-1-drop-fp32/coco-0000{i}-of-00002.json" for i in range(2)]
    assert targets.feature_manifests(tiny, "first") == expected and targets.feature_manifests(tiny, "second") == []
    model = tiny.models["small"].model_copy(update={"vision": "a/b", "vision_layer": -2, "class_token": "keep"})
    run = tiny.runs["first"].model_copy(update={"precision": "bf16"})
    other = tiny.model_copy(update={"models": {"small": model}, "runs": {"first": run}})
    assert targets.feature_manifests(other, "first")[0].startswith("out/features/a--b/layer-2-keep-bf16/")
    # Images are decoded for it, unless the run has them preprocessed; training then reads the features alone.
    assert targets.encoding_pixels(tiny, expected[1]) == []
    both = tiny.model_copy(update={"runs": {"first": tiny.runs["first"].model_copy(update={"pixels": True})}})
    assert targets.encoding_pixels(both, expected[1]) == ["out/pixels/miniature/coco-00001-of-00002.json"]
    assert targets.training_pixels(both, "first") == []
    assert targets.training_pixels(tiny, "second") == targets.pixel_manifests(tiny, "second") != []


def test_only_the_talk_of_joins_is_counted_as_follow_ups(tiny):
    followed = {name for name in tiny.datasets() if targets.needs_followups(tiny, "words", name)}
    assert followed == {"llava", "llava_dial"}


def test_the_picture_names_every_step():
    picture = (ROOT / "docs/graph.dot").read_text()
    programs = {
        "miniature",
        "fetch",
        "validate",
        "shard",
        "media_index",
        "holdout",
        "convert",
        "count_tokens",
        "plan",
        "blend",
        "blend_manifest",
        "preprocess_images",
        "encode_images",
    }
    programs |= {"pretrain", "make_model", "train", "export", "evaluate", "lock", "report"}
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    for program in programs:
        assert program in picture and f"-m scripts.{program} " in rules, program


def test_what_is_behind_a_run_is_its_own(tiny):
    first, second = (lock_inputs.provenance_manifests(tiny, run) for run in ("first", "second"))
    assert {"plan/mixed/epoch-000.json", "records/llava.report.json", "raw/miniature/miniature.json"} <= set(first)
    assert not [path for path in first if "plain" in path or "aokvqa" in path or path.startswith("pixels")]
    assert "features/miniature/layer-1-drop-fp32/coco-00001-of-00002.json" in first
    assert "scripts.encode_images" in lock_inputs.provenance_programs(tiny, "first")
    assert "scripts.encode_images" not in lock_inputs.provenance_programs(tiny, "second")
    assert "pixels/miniature/coco-00001-of-00002.json" in second and "bases/miniature/vision/manifest.json" in second
    assert len(set(first)) == len(first) and not [path for path in first if path.endswith((".tar", ".parquet"))]
    assert "scripts.adapters.llava" in lock_inputs.provenance_programs(tiny, "first")
    assert "scripts.preprocess_images" in lock_inputs.provenance_programs(tiny, "second")
    own = tiny.model_copy(update={"data_path": "/data", "suites": {"mine": "/data/talk.json"}})
    assert not [
        path for path in lock_inputs.provenance_manifests(own, "first") if path.startswith(("raw/miniature", "/data"))
    ]
    assert "scripts.miniature" not in lock_inputs.provenance_programs(own, "first")


def test_behind_a_run_are_the_runs_that_it_starts_from(tiny):
    runs = {"first": tiny.runs["first"], "tune": tiny.runs["second"].model_copy(update={"start": "first:best"})}
    staged = tiny.model_copy(update={"runs": runs})
    assert targets.start_result(staged, "tune") == ["out/train/first/finished.json"]
    assert targets.start_result(staged, "first") == []
    manifests = lock_inputs.provenance_manifests(staged, "tune")
    assert {"train/tune/finished.json", "train/first/finished.json", "plan/mixed/epoch-000.json"} <= set(manifests)
    assert "exported/first/final/manifest.json" not in manifests and len(set(manifests)) == len(manifests)
    assert {"scripts.adapters.llava", "scripts.adapters.aokvqa", "scripts.encode_images"} <= set(
        lock_inputs.provenance_programs(staged, "tune")
    )
    assert not [path for path in lock_inputs.provenance_manifests(staged, "first") if "tune" in path or "plain" in path]


def test_a_run_may_be_left_out_of_the_evaluation(tiny):
    runs = tiny.runs | {"first": tiny.runs["first"].model_copy(update={"evaluate": False})}
    changed = tiny.model_copy(update={"runs": runs})
    assert targets.evaluated_runs(tiny) == ["first", "second"] and targets.evaluated_runs(changed) == ["second"]
    assert targets.run_rerun_key(changed, "first") == targets.run_rerun_key(tiny, "first")


def test_every_profile_is_readable():
    for path in (ROOT / "profiles").glob("*/profile.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_no_profile_says_what_the_default_one_says_too():
    """Snakemake merges them, and the default one would win: a cluster would get its limits and its retries."""
    default = yaml.safe_load((ROOT / "profiles/default/profile.yaml").read_text())
    for path in (ROOT / "profiles").glob("*/profile.yaml"):
        if path.parent.name != "default":
            assert not set(default) & set(yaml.safe_load(path.read_text())), path


def test_a_run_on_a_cpu_asks_for_no_gpu_and_one_task(tiny):
    resources = targets.training_resources(tiny, "first")
    assert {name: resources[name] for name in ("gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")} == dict.fromkeys(
        ("gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")
    )
    assert resources["mem_mb"] == 4000 and resources["slurm_extra"] == "--signal=TERM@300"


def test_a_run_on_several_nodes_asks_for_one_launcher_on_each_and_all_of_its_gpus(tiny):
    run = tiny.runs["first"].model_copy(
        update={"nodes": 2, "ranks": 16, "precision": "bf16", "memory_gb": 500, "threads": 2, "workers": 3}
    )
    large = tiny.model_copy(update={"runs": {"first": run}})
    resources = targets.training_resources(large, "first")
    assert (resources["gpu"], resources["nodes"], resources["tasks"], resources["tasks_per_gpu"]) == (16, 2, 2, 0)
    assert resources["mpi"] == "srun" and resources["mem_mb"] == 500_000
    assert resources["slurm_extra"].split()[1:] == ["--ntasks-per-node=1", "--gpus-per-node=8"]
    assert targets.training_threads(large, "first") == 8 * 5, "of a node, not of all"


def test_suites_are_the_miniatures_or_the_users_with_their_data(tiny, tmp_path):
    (tmp_path / "task.yaml").write_text(
        "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        "doc_to_text: !function utils.text\n"
    )
    (tmp_path / "rows.jsonl").write_text("{}\n")
    named = {"talk": "miniature", "orders": "miniature/orders", "own": str(tmp_path / "task.yaml"), "old": "a/b.json"}
    given = tiny.model_copy(update={"suites": named})
    assert targets.suites(given, "out") == {
        "old": "a/b.json",
        "orders": "out/raw/miniature/tasks/orders.yaml",
        "own": named["own"],
        "talk": "out/raw/miniature/dialogues/dialogues.json",
    }
    assert targets.suite_inputs(given, "out") == [*targets.suites(given, "out").values(), str(tmp_path / "rows.jsonl")]


def test_the_environment_of_a_step_is_that_of_its_repository(tmp_path):
    """The text is formatted by Snakemake, then run by a shell."""
    folder = tmp_path / 'it\'s $HOME `x` "y" [z]'
    prefix = targets.shell_prefix(str(folder), conda=True).format()
    command = ["bash", "-c", f'{prefix} printf "%s" "$PYTHONPATH"']
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == str(folder)
    for name in ("a:b", "a{b", "a}b"):
        with pytest.raises(UserError, match="move it"):
            targets.shell_prefix(str(tmp_path / name), conda=True)


def test_no_two_encoders_share_a_folder():
    names = [
        "a/b",
        "a--b",
        "a b",
        "/a/b",
        "./a/b",
        "a/b/",
        "a//b",
        "miniature",
        "./miniature",
        "é",
        "e\u0301",
        "..",
        "@",
    ]
    names += ["中" * 90, "x" * 300, "y" + "x" * 299]
    folders = [targets.encoder_name(name) for name in names]
    assert len(set(folders)) == len(folders) and folders[0] == "a--b" and folders[7] == "miniature"
    assert all(len(folder.encode()) < 255 and folder.strip(".-") == folder and "/" not in folder for folder in folders)


def test_a_task_file_names_no_data_that_snakemake_cannot_take(tiny, tmp_path):
    (tmp_path / "rows{run}.jsonl").write_text("{}\n")
    (tmp_path / "task.yaml").write_text(
        "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: 'rows{run}.jsonl'}}\ndoc_to_text: q\n"
    )
    given = tiny.model_copy(update={"suites": {"own": str(tmp_path / "task.yaml")}})
    with pytest.raises(UserError, match=r"rows\{run\}\.jsonl, .* contains '\{run\}'"):
        targets.suite_inputs(given, "out")


def with_own(tiny, datasets, **changes):
    own = {"pets": CustomDatasetConfig(folder="pets", **changes.pop("pets", {}))}
    blend = tiny.blends["mixed"].model_copy(update={"datasets": {name: BlendDatasetConfig() for name in datasets}})
    return tiny.model_copy(update={"custom": own, "blends": {"mixed": blend}, "suites": {}, **changes})


def test_own_data_alone_needs_no_miniature_and_has_no_kinds(tiny):
    own, mixed = with_own(tiny, ["pets"]), with_own(tiny, ["pets", "llava"])
    assert not targets.needs_miniature(own) and not targets.has_kinds(own, "mixed")
    assert targets.needs_miniature(mixed) and targets.has_kinds(mixed, "mixed")
    assert targets.without_kinds(mixed, "mixed") == ["pets"] and targets.without_kinds(tiny, "mixed") == []
    assert targets.needs_miniature(own.model_copy(update={"suites": {"talk": "miniature/choices"}}))
    given = mixed.model_copy(update={"data_path": "/data"})
    assert not targets.needs_miniature(given) and not targets.has_kinds(given, "mixed")


@pytest.mark.parametrize(
    ("pets", "holdout", "expected"),
    [
        ({}, {"share": 0.1, "seed": 3}, {"share": 0.1, "seed": 3, "text_only": True}),
        ({"split": {"rows": 0.25}}, {"share": 0.1, "seed": 3}, {"share": 0.25, "seed": 3}),
        ({"split": {"rows": 0.25}}, {"share": 0}, {"share": 0.25}),
        ({"split": {"column": "part"}}, {"share": 0.1}, None),
        ({}, {"share": 0}, None),
    ],
)
def test_a_share_of_the_rows_of_own_data_is_kept(tiny, pets, holdout, expected):
    config = with_own(tiny, ["pets", "llava"], pets=pets, holdout=HoldoutConfig(**holdout))
    assert json.loads(targets.kept_rows(config, "pets") or "null") == expected
    assert targets.kept_rows(config, "llava") == ""


def test_each_own_dataset_of_a_plan_holds_out_something(tiny):
    config = with_own(tiny, ["pets", "llava"])
    assert json.loads(targets.plan_rerun_key(config, "mixed"))["own"] == ["pets"]
    none = config.model_copy(update={"holdout": HoldoutConfig(share=0)})
    assert "own" not in json.loads(targets.plan_rerun_key(none, "mixed"))
    assert "own" not in json.loads(targets.plan_rerun_key(tiny, "mixed"))


def test_only_runs_on_a_decoder_of_the_user_are_compared_on_text(tiny):
    config = TINY | {
        "models": TINY["models"] | {"real": {"vision": "miniature", "language": "decoder"}},
        "replay": {"talk": {"model": "small", "questions_of": ["aokvqa"]}},
        "runs": {"small": {"model": "small", "blend": "plain"}, "real": {"model": "real", "blend": "real"}},
    }
    plain = TINY["blends"]["plain"] | {"datasets": {"talk": {}, "llava": {}}}
    config["blends"] = TINY["blends"] | {"plain": plain, "real": plain | {"tokens": "real"}}
    loaded = settings.load(config)
    assert [run for run in loaded.runs if targets.measures_forgetting(loaded, run)] == ["real"]
    assert targets.replay_datasets(loaded, "plain") == ["talk"] and targets.replay_datasets(loaded, "mixed") == []
    files = {run: set(lock_inputs.provenance_manifests(loaded, run)) for run in loaded.runs}
    assert files["real"] - files["small"] >= {"evaluate/real/forgetting.json"}
    assert "evaluate/small/forgetting.json" not in files["small"]
    # What was asked is covered, but has no token counts of its own.
    assert {"replay/talk/manifest.json", "records/aokvqa.report.json", "tokens/words/talk.json"} <= files["small"]
    assert "tokens/words/aokvqa.json" not in files["small"]
    programs = lock_inputs.provenance_programs(loaded, "real")
    assert {"scripts.replay", "scripts.forgetting", "scripts.adapters.aokvqa"} <= set(programs)
    assert "scripts.forgetting" not in lock_inputs.provenance_programs(loaded, "small")
    assert targets.data_path(loaded, "talk", "root") == "root/replay/talk"
    assert targets.kept_rows(loaded, "talk") and not lock_inputs.provenance_manifests(tiny, "first")[0].startswith(
        "replay"
    )
