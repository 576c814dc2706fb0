"""A copy of the project in a folder of its own, driven through Snakemake as a user would, for tests of the whole
graph."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.preload import client as preload

ROOT = Path(__file__).resolve().parents[2]
PARTS = [
    "Snakefile",
    "config.yaml",
    "rules",
    "scripts",
    "model",
    "envs",
    "profiles",
    "snakemake_logger_plugin_visualchat",
]

TINY = {
    "name": "tiny",
    "results": "out",
    "miniature": {"images": 90},
    "holdout": {"share": 0.3, "mixed": "evaluate"},
    "media": {"coco": {"shards": 2}},
    "pretrain": {
        "vision": {"scenes": 50, "steps": 5},
        "language": {"steps": 5},
    },
    "tokens": {"words": {"tokenizer": "miniature", "image_tokens": 4}},
    "blends": {
        "mixed": {
            "tokens": "words",
            "sequence": 512,
            "global_batch": 8,
            "images": "embedded",
            "shards": 2,
            "datasets": {
                "llava": {"concat": 2, "samples": 20},
                "llava_otter_blend": {"samples": 10},
                "coco_caption": {"samples": 10},
            },
        },
        "plain": {
            "tokens": "words",
            "sequence": 512,
            "global_batch": 2,
            "packing": True,
            "shards": 1,
            "datasets": {"aokvqa": {"samples": 12}, "otter_mimicit_cgd": {"samples": 12}},
        },
    },
    "models": {"small": {"vision": "miniature", "language": "miniature", "tokens": "words"}},
    "runs": {
        "first": {
            "model": "small",
            "blend": "mixed",
            "train_language": "full",
            "ranks": 1,
            "micro_batch": 4,
            "features": True,
        },
        "second": {
            "model": "small",
            "blend": "plain",
            "attention": "causal",
            "ranks": 1,
            "micro_batch": 1,
            "pixels": True,
        },
    },
    "evaluate": {"limit": 6, "max_new_tokens": 3},
    "suites": {"dialogues": "miniature"},
}


@dataclass
class Project:
    """A working copy at `folder` with its configuration in `tiny.yaml`."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: dict = TINY) -> "Project":
        folder.mkdir(parents=True)
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, folder / part)
        project = cls(folder)
        project.configure(config)
        return project

    def configure(self, config: dict) -> None:
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(config))

    def snakemake(self, *arguments: str, check: bool = True, config: str = "tiny.yaml") -> str:
        """Run Snakemake on the project's configuration; returns what it printed."""
        command = [sys.executable, "-m", "snakemake", "--configfile", config, "--cores", "2", "--nocolor", *arguments]
        environment = os.environ | preload.in_shells()
        done = preload.run(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        output = done.stdout + done.stderr
        assert not check or done.returncode == 0, output[-6000:]
        return output

    def jobs(self, *arguments: str) -> dict[str, int]:
        """What a dry run would do: rule to number of jobs, without the target rules; empty for nothing to be done."""
        output = self.snakemake("-n", *arguments)
        if "Nothing to be done" in output:
            return {}
        table = output.split("Job stats:", 1)[1].split("total", 1)[0]
        counts = {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.M)}
        return {
            name: count for name, count in counts.items() if name not in ("all", "data", "train", "evaluate", "report")
        }

    def run_jobs(self, *arguments: str) -> dict[str, int]:
        """Run Snakemake; what it has run: rule to number of jobs, without the target rules."""
        rules = re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", self.snakemake(*arguments), re.M)
        return dict(Counter(rule for rule in rules if rule not in ("all", "data", "train", "evaluate", "report")))

    def planned(self, *arguments: str) -> dict[str, set[str]]:
        """What a dry run would do: program to the datasets and sources that it would be called with."""
        found: dict[str, set[str]] = {}
        for program, words in re.findall(r"python -m scripts\.(\w+) (.*)", self.snakemake("-n", "-p", *arguments)):
            found.setdefault(program, set()).update(re.findall(r"--(?:dataset|source) (\w+)", words))
        return found

    def hashes(self, pattern: str) -> dict[str, str]:
        """sha256 of every file below the results root that matches `pattern`."""
        from scripts.common.files import file_sha256

        root = self.folder / "out"
        return {str(path.relative_to(root)): file_sha256(path) for path in sorted(root.glob(pattern)) if path.is_file()}
