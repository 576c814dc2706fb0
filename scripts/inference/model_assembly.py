"""Builds a VisualChat model from its bases, and loads it from the small folder that describes it.

`models/<model>/` holds what is new and how the parts are joined: config.json, the processor with its tokenizer, the
projector and the embedding rows of new tokens (`projector.safetensors`), and `manifest.json` with the path and hash
of every base. The bases themselves are not copied: a language model may weigh 140 GB.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.blending.tokens_identity import load_tokenizer, template_of, tokens_identity
from scripts.common.errors import UserError, damaged
from scripts.common.files import file_sha256, read_json, write_json
from scripts.common.verified_folder import check_folder
from scripts.config.model import ModelConfig
from scripts.config.tokenizer_check import difference, has_tokenizer
from scripts.config.tokens import TokensConfig
from scripts.inference.base_folders import find_base, folder_sha256

if TYPE_CHECKING:
    import torch

    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor
    from scripts.inference.stages import Stages

DELTA = "delta.safetensors"
_DELTA_FACTS = "delta.json"
_STAGE = "stage-{}.safetensors"
NEW_WEIGHTS = "projector.safetensors"
"""The file of what no base holds: the projector, and the embedding rows of new tokens under `NEW_ROWS`."""
NEW_ROWS = "new_rows."
_JOINING = ("projector", "projector_queries", "vision_feature_layer", "vision_class_token")


def make_model(
    settings: ModelConfig, tokens: TokensConfig, bases: dict[str, str], root: Path, out: Path
) -> dict[str, Any]:
    """Write the folder `out` of a model joined from `bases` (vision, language, tokenizer: folders or hub names).

    Paths of bases below `root` are stored relative to it. Returns the manifest.

    Raises:
        UserError: a base is missing or cannot be used, or an image does not become as many tokens as `tokens` counts.
    """
    import torch
    from safetensors import SafetensorError

    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor
    from scripts.common.atomic_folder import atomic_folder

    folders = {kind: find_base(name, root) for kind, name in bases.items()}
    for folder in folders.values():
        check_folder(folder)
    tokenizer = load_tokenizer(str(folders["tokenizer"]))
    _check_tokenizer(tokenizer, folders, bases)
    template = template_of(tokens, tokenizer)
    identity = tokens_identity(tokenizer, template, tokens.image_tokens)
    processor = VisualChatProcessor.from_base_models(folders["vision"], tokenizer, tokens.image_tokens, template)
    torch.manual_seed(settings.seed)
    try:
        model = VisualChatForConditionalGeneration.from_base_models(
            folders["vision"],
            folders["language"],
            processor.tokenizer,
            template=template,
            dtype=torch.float32,
            **settings.projector_options(),
        )
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{bases['vision']} and {bases['language']} cannot be joined: {error}") from None
    if model.config.image_tokens != tokens.image_tokens:
        # The rules give no name: an entry of `tokens` that is renamed is the same.
        entry = f"tokens.{settings.tokens}" if settings.tokens else "the model's entry of `tokens`"
        raise UserError(
            f"{bases['vision']} makes {model.config.image_tokens} tokens of an image, but {entry} counts "
            f"{tokens.image_tokens}; set its image_tokens to {model.config.image_tokens}"
        )

    with atomic_folder(out) as draft:
        model.config.save_pretrained(draft)
        processor.save_pretrained(draft)
        _write_new_weights(model, _rows_of_language(folders["language"]), draft / NEW_WEIGHTS)
        files = {path.name: file_sha256(path) for path in sorted(draft.iterdir())}
        manifest = {
            "v": 1,
            "files": files,
            "bases": {
                kind: {"path": _stored_path(bases[kind], folders[kind], root), "sha256": folder_sha256(folders[kind])}
                for kind in sorted(bases)
            },
            "tokens_identity": identity,
            "image_tokens": tokens.image_tokens,
            "sha256": folder_sha256(draft),
        }
        write_json(draft / "manifest.json", manifest)
    return manifest


def _check_tokenizer(tokenizer: Any, folders: dict[str, Path], bases: dict[str, str]) -> None:
    """Refuse a tokenizer that is not the decoder's.

    Raises:
        UserError: it turns texts into other numbers than the decoder's own, or its size does not fit.
    """
    given = getattr(tokenizer, "backend_tokenizer", None)
    if given is None:
        return  # not a fast one, which `tokens_identity` refuses
    own = given if folders["language"].resolve() == folders["tokenizer"].resolve() else None
    if own is None and has_tokenizer(folders["language"]):
        own = getattr(load_tokenizer(str(folders["language"])), "backend_tokenizer", None)
    rows = _rows_of_language(folders["language"])
    if problem := difference(given, own, rows, bases["tokenizer"], bases["language"]):
        raise UserError(problem)


def load_model(
    folder: Path,
    root: Path,
    attention: str,
    dtype: "torch.dtype | None" = None,
    check: bool = True,
    keep_language_dtype: bool = False,
) -> "tuple[VisualChatForConditionalGeneration, VisualChatProcessor]":
    """Load the model that `folder` describes, with the given attention.

    Args:
        folder: models/<model>.
        root: results root, which paths of bases may be relative to.
        attention: its name, see `RunConfig.attention`.
        dtype: of all weights (default float32).
        check: compare the hashes of folder and bases with the manifest; one process of several may do it for all.
        keep_language_dtype: leave the decoder in the dtype of its files, see `partition.py` and `quantization.py`.

    Raises:
        UserError: a base is missing or is not the one that the model was made from.
    """
    import torch

    manifest = read_json(folder / "manifest.json")
    folders = _bases(manifest["bases"], root, folder, check)
    if check:
        check_folder(folder)
    if check and folder_sha256(folder) != manifest["sha256"]:
        raise damaged(folder, "has changed since it was made")
    return _join(folder, folders, attention, dtype or torch.float32, keep_language_dtype)


def _bases(bases: dict[str, dict[str, str]], root: Path, folder: Path, check: bool = True) -> dict[str, Path]:
    """The folders of the bases that `folder` names relative to `root`.

    Raises:
        UserError: one is missing or, if `check`, has another hash.
    """
    folders = {kind: find_base(base["path"], root) for kind, base in bases.items()}
    for kind, path in folders.items():
        if check:
            check_folder(path)
        if check and folder_sha256(path) != bases[kind]["sha256"]:
            raise UserError(f"{path} has changed since {folder} was made from it; make the model again")
    return folders


def _join(
    folder: Path, folders: dict[str, Path], attention: str, dtype: "torch.dtype", keep_language_dtype: bool = False
) -> "tuple[VisualChatForConditionalGeneration, VisualChatProcessor]":
    """Join the bases in `folders` as `folder` describes it, with its new weights."""
    import torch

    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor
    from scripts.common.tensors import read_tensors

    config = read_json(folder / "config.json")
    processor = VisualChatProcessor.from_pretrained(folder)
    model = VisualChatForConditionalGeneration.from_base_models(
        folders["vision"],
        folders["language"],
        processor.tokenizer,
        template=processor.template,
        dtype=dtype,
        keep_language_dtype=keep_language_dtype,
        attention=attention,
        **{name: config[name] for name in _JOINING},
    )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in read_tensors(folder / NEW_WEIGHTS).items():
            rows = name.startswith(NEW_ROWS)
            parameter = parameters[name.removeprefix(NEW_ROWS)]
            (parameter[-len(value) :] if rows else parameter).copy_(value)
    return model, processor


def write_delta(
    draft: Path,
    final: Path,
    model: Path,
    root: Path,
    attention: str,
    dtype: "torch.dtype",
    weights: "dict[str, torch.Tensor]",
    scale: float,
) -> None:
    """Write into `draft`, which will be renamed to `final`, what was trained of the model in the folder `model`.

    `weights` are the trained weights (fp32, by parameter name); `scale` is that of the adapters among them. The bases
    are stored by hash and, below `root`, by their path relative to `final`, so that the whole root may move.
    """
    import shutil

    from scripts.common.tensors import write_tensors

    for path in model.iterdir():
        if path.is_file() and path.name != "manifest.json":
            shutil.copy2(path, draft / path.name)
    write_json(draft / "config.json", read_json(draft / "config.json") | {"attention": attention})
    write_tensors(draft / DELTA, weights)
    bases = read_json(model / "manifest.json")["bases"]
    for base in bases.values():
        if (root / base["path"]).is_dir() and not Path(base["path"]).is_absolute():
            base["path"] = Path(os.path.relpath(root / base["path"], final)).as_posix()
    facts = {"v": 1, "bases": bases, "lora_scale": scale, "dtype": str(dtype).removeprefix("torch.")}
    write_json(draft / _DELTA_FACTS, facts)


def add_stages(draft: Path, stages: "Stages", files: Sequence[Path]) -> None:
    """Add what the stages before the run have trained, the contents of `files`, to a delta that has been written."""
    import shutil

    if not stages:
        return
    kept = []
    for number, (stage, file) in enumerate(zip(stages, files, strict=True)):
        shutil.copyfile(file, draft / _STAGE.format(number))
        kept.append({"lora_scale": stage["lora_scale"], "continued": stage["continued"]})
    write_json(draft / _DELTA_FACTS, read_json(draft / _DELTA_FACTS) | {"stages": kept})


def load_delta(
    folder: Path, quantize_on: "torch.device | None" = None
) -> "tuple[VisualChatForConditionalGeneration, VisualChatProcessor]":
    """Load the model of a `delta` folder: its bases, checked by their hashes, with the trained weights merged.

    With `quantize_on`, a device, the decoder is quantised to 4 bits, and its adapters stay beside its layers: the model
    of a run with `quantize: nf4` as it was trained.

    Raises:
        UserError: a base is missing or is not the one that the weights were trained with.
    """
    import torch

    from scripts.common.tensors import read_tensors
    from scripts.inference.lora import load_adapters, merge_weights
    from scripts.inference.quantization import quantize_decoder
    from scripts.inference.stages import apply_stages

    facts = read_json(folder / _DELTA_FACTS)
    folders = _bases(facts["bases"], folder, folder)
    attention = read_json(folder / "config.json")["attention"]
    dtype, stages = getattr(torch, facts["dtype"]), facts.get("stages", [])
    model, processor = _join(folder, folders, attention, dtype, keep_language_dtype=quantize_on is not None)
    apply_stages(model, stages, [folder / _STAGE.format(number) for number in range(len(stages))], dtype)
    weights = read_tensors(folder / DELTA)
    if quantize_on is not None:
        quantize_decoder(model, quantize_on, dtype)
        weights = load_adapters(model, weights, facts["lora_scale"], dtype)
    merge_weights(model, weights, facts["lora_scale"])
    return model, processor


def _stored_path(name: str, folder: Path, root: Path) -> str:
    """How the manifest names a base: by its path from `root` if it lies below, else as given."""
    relative = os.path.relpath(folder, root)
    inside = Path(name).is_dir() and not relative.startswith(os.pardir)
    return Path(relative).as_posix() if inside else name


def _rows_of_language(folder: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).vocab_size


def _write_new_weights(model: "VisualChatForConditionalGeneration", old_rows: int, path: Path) -> None:
    """Save what no base holds: the projector, and the rows of tokens that the language model did not have."""
    from scripts.common.tensors import write_tensors

    new = {name: value for name, value in model.named_parameters() if name.startswith("projector.")}
    tables = {id(table.weight) for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, value in model.named_parameters():
        if id(value) in tables and len(value) > old_rows:
            new[NEW_ROWS + name] = value[old_rows:]
    write_tensors(path, {name: value.detach() for name, value in new.items()})
