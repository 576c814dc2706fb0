"""Under ZeRO 3 no rank holds a copy of the whole decoder, not even while it is read in another dtype than its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY
from tests.tiny_models import make_bases


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process holds is read from /proc")
def test_a_rank_has_its_share_of_the_decoder_and_no_more(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    bases = make_bases(tmp_path)
    config = LlamaConfig.from_pretrained(bases["language"])
    config.update({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "head_dim": 128})
    config.update({"num_attention_heads": 8, "num_key_value_heads": 8})
    decoder = LlamaForCausalLM(config).to(torch.float16)
    (bases["language"] / "model.safetensors").unlink()
    decoder.save_pretrained(bases["language"], max_shard_size="64MB")
    size = sum(2 * value.numel() for value in decoder.parameters())
    assert size > 250e6
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.scripts.training.run_zero3_memory", str(tmp_path), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        held = json.loads((tmp_path / f"out.{rank}").read_text())
        assert held["loaded"] - held["before"] < 0.3 * size
        assert 0.4 * size < held["shared out"] - held["loaded"] < 0.9 * size
        assert held["engine"] - held["before"] < 1.1 * size
