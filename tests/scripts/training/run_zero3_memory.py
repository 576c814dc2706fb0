"""Run by torchrun in `test_partition.py`: what a rank holds of a large decoder under ZeRO 3.

    torchrun --nproc-per-node 2 -m tests.scripts.training.run_zero3_memory BASES OUT

BASES is a folder as `tests.tiny_models.make_bases` writes it. OUT.<rank> becomes {moment: bytes of memory that are this
process's own}; pages of a mapped file are not.
"""

import json
import os
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from scripts.training.worker import start_distributed


def own_memory() -> int:
    """Bytes that only this process holds, which cannot be dropped and read again."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def main(bases: Path, out: Path) -> None:
    torch.set_num_threads(1)
    start_distributed()
    from transformers import AutoTokenizer

    from model.modeling import VisualChatForConditionalGeneration
    from scripts.config.run import RunConfig
    from scripts.training import engine
    from scripts.training.partition import partition
    from scripts.training.trainable import mark_trainable

    found = {"before": own_memory()}
    tokenizer = AutoTokenizer.from_pretrained(bases / "tokenizer")
    parts = bases / "vision", bases / "language", tokenizer
    model = VisualChatForConditionalGeneration.from_base_models(*parts, dtype=torch.bfloat16, keep_language_dtype=True)
    found["loaded"] = own_memory()
    settings = RunConfig(model="m", blend="b", zero=3, precision="bf16", train_embeddings=False)
    mark_trainable(model, settings)

    def watched(*given) -> None:
        partition(*given)
        found["shared out"] = own_memory()

    engine.partition = watched
    engine.TrainingEngine(model, settings, datasets=["one"], accumulation=1, steps=1)
    found["engine"] = own_memory()
    out.with_suffix(f".{dist.get_rank()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
