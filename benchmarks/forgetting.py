"""What each way of training a real decoder on pictures costs of its language, with and without replay, as a table.

    python -m benchmarks.forgetting --language FOLDER --folder DIR [--steps 150] [--attention dattn] [--train lora full]

FOLDER holds a decoder that was tuned to chat, DIR takes configuration and results. The decoder learns to answer
questions about the miniature's drawn images (colour, shape, count) through the miniature's encoder, once for every
combination of attention, trained part (frozen: the projector alone; LoRA; full) and replay (none, or one row of the
decoder's own answers for every four rows about images). All runs see the same pictures. Of every run the table has

    pictures      exact match on held-out questions, with its interval
    same          text prompts that are answered exactly as before training
    KL            drift per token on the answers to these prompts before training, in nats, with its interval
    own text      drift per token on the answers of held-out conversations, read without their images
    likelihood    log-likelihood per token of the answers before training, before -> after

The graph does the work: a benchmark that was stopped continues, and another --attention or --train adds runs to the
same results. A run that cannot be trained (a decoder that an attention would destroy) has a row without numbers.
"""

import argparse
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from scripts.common.files import read_json
from scripts.evaluation.forgetting_summary import nats

ROOT = Path(__file__).resolve().parents[1]
ATTENTIONS, PARTS = ("mmca", "dattn", "causal"), ("frozen", "lora", "full")
REPLAY = {"plain": 0, "replay": 4}
"""Blend -> rows about images for every row of replay; 0 for a blend without replay."""
BATCH = 8
_RATES = {"frozen": 1.0e-3, "lora": 1.0e-3, "full": 5.0e-5}


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration with all runs."""
    samples = args.steps * BATCH
    blend = {"tokens": "own", "sequence": 512, "global_batch": BATCH, "seed": 1, "shards": 1}
    blends = {}
    for name, rows in REPLAY.items():
        datasets: dict[str, Any] = {"llava": {"samples": samples}}
        if rows:
            datasets["talk"] = {"samples": samples // rows}
        blends[name] = blend | {"datasets": datasets}
    runs = {
        f"{attention}-{part}-{name}": {
            "model": "own",
            "blend": name,
            "attention": attention,
            "train_language": part,
            "train_embeddings": False,
            "learning_rate": _RATES[part],
            "projector_learning_rate": 4.0e-3,
            "warmup_steps": max(1, args.steps // 10),
            "micro_batch": BATCH // args.ranks,
            "ranks": args.ranks,
            "evaluate_batches": 5,
            "checkpoint_every": 50,
            "export": "delta",
            "memory_gb": args.memory_gb,
        }
        for attention, part, name in product(args.attention, args.train, args.replay)
    }
    return {
        "name": "forgetting",
        "results": "results",
        # Three of four images have a question in this file, and some are held out.
        "miniature": {"images": 2 * samples + 1000, "kinds": ["colour", "shape", "count"]},
        "holdout": {"share": 0.1, "seed": 1, "mixed": "drop"},
        "replay": {"talk": {"model": "own", "samples": args.prompts, "max_new_tokens": 96}},
        "tokens": {"own": {"tokenizer": args.language, "image_tokens": 4, "template": "chat"}},
        "blends": blends,
        "models": {"own": {"vision": "miniature", "language": args.language, "tokens": "own", "projector": "mlp"}},
        "runs": runs,
        "evaluate": {"max_new_tokens": 8, "limit": args.limit, "blank_images": False, "batch_size": 16},
    }


def table(root: Path, runs: list[str]) -> str:
    """The table in Markdown."""
    head = ["run", "pictures", "same", "KL", "own text", "likelihood"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(_row(root / "evaluate" / run) for run in runs)]
    return "\n".join(lines)


def _row(folder: Path) -> str:
    if not (folder / "metrics.json").is_file() or not (folder / "forgetting.json").is_file():
        return f"| {folder.name} | - | - | - | - | - |"
    group = read_json(folder / "metrics.json")["checkpoints"]["final"]["heldout"]["groups"]["one"]
    forgetting = read_json(folder / "forgetting.json")
    answers, own = forgetting["answers"]["before"], forgetting["own"]
    low, high = group["interval"]
    cells = [
        folder.name,
        f"{group['accuracy']:.1%} ({low:.1%} to {high:.1%}, n = {group['n']})",
        f"{forgetting['same']} of {len(forgetting['prompts'])}",
        nats(answers["kl"]),
        nats(own["answers"]["kl"]) if own else "-",
        f"{answers['before']['value']:.3f} → {answers['after']['value']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the graph and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--language", required=True, help="folder of a decoder with a chat template")
    add("--folder", required=True, type=Path, help="where configuration and results are written")
    add("--steps", type=int, default=150, help=f"steps of a run without replay, {BATCH} rows each (default: 150)")
    add("--attention", nargs="+", choices=ATTENTIONS, default=ATTENTIONS)
    add("--train", nargs="+", choices=PARTS, default=PARTS)
    add("--replay", nargs="+", choices=list(REPLAY), default=list(REPLAY))
    add("--prompts", type=int, default=200, help="prompts of replay (default: 200, all of this project)")
    add("--limit", type=int, default=300, help="held-out conversations that are evaluated (default: 300)")
    add("--ranks", type=int, default=2, choices=[1, 2, 4, 8])
    add("--cores", type=int, default=os.cpu_count())
    add("--memory-gb", type=int, default=0, help="of a training job; 0: the usual request")
    add("--dry-run", action="store_true", help="only list the jobs")
    args = arguments.parse_args()
    args.language = os.path.abspath(args.language)
    args.folder.mkdir(parents=True, exist_ok=True)
    config = configuration(args)
    (args.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "evaluate", "--snakefile", str(ROOT / "Snakefile"), "--keep-going"]
    command += ["--cores", str(args.cores), "--directory", str(args.folder), "--configfile", "config.yaml"]
    command += ["--dry-run", "--quiet", "rules"] if args.dry_run else ["--rerun-incomplete"]
    status = subprocess.run(command, check=False, cwd=args.folder).returncode
    if not args.dry_run:
        print(table(args.folder / "results", list(config["runs"])))
    sys.exit(status)


if __name__ == "__main__":
    main()
