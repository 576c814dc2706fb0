"""Divides a run into global batches, ranks and micro-batches, and turns their conversations into tensors.

Global batch b of an epoch is units [b*G, (b+1)*G) of its blend folder, in the plan's order (longest first). A unit is a
row of a batch: one conversation, or a pack of several that do not see each other (`document_ids`). Rank r of W takes r,
r+W, r+2W, ... of them and computes them at most `micro_batch` at a time. Where nothing is left for a rank
(the last batch of an epoch may be short), it gets a *filler*: one token without a label. So every rank makes
the same number of forward and backward passes (collectives would hang otherwise), and no filler counts in any loss.

Everything is a function of the step number: there is no order to draw, no iterator state to save, and a run that
resumes at step s simply reads step s. Neither ranks, worker processes, how images are stored, nor the pixel store
change what a batch holds. With the feature store it holds the features of images in place of their pixels.

What a step needs to know of its whole global batch (how many labels there are) is in the blend's table of counts, so
that it can begin with its first micro-batch. Everything in a batch that has a size is computed here, by the processes
that prepare it: the GPU never has to be asked.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.batch_layout import BatchLayout, LabelIndex, LayoutOptions
from model.documents import IMAGE, compute_position_ids
from model.label_loss import chunks_needed
from model.processing import VisualChatProcessor
from model.template import IGNORE_INDEX, TEXT, EncodedConversation
from model.tensor_maps import map_tensors
from scripts.common.errors import UserError, damaged, machine_error
from scripts.inference.blend_reader import COUNTS_NAME, BlendReader, Sample
from scripts.inference.decoded_images import DecodedImageCache
from scripts.media.feature_store import FeatureStore
from scripts.media.opening import UnreadableImageError
from scripts.media.pixel_store import PixelStore

MODEL_INPUTS = ("input_ids", "pixel_values", "image_features")
"""The tensors of a micro-batch that the model takes; what else the processor collates is in layout and index."""

_Document = tuple[EncodedConversation, list[np.ndarray]]
"""A conversation and its images, in the form that the processor collates: (3, H, W) uint8, or features."""


@dataclass
class StepCounts:
    """What a global batch holds on all ranks: supervised tokens by dataset, and tokens without padding."""

    labels: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


@dataclass
class MicroBatch:
    """One micro-batch of one rank.

    `tensors` are the tokens, labels and images that the processor collated; `layout` and `index` say where they lie
    (model/batch_layout.py), `label_datasets` (n,) the number of the dataset of each label. `datasets` names the dataset
    of every conversation, in their order ('' for a filler). `labels` counts supervised tokens by dataset, `tokens` all
    tokens without padding and fillers, `pairs` the pairs of a token and one that its attention looks at. `head_chunks`:
    how often the head is called. `step`: counts of the global batch.
    """

    tensors: dict[str, Tensor]
    layout: BatchLayout
    index: LabelIndex
    label_datasets: Tensor
    datasets: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    pairs: int = 0
    head_chunks: int = 1
    step: StepCounts = field(default_factory=StepCounts)

    @property
    def padded_tokens(self) -> int:
        """Tokens that are computed: those of the conversations, and what padding the layout leaves."""
        return self.layout.tokens

    def pin_memory(self) -> "MicroBatch":
        """The same in page-locked memory, from which a GPU copies while it computes; PyTorch's loader calls it."""
        used = {name: self.tensors[name] for name in MODEL_INPUTS if name in self.tensors}
        parts = {"tensors": used, "layout": self.layout, "index": self.index, "label_datasets": self.label_datasets}
        return replace(self, **{name: map_tensors(part, Tensor.pin_memory) for name, part in parts.items()})


class MicroBatchDataset(Dataset[MicroBatch]):
    """The micro-batches of one rank over all epochs, by number: item `step * accumulation + micro`."""

    def __init__(
        self,
        epochs: Sequence[BlendReader],
        processor: VisualChatProcessor,
        options: LayoutOptions,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        ranks: int = 1,
        limit: int = 0,
        names: Sequence[str] = (),
        pixels: PixelStore | None = None,
        features: FeatureStore | None = None,
    ) -> None:
        """Divide `epochs` (one reader per epoch) into batches.

        Args:
            epochs: a blend folder for every epoch.
            processor: of the model.
            options: of the model's layouts, where it will run (`VisualChatForConditionalGeneration.layout_options`).
            global_batch: units of a step, on all ranks.
            micro_batch: most units that a rank computes at once.
            rank: number of this rank.
            ranks: number of ranks.
            limit: if above 0, only the first so many global batches of each epoch are used.
            names: of all datasets, in the order of their numbers; empty: those of `epochs`, sorted.
            pixels: decoded images; without it images are decoded here.
            features: of all images; batches then have `image_features` (N, tokens, width) bf16, and no pixels.

        Raises:
            UserError: a blend has no table of counts.
        """
        self.epochs, self.processor, self.options = list(epochs), processor, options
        self._store = pixels if features is None else features
        names = names or sorted({name for reader in self.epochs for name in reader.datasets})
        self._numbers = {name: number for number, name in enumerate(names)} | {"": 0}
        self.global_batch, self.rank, self.ranks = global_batch, rank, ranks
        self.accumulation, self.micro_batch = divide_batch(global_batch, ranks, micro_batch)
        # The same in every batch and on every rank, as sharded weights require; and reading it opens the counts.
        most_labels = self.micro_batch * max(reader.most_labels for reader in self.epochs)
        self._chunks = chunks_needed(most_labels, options.vocabulary)
        available = [-(-reader.units // global_batch) for reader in self.epochs]
        self.steps_per_epoch = [min(steps, limit) if limit else steps for steps in available]
        self.steps = sum(self.steps_per_epoch)
        self._images = DecodedImageCache(processor)
        self._filler = EncodedConversation([processor.tokenizer.eos_token_id], [IGNORE_INDEX], [TEXT], [])

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def locate(self, step: int) -> tuple[int, int]:
        """Return (epoch, first unit) of the 0-based step `step`; the end of the run is (epochs, 0)."""
        for epoch, steps in enumerate(self.steps_per_epoch):
            if step < steps:
                return epoch, step * self.global_batch
            step -= steps
        return len(self.epochs), 0

    def units(self, step: int) -> tuple[int, range]:
        """Return the epoch and the units of the global batch of `step`, of all ranks."""
        epoch, first = self.locate(step)
        return epoch, range(first, min(first + self.global_batch, self.epochs[epoch].units))

    def __getitem__(self, item: int) -> MicroBatch:
        """Read, encode and collate one micro-batch.

        Raises:
            UserError: a conversation does not have the length that its plan counted, or an image cannot be decoded.
        """
        step, micro = divmod(item, self.accumulation)
        epoch, units = self.units(step)
        reader = self.epochs[epoch]
        datasets: list[str] = []
        labels, tokens = Counter[str](), 0
        rows: list[list[_Document]] = []
        for unit in self._share(units, self.rank, micro):
            documents, of_unit, length = [], Counter[str](), 0
            for position in reader.members(unit):
                sample = reader.read(position, images=self._store is None)
                documents.append(self._encode(sample, reader))
                datasets.append(sample.dataset)
                of_unit[sample.dataset] += sample.n_labels
                length += sample.n_tokens
            if reader.counts(range(unit, unit + 1)) != (of_unit, length):
                raise damaged(reader.folder / COUNTS_NAME, f"does not count what unit {unit} holds")
            rows.append(documents)
            labels += of_unit
            tokens += length
        batch = self._batch(rows, datasets) if rows else self.filler()
        return replace(batch, labels=labels, tokens=tokens, step=self.step_counts(step))

    def step_counts(self, step: int) -> StepCounts:
        """What the global batch of `step` holds, on all ranks."""
        epoch, units = self.units(step)
        return StepCounts(*self.epochs[epoch].counts(units))

    def conversations(self, step: int) -> Iterator[tuple[str, MicroBatch]]:
        """Yield this rank's conversations of a step one by one: their uids, and a batch of each alone."""
        epoch, units = self.units(step)
        reader = self.epochs[epoch]
        for unit in units[self.rank :: self.ranks]:
            for position in reader.members(unit):
                sample = reader.read(position, images=self._store is None)
                batch = self._batch([[self._encode(sample, reader)]], [sample.dataset])
                yield "+".join(sample.uids), replace(batch, tokens=sample.n_tokens)

    def first_with_images(self, most: int) -> list[int]:
        """The first `most` conversations of the first global batch that show an image, by their number in epoch 0."""
        reader, found = self.epochs[0], list[int]()
        for unit in self.units(0)[1]:
            for position in reader.members(unit):
                if len(found) < most and reader.read(position, images=False).image_sha256:
                    found.append(position)
        return found

    def alone(self, position: int, images: bool = True) -> MicroBatch:
        """Conversation `position` of epoch 0 as a batch of its own; without `images` it has none, only its text."""
        reader = self.epochs[0]
        sample = reader.read(position, images=self._store is None)
        document = self._encode(sample, reader)
        if not images:
            document = _without_images(document[0]), []
        batch = self._batch([[document]], [sample.dataset])
        return replace(batch, labels=Counter({sample.dataset: sample.n_labels}), tokens=len(document[0]))

    def filler(self) -> MicroBatch:
        """A micro-batch of one token that is neither supervised nor counted."""
        return self._batch([[(self._filler, [])]], [""])

    def _share(self, units: Sequence[int], rank: int, micro: int) -> Sequence[int]:
        """The units of a global batch that a rank computes in one micro-batch."""
        return units[rank :: self.ranks][micro * self.micro_batch :][: self.micro_batch]

    def _batch(self, rows: Sequence[Sequence[_Document]], datasets: list[str]) -> MicroBatch:
        """Collate rows of conversations, and lay them out."""
        tensors = self._collate([_packed(documents) for documents in rows])
        ids = None
        if any(len(documents) > 1 for documents in rows):
            ids = tensors["document_ids"] = _document_ids(rows, tensors["input_ids"].shape)
        layout = BatchLayout.build(tensors["modality"], options=self.options, document_ids=ids)
        index = LabelIndex.build(tensors["labels"], tensors["modality"], ids, layout.attention.order)
        label_datasets = torch.tensor([self._numbers[name] for name in datasets])[index.documents]
        pairs = count_pairs(tensors["modality"], ids, self.options.image_rows)
        return MicroBatch(tensors, layout, index, label_datasets, datasets, pairs=pairs, head_chunks=self._chunks)

    def load(self, first_step: int, workers: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches from `first_step` on; `workers` > 0 processes prepare them ahead of time.

        Raises:
            UserError: as for `__getitem__`.
        """
        # With a separate generator: the iterator draws a seed, which must not come from the model's random numbers.
        loader = DataLoader(
            _ErrorsAsItems(self),
            batch_size=None,
            sampler=range(first_step * self.accumulation, len(self)),
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _collate(self, documents: Sequence[_Document]) -> dict[str, Tensor]:
        tensors = self.processor.collate(documents, padding_side="right")
        if isinstance(self._store, FeatureStore) and "pixel_values" in tensors:
            tensors["image_features"] = tensors.pop("pixel_values").view(torch.bfloat16)
        return tensors

    def _encode(self, sample: Sample, reader: BlendReader) -> _Document:
        encoded = self.processor.encode(sample.messages)
        labels = sum(label != IGNORE_INDEX for label in encoded.labels)
        if (len(encoded), labels) != (sample.n_tokens, sample.n_labels):
            raise UserError(
                f"{reader.folder}: {'+'.join(sample.uids)} was planned with {sample.n_tokens} tokens and "
                f"{sample.n_labels} labels, but the model's processor makes {len(encoded)} and {labels}; blend and "
                "model must name the same `tokens`"
            )
        if self._store is not None:
            return encoded, [self._store.get(sha256) for sha256 in sample.image_sha256]
        images = []
        for number, image in enumerate(zip(sample.image_sha256, sample.images, strict=True), start=1):
            try:
                images.append(self._images.get(*image))
            except UnreadableImageError as error:
                what = f"image {number} of {'+'.join(sample.uids)} (sha256 {image[0]})"
                raise damaged(reader.folder, f"holds {what}, which cannot be decoded ({error})") from None
        return encoded, images


def divide_batch(global_batch: int, ranks: int, micro_batch: int) -> tuple[int, int]:
    """The micro-batches of a rank in a step, and the most units in each, at most `micro_batch`."""
    per_rank = -(-global_batch // ranks)
    accumulation = -(-per_rank // micro_batch)
    return accumulation, -(-per_rank // accumulation)


def count_pairs(modality: Tensor, document_ids: Tensor | None, image_rows: str) -> int:
    """The pairs of a token and one that its attention looks at: itself, and what precedes it in its document.

    `modality` and `document_ids` (B, T) are those of the model. A token of an image looks at itself alone, unless
    `image_rows` is 'causal'.
    """
    seen = compute_position_ids(modality, document_ids) + 1
    is_image = modality == IMAGE
    images = seen[is_image].sum() if image_rows == "causal" else is_image.sum()
    return int(seen[modality == TEXT].sum() + images)


def _without_images(encoded: EncodedConversation) -> EncodedConversation:
    """A conversation without the placeholders of its images: the text around them stays."""
    text = EncodedConversation()
    for token, label, modality in zip(encoded.input_ids, encoded.labels, encoded.modality, strict=True):
        if modality == TEXT:
            text.extend([token], TEXT, supervised=label != IGNORE_INDEX)
    return text


def _packed(documents: Sequence[_Document]) -> _Document:
    """Conversations one after the other in one row, with their images."""
    row = EncodedConversation()
    images: list[np.ndarray] = []
    for encoded, shown in documents:
        row.image_indices += [len(images) + index for index in encoded.image_indices]
        for name in ("input_ids", "labels", "modality"):
            getattr(row, name).extend(getattr(encoded, name))
        images += shown
    return row, images


def _document_ids(rows: Sequence[Sequence[_Document]], shape: Sequence[int]) -> Tensor:
    """Which conversation of its row each token belongs to (B, T): 1, 2, ..., and 0 for padding."""
    ids = torch.zeros(*shape, dtype=torch.int64)
    for row, documents in zip(ids, rows, strict=True):
        lengths = torch.tensor([len(encoded) for encoded, _ in documents])
        row[: int(lengths.sum())] = torch.repeat_interleave(torch.arange(1, len(documents) + 1), lengths)
    return ids


class _ErrorsAsItems(Dataset["MicroBatch | UserError"]):
    """Gives an error in place of the item that has it: an error in another process is shown as a traceback."""

    def __init__(self, batches: MicroBatchDataset) -> None:
        self._batches = batches

    def __getitem__(self, item: int) -> MicroBatch | UserError:
        try:
            return self._batches[item]
        except UserError as error:
            return error
        except (OSError, MemoryError) as error:
            message = machine_error(error)
            if message is None:
                raise
            return UserError(message)


def _ignore_signals(worker: int) -> None:
    """Leave signals to the rank: torchrun sends those that ask a run to stop to all of its processes."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch
