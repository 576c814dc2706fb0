"""Extract the vision encoder of Qwen-VL-Chat into a folder that `models.<name>.vision` can name.

    python -m scripts.extract_qwen_encoder --source Qwen/Qwen-VL-Chat --out bases/qwen-vision

    reads   config.json and, of the weight files, those that hold parameters named `transformer.visual.*`
    writes  <out>/: config.json, model.safetensors (2B parameters, about 4 GB), preprocessor_config.json

`--source` is a folder, or a name on the hub, from which only the files needed are fetched. Weights are read as plain
tensors: no code of the source is run, neither from its Python files nor from its pickles. Every parameter must
exist, once, in its shape, and none may be left over but `proj`, the last matrix, which the projector replaces.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from model.configuration import QwenVisionConfig

PREFIX = "transformer.visual."
UNUSED = {"proj"}
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def extract(source: str, out: Path) -> None:
    """Write the encoder of the model in `source` to `out`.

    Raises:
        UserError: the source is not a Qwen-VL, a file of it is missing, or its parameters are not exactly those of the
            encoder.
    """
    import torch
    from PIL.Image import Resampling
    from transformers import CLIPImageProcessorPil

    from model.qwen_vision import QwenVisionModel
    from scripts.common.atomic_folder import atomic_folder

    fetch = fetcher(source)
    path = fetch("config.json")
    if path is None:
        raise UserError(f"{source} has no config.json; name Qwen/Qwen-VL-Chat or a folder of its files")
    config = encoder_config(read_json(path), source)
    with torch.device("meta"):
        model = QwenVisionModel(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = dict(parameters(fetch))
    check(expected, {name: tuple(value.shape) for name, value in weights.items()}, source)
    model.load_state_dict({name: weights[name].contiguous() for name in expected}, strict=True, assign=True)
    model.config.dtype = weights["conv1.weight"].dtype
    side = {"height": config.image_size, "width": config.image_size}
    images = CLIPImageProcessorPil(
        size=side, do_center_crop=False, resample=Resampling.BICUBIC, image_mean=list(_MEAN), image_std=list(_STD)
    )
    with atomic_folder(out) as draft:
        model.save_pretrained(draft)
        images.save_pretrained(draft)


def encoder_config(config: dict[str, Any], source: str) -> "QwenVisionConfig":
    """The encoder's configuration, from the whole model's.

    Raises:
        UserError: it has none.
    """
    from model.configuration import QwenVisionConfig

    visual = config.get("visual")
    if not isinstance(visual, dict):
        raise UserError(
            f"{source}: config.json has no section 'visual'; name Qwen/Qwen-VL-Chat or a folder of its files"
        )
    return QwenVisionConfig(
        image_size=visual["image_size"],
        patch_size=visual["patch_size"],
        vit_width=visual["width"],
        num_hidden_layers=visual["layers"],
        num_attention_heads=visual["heads"],
        intermediate_size=int(visual["width"] * visual["mlp_ratio"]),
        hidden_size=visual["output_dim"],
        resampler_queries=visual.get("n_queries", 256),
        resampler_heads=visual["output_dim"] // 128,
    )


def fetcher(source: str) -> Callable[[str], Path | None]:
    """A function that returns the path of a file of the source by its name, or None if there is no such file."""
    folder = Path(source)
    if folder.is_dir():
        return lambda name: folder / name if (folder / name).is_file() else None

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError as error:
            raise UserError(f"{source!r} is no folder, and the hub cannot be reached: {error}") from None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{source!r} is neither a folder nor a model of the hub: {reason}") from None

    return download


def parameters(fetch: Callable[[str], Path | None]) -> Iterator[tuple[str, "Tensor"]]:
    """Yield the encoder's parameters and their names in it, reading only files that hold some.

    Raises:
        UserError: a file is missing, or there are no weights at all.
    """
    for file, names in weight_files(fetch).items():
        path = fetch(file)
        if path is None:
            raise UserError(f"{file} is missing: the index of the weights names it")
        for name, value in read_tensors(path, names):
            yield name.removeprefix(PREFIX), value


def weight_files(fetch: Callable[[str], Path | None]) -> dict[str, set[str] | None]:
    """The files that hold parameters of the encoder, and the names of these; None: all that the file holds.

    Raises:
        UserError: the source has no weights.
    """
    for index in _INDICES:
        if (path := fetch(index)) is not None:
            files: dict[str, set[str]] = {}
            for name, file in read_json(path)["weight_map"].items():
                if name.startswith(PREFIX):
                    files.setdefault(file, set()).add(name)
            return dict(files)
    for file in _WHOLE:
        if fetch(file) is not None:
            return {file: None}
    raise UserError(f"the source has no weights: none of {', '.join((*_INDICES, *_WHOLE))} is there")


def read_tensors(path: Path, names: set[str] | None) -> Iterator[tuple[str, "Tensor"]]:
    """Yield tensors of a safetensors file or of a PyTorch file, which may hold nothing but tensors.

    `names` are those to read; None: all of the encoder.

    Raises:
        UserError: a file cannot be read, or holds other objects.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    def selected(name: str) -> bool:
        return name in names if names is not None else name.startswith(PREFIX)

    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                stored = file.keys()
                yield from ((name, file.get_tensor(name)) for name in stored if selected(name))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or cut off, get it again: {error}") from None
        return
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - of many kinds, none of which means that the file can be trusted
        raise UserError(f"{path} is no plain file of tensors: {str(error).splitlines()[0]}") from None
    yield from ((name, value) for name, value in tensors.items() if selected(name))


def check(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise UserError unless names and shapes are exactly those expected."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys() - UNUSED)
    wrong = [
        f"{name} is {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
    ]
    for what, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong)):
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{source} is not the encoder of Qwen-VL-Chat; parameters {what}: {shown}")


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    source = "folder, or name on the hub (default: %(default)s)"
    arguments.add_argument("--source", default="Qwen/Qwen-VL-Chat", help=source)
    arguments.add_argument("--out", required=True, type=Path, help="folder to write")
    args = arguments.parse_args()
    extract(args.source, args.out)


if __name__ == "__main__":
    run_program(main)
