"""Export a finished run as Hugging Face folders: the last weights, and those with the least held-out loss.

    reads   <run>/finished.json and the trained weights it names; the model's folder and its bases
    writes  <out>/final/ and <out>/best/

    --form full    configuration, all weights (safetensors), processor, tokenizer and the code: needs nothing else, and
                   loads with `trust_remote_code` where this project is not installed
    --form delta   only what was trained, with path and hash of the bases, which must not move: small, for large models
    --form llava   a stock LLaVA of `transformers`, where attention 'causal' and projector 'mlp' allow it

Adapters are merged (full, llava) or kept as they are (delta). What the stages before the run have trained is part of
its result: applied first (full, llava), or kept beside it (delta). Each folder is written whole or not at all, replaces
an older one, and has the same bytes each time it is written; `manifest.json` names the hashes of its files.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.cli import parser
from scripts.common.errors import UserError, damaged, run_program
from scripts.common.files import canonical_json, file_sha256, read_json, text_sha256, write_json
from scripts.common.verified_folder import check_folder
from scripts.config.run import RunConfig
from scripts.training.start import DESCRIPTION, FOLDER, read_stages, start_files

if TYPE_CHECKING:
    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor

FORMS = ("full", "delta", "llava")


def export(run: Path, model: Path, root: Path, out: Path, form: str = "full") -> None:
    """Write both folders of the finished run in `run`, which was trained from the model in `model`.

    Raises:
        UserError: the run is not finished, its weights or the model do not belong to it, or the model cannot be written
            in the form.
    """
    finished = read_json(run / "finished.json")
    state = run / finished["state"]
    _check_model(run, finished, model)
    check_folder(model)
    stages, taken = read_stages(state), start_files(state)
    if len(stages) != len(finished.get("start", {}).get("stages", [])):
        raise damaged(state / FOLDER / DESCRIPTION, "is missing or damaged")
    for path, sha256 in taken:
        if not path.is_file() or file_sha256(path) != sha256:
            raise damaged(path, "is missing or damaged")
    for which in ("final", "best"):
        entry = finished[which]
        if not (run / entry["weights"]).is_file() or file_sha256(run / entry["weights"]) != entry["sha256"]:
            raise damaged(run / entry["weights"], "is missing or damaged")

    from transformers.utils import logging

    from scripts.common.atomic_folder import atomic_folder
    from scripts.common.tensors import read_tensors
    from scripts.inference.lora import merge_weights
    from scripts.inference.model_assembly import add_stages, load_model, write_delta
    from scripts.inference.stages import apply_stages
    from scripts.training.precision import dtype_of

    logging.disable_progress_bar()
    settings = RunConfig.model_validate(read_json(state / "settings.json"))
    dtype, files = dtype_of(finished["precision"]), [path for path, _ in taken]
    for which in ("final", "best"):
        weights = read_tensors(run / finished[which]["weights"])
        with atomic_folder(out / which) as draft:
            if form == "delta":
                write_delta(draft, out / which, model, root, finished["attention"], dtype, weights, settings.lora_scale)
                add_stages(draft, stages, files)
            else:
                # Loaded anew for each: adapters are added to the weights of the bases, never to merged ones.
                network, processor = load_model(model, root, finished["attention"], dtype, check=which == "final")
                apply_stages(network, stages, files, dtype)
                merge_weights(network, weights, settings.lora_scale)
                _save(network, processor, draft, form)
            write_json(draft / "manifest.json", _manifest(draft, which, finished, form, settings.quantize))


def _save(
    network: "VisualChatForConditionalGeneration", processor: "VisualChatProcessor", folder: Path, form: str
) -> None:
    from model.llava_export import to_llava
    from model.remote_code import save_with_code

    if form == "full":
        save_with_code(network, processor, folder)
        return
    try:
        stock = to_llava(network, processor)
    except ValueError as error:
        raise UserError(str(error)) from None
    for part in stock:
        part.save_pretrained(folder)


def _check_model(run: Path, finished: dict[str, Any], model: Path) -> None:
    from scripts.training import fingerprint

    trained = read_json(run / finished["state"] / "inputs.json")["model"]
    if fingerprint.manifest_sha256(model) != trained:
        raise UserError(f"{run} was trained from another model than {model} holds now; train again")


def _manifest(folder: Path, which: str, finished: dict[str, Any], form: str, quantize: str) -> dict[str, Any]:
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    return {
        "v": 1,
        "run": finished["run"],
        "which": which,
        "form": form,
        "fingerprint": finished["fingerprint"],
        "attention": finished["attention"],
        "step": finished[which]["step"],
        "heldout_loss": finished[which]["heldout_loss"],
        "weights": finished[which]["sha256"],
        **({} if quantize == "none" else {"quantize": quantize}),
        "files": files,
        "sha256": text_sha256(canonical_json(files)),
    }


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--run", required=True, type=Path, help="folder train/<run> of a finished run")
    arguments.add_argument("--model", required=True, type=Path, help="folder models/<model> that it started from")
    arguments.add_argument("--root", required=True, type=Path, help="results root, where bases may lie")
    arguments.add_argument("--out", required=True, type=Path, help="folder to write: exported/<run>")
    arguments.add_argument("--form", choices=FORMS, default="full", help="what the folders hold (default: %(default)s)")
    args = arguments.parse_args()
    export(args.run, args.model, args.root, args.out, args.form)


if __name__ == "__main__":
    run_program(main)
