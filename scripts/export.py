"""Turns a finished run into self-contained Hugging Face folders: the last weights, and those with the least held-out
loss.

    reads   <run>/finished.json and the trained weights it names; the model's folder and its bases
    writes  <out>/final/ and <out>/best/: configuration, all weights (safetensors), processor, tokenizer, manifest.json

Each folder loads with `VisualChatForConditionalGeneration.from_pretrained` and `VisualChatProcessor.from_pretrained`
and needs nothing else. It appears whole or not at all, replaces an older one, and has the same bytes each time it is
made.
"""

from pathlib import Path
from typing import Any

from scripts.common.errors import UserError, run_program
from scripts.common.files import canonical, file_sha256, read_json, text_sha256, write_json
from scripts.common.program import parser


def export(run: Path, model: Path, root: Path, out: Path) -> None:
    """Write both folders of the finished run in `run`, which was trained from the model in `model`.

    Raises:
        UserError: the run is not finished, or its weights or the model are not the ones that belong together.
    """
    finished = read_json(run / "finished.json")
    _check_model(run, finished, model)
    for which in ("final", "best"):
        entry = finished[which]
        if not (run / entry["weights"]).is_file() or file_sha256(run / entry["weights"]) != entry["sha256"]:
            raise UserError(f"{run / entry['weights']} is missing or has changed; run train again, which makes it anew")

    import torch
    from safetensors.torch import load_file
    from transformers.utils import logging

    from scripts.training.assembly import load_model
    from scripts.training.folders import replaced
    from scripts.training.state import load_weights

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if finished["precision"] == "bf16" else torch.float32
    network, processor = load_model(model, root, finished["attention"], dtype)
    for which in ("final", "best"):
        load_weights(network, load_file(run / finished[which]["weights"]))
        with replaced(out / which) as draft:
            network.save_pretrained(draft)
            processor.save_pretrained(draft)
            write_json(draft / "manifest.json", _manifest(draft, which, finished))


def _check_model(run: Path, finished: dict[str, Any], model: Path) -> None:
    from scripts.training import identity

    trained = read_json(run / finished["state"] / "inputs.json")["model"]
    if identity.manifest_sha256(model) != trained:
        raise UserError(f"{run} was trained from another model than {model} holds now; train again")


def _manifest(folder: Path, which: str, finished: dict[str, Any]) -> dict[str, Any]:
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    return {
        "v": 1,
        "run": finished["run"],
        "which": which,
        "fingerprint": finished["fingerprint"],
        "attention": finished["attention"],
        "step": finished[which]["step"],
        "heldout_loss": finished[which]["heldout_loss"],
        "weights": finished[which]["sha256"],
        "files": files,
        "sha256": text_sha256(canonical(files)),
    }


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--run", required=True, type=Path, help="folder train/<run> of a finished run")
    arguments.add_argument("--model", required=True, type=Path, help="folder models/<model> that it started from")
    arguments.add_argument("--root", required=True, type=Path, help="results root, where bases may lie")
    arguments.add_argument("--out", required=True, type=Path, help="folder to write: exported/<run>")
    args = arguments.parse_args()
    export(args.run, args.model, args.root, args.out)


if __name__ == "__main__":
    run_program(main)
