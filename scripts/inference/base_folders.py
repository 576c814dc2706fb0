"""The folders of base models: found by a path or by a name on the hub, and hashed."""

from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.files import canonical_json, text_sha256
from scripts.common.verified_folder import remembered_sha256

_HASHED = {".json", ".safetensors", ".model", ".txt", ".jinja"}
_NOT_HASHED = {"manifest.json"}


def find_base(name: str, root: Path) -> Path:
    """Return the folder of a base: a folder as given, one below `root`, or a model of the hub, fetched if necessary.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(name), root / name):
        if folder.is_dir():
            return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in sorted(_HASHED)]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name!r} is neither a folder (also not below {root}) nor a model of the hub: {reason}"
        ) from None


def folder_sha256(folder: Path) -> str:
    """Hash of the names and contents of a model's files: weights, configuration, tokenizer."""
    files = [
        path for path in folder.iterdir() if path.is_file() and path.suffix in _HASHED and path.name not in _NOT_HASHED
    ]
    return text_sha256(canonical_json({path.name: remembered_sha256(path) for path in files}))
