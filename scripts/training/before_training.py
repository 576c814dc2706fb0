"""The checks before the first step of a run, by a rank that has read data and model: what they refuse, and warnings.

A run that continues does not repeat them: `warnings.json` in its state holds what they found, for `finished.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.files import read_json, write_json
from scripts.config.base_facts import made_by_graph
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import NEW_ROWS, NEW_WEIGHTS
from scripts.inference.quantization import n_weights
from scripts.training import first_loss, safety
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import TrainingEngine
from scripts.training.start import start_files
from scripts.training.trainable import peak_rates

_FILE = "warnings.json"
_PROBE = [{"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("user", "assistant")]


class ChecksBeforeTraining:
    """The checks of one run. All ranks make the same; rank 0 writes what they found."""

    def __init__(self, settings: RunConfig, model_folder: Path, state: Path) -> None:
        """Prepare the checks of a run of the model in `model_folder`, whose state lies in `state`."""
        self.settings, self._folder = settings, model_folder
        self.from_start = trained_before(settings, state)
        bases = read_json(model_folder / "manifest.json")["bases"]
        self._language, self._vision = bases["language"]["path"], bases["vision"]["path"]
        self.pretrained = not made_by_graph(self._language)
        self.warnings: list[str] = []

    def check_model(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        parts: Sequence[BlendReader],
        steps: int,
    ) -> None:
        """Check a model against the parts of the blend and the settings, without running it.

        Raises:
            UserError: the run cannot end well.
        """
        safety.check_projector(self.settings, self.from_start)
        for part in parts:
            safety.check_length(part.most_tokens, model.config.text_config.to_dict(), part.folder)
        sizes = [sum(map(n_weights, part.parameters())) for part in (model.language_model, model.vision_tower)]
        safety.check_rates(self.settings, self._language, self._vision, (sizes[0], sizes[1]))
        if not self.pretrained:
            return
        rows = model.config.text_config.vocab_size
        new = set(range(rows - new_rows(self._folder), rows)) - {model.config.image_token_id}
        names = dict(zip(sorted(new), processor.tokenizer.convert_ids_to_tokens(sorted(new)), strict=True))
        used = set(processor.encode(_PROBE).input_ids)
        self.warnings += safety.lines(
            [
                safety.untrained_rows(self.settings, names, used, self.from_start),
                safety.decayed_embeddings(self.settings, peak_rates(self.settings)["embeddings"], steps),
            ]
        )

    def check_first_loss(self, engine: TrainingEngine, batches: MicroBatchDataset) -> str | None:
        """Measure the loss with and without images, and return it as text; None for a decoder made by the graph."""
        if not self.pretrained:
            return None
        measured = first_loss.measure_first_loss(engine, batches)
        self.warnings += safety.lines([first_loss.warning(measured, self.settings)])
        return None if measured is None else measured.describe()

    def write(self, state: Path) -> None:
        """Keep the warnings in the state of the run."""
        write_json(state / _FILE, self.warnings)


def read_warnings(state: Path) -> list[str]:
    """The warnings of a run; none for a state from before they were kept."""
    path = state / _FILE
    return list(read_json(path)) if path.exists() else []


def trained_before(settings: RunConfig, state: Path) -> set[str] | None:
    """The names of the weights that the stages before a run trained; None if these are still to be trained."""
    files = [path for path, _ in start_files(state)]
    if settings.start is not None and not files:
        return None
    names: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def new_rows(model_folder: Path) -> int:
    """How many rows the embeddings of a model have that its decoder's own table lacks."""
    with safe_open(model_folder / NEW_WEIGHTS, framework="pt") as file:
        tables = [name for name in file.keys() if name.startswith(NEW_ROWS)]  # noqa: SIM118 - it is no dictionary
        return max((file.get_slice(name).get_shape()[0] for name in tables), default=0)
