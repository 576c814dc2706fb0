"""The peers of `benchmarks.train --peers`: what people train such a model with, on the same conversations.

    trainer            HF Trainer with the stock LLaVA of `transformers`, batches padded, in random order
    trainer, grouped   the same with conversations of about the same length in a batch
    trl                TRL's SFTTrainer with its own collator for images, in an environment of its own
                       (`make .neighbours/trl/.ready`)

LLaVA has the sizes of our model: the same encoder and decoder, and its own projector of two layers. As with ours, the
projector and the embeddings are trained and everything else is frozen, a step has as many conversations, and the
optimizer is AdamW. The chat template writes the text of ours, so that the same tokens are supervised; `check_tokens`
compares them. What runs is each library's own code, with its defaults wherever the comparison does not fix a value.

    PYTHONPATH=. PYTHON -m benchmarks.train_peers NAME FOLDER OPTIONS      # prints the measurements as JSON
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import peak_memory, reset_peak_memory
from benchmarks.train_candidates import Options, Step, measurements, settings
from benchmarks.train_data import IMAGE_SIDE, IMAGE_TOKENS, load_parts, load_processor

PEERS = ("trainer", "trainer, grouped", "trl")

_TEMPLATE = (
    "{%- set images = namespace(shown=0) -%}{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}"
    "{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}"
    "{%- for part in message.content if part.type == 'image' -%}"
    "{%- set images.shown = images.shown + 1 -%}"
    "{{ '### Image ' ~ images.shown ~ ':\\n<image>\\n\\n' }}"
    "{%- endfor -%}"
    "{{ '### Question:\\n' }}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}"
    "{{ '\\n\\n### Answer:\\n' }}"
    "{%- else -%}"
    "{%- generation -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{{ eos_token }}"
    "{%- endgeneration -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
"""Our default template in Jinja, with the answers marked."""


def llava(folder: Path) -> tuple[Any, Any]:
    """The stock LLaVA with encoder and decoder of our model, projector and embeddings trained, and its processor."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    encoder, language, device = load_parts(folder)
    tokenizer = load_processor(folder).tokenizer
    config = LlavaConfig(
        vision_config=encoder.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
    )
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=language.dtype)
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    model.model.language_model.load_state_dict(language.get_decoder().state_dict())
    model.lm_head.load_state_dict(language.get_output_embeddings().state_dict())
    model.requires_grad_(False)
    for part in (model.model.multi_modal_projector, model.get_input_embeddings()):
        part.requires_grad_(True)
    processor = LlavaProcessor(
        image_processor=load_processor(folder).image_processor,
        tokenizer=tokenizer,
        patch_size=encoder.config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # that of the class, which "default" then leaves out
        chat_template=_TEMPLATE,
    )
    return model, processor


class Conversations(torch.utils.data.Dataset):
    """The conversations of `benchmarks.train` with their images as JPEGs."""

    def __init__(self, folder: Path) -> None:
        from scripts.inference.blend_reader import BlendReader

        self._reader = BlendReader(folder / "baseline", folder)
        self.global_batch = self._reader.global_batch

    def __len__(self) -> int:
        return len(self._reader)

    def lengths(self) -> list[int]:
        """The tokens of every conversation."""
        return [self._reader.read(number, images=False).n_tokens for number in range(len(self))]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A conversation."""
        sample = self._reader[number]
        return {"messages": sample.messages, "images": list(sample.images)}


class Collator:
    """Makes a padded batch of conversations with the processor of LLaVA; labels are the marked answers."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch: input_ids, attention_mask, labels (B, T) and pixel_values (N, 3, height, width)."""
        from scripts.media.opening import open_image

        conversations = []
        for row in rows:
            pictures = []
            for data in row["images"]:
                with open_image(data) as picture:
                    pictures.append(picture.convert("RGB"))
            conversations.append(with_pictures(row["messages"], pictures))
        batch = self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right", "add_special_tokens": False},
        )
        labels = batch["input_ids"].clone()
        labels[batch.pop("assistant_masks") == 0] = -100
        return {**batch, "labels": labels}


def with_pictures(messages: list[dict[str, Any]], pictures: list[Any]) -> list[dict[str, Any]]:
    """The messages with a picture in every part that shows one."""
    return [
        message
        | {
            "content": [
                {"type": "image", "image": pictures[part["index"]]} if part["type"] == "image" else part
                for part in message["content"]
            ]
        }
        for message in messages
    ]


def check_tokens(folder: Path, count: int = 4) -> None:
    """Raise RuntimeError unless LLaVA's processor makes the tokens and labels of ours of the first conversations."""
    ours, (_, theirs) = load_processor(folder), llava(folder)
    data = Conversations(folder)
    for number in range(min(count, len(data))):
        batch = Collator(theirs)([data[number]])
        encoded = ours.encode(data[number]["messages"])
        same = batch["input_ids"][0].tolist() == encoded.input_ids and batch["labels"][0].tolist() == encoded.labels
        if not same or batch["pixel_values"].shape[-1] != IMAGE_SIDE:
            raise RuntimeError(f"conversation {number}: the peers' processor makes other tokens or labels than ours")


class StepClock:
    """Divides a training of HF Trainer into steps: the labels that the model was given, and the time between steps."""

    def __init__(self, model: Any) -> None:
        self.steps: list[Step] = []
        self._labels, self._losses = 0, 0.0
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._last = time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Begin to measure."""
        self._last = time.perf_counter(), time.process_time()

    def end_step(self) -> None:
        """A step has ended."""
        now = time.perf_counter(), time.process_time()
        costs = now[0] - self._last[0], now[1] - self._last[1], 0.0
        self.steps.append(Step(*costs, self._labels, 0.0, float("nan")))
        self._labels, self._last = 0, now

    def _count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        self._labels += int((inputs["labels"][:, 1:] != -100).sum())


def clocked(clock: StepClock) -> Any:
    """A callback of HF Trainer that moves the clock."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, *args: Any, **state: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **state: Any) -> None:
            clock.end_step()

    return Callback()


def arguments(folder: Path, options: Options, global_batch: int) -> dict[str, Any]:
    """What both trainers are given: one pass over the data in steps of as many conversations as ours, nothing saved."""
    run = settings(options, options.rows)
    return {
        "output_dir": str(folder / "peer"),
        "per_device_train_batch_size": options.rows,
        "gradient_accumulation_steps": max(1, global_batch // options.rows),
        "num_train_epochs": 1,
        "learning_rate": run.language_rate,
        "adam_beta1": run.betas[0],
        "adam_beta2": run.betas[1],
        "lr_scheduler_type": "constant",
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": options.workers,
    }


def hf_trainer(folder: Path, options: Options, grouped: bool) -> tuple[Any, StepClock]:
    """HF Trainer with LLaVA and our collator around its processor."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    model, processor = llava(folder)
    data, clock = Conversations(folder), StepClock(model)
    given = arguments(folder, options, data.global_batch)
    step = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]

    class GroupedTrainer(Trainer):
        # What its option does for a dataset of tokens; ours holds conversations, which it cannot measure.
        def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
            return LengthGroupedSampler(step, lengths=data.lengths())

    trainer = (GroupedTrainer if grouped else Trainer)(
        model=model,
        args=TrainingArguments(**given),
        train_dataset=data,
        data_collator=Collator(processor),
        callbacks=[clocked(clock)],
    )
    return trainer, clock


def trl_trainer(folder: Path, options: Options) -> tuple[Any, StepClock]:
    """TRL's SFTTrainer with LLaVA, the answers supervised, and nothing of ours in between."""
    from datasets import Dataset, Image, List
    from trl import SFTConfig, SFTTrainer

    model, processor = llava(folder)
    rows, clock = Conversations(folder), StepClock(model)

    def examples() -> Iterator[dict[str, Any]]:
        for number in range(len(rows)):
            row = rows[number]
            messages = [
                {"role": m["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in m["content"]]}
                for m in row["messages"]
            ]
            yield {"messages": messages, "images": [{"bytes": data, "path": None} for data in row["images"]]}

    dataset = Dataset.from_list(list(examples())).cast_column("images", List(Image()))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments(folder, options, rows.global_batch),
            assistant_only_loss=True,
            max_length=None,
            gradient_checkpointing=False,  # ours keeps its activations too
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=dataset,
        processing_class=processor,
        callbacks=[clocked(clock)],
    )
    return trainer, clock


def main() -> None:
    """Train with one peer and print its measurements."""
    name, folder, options = sys.argv[1], Path(sys.argv[2]), Options(**json.loads(sys.argv[3]))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    trainer, clock = (
        trl_trainer(folder, options) if name == "trl" else hf_trainer(folder, options, name == "trainer, grouped")
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = reset_peak_memory(device)
    trainer.train()
    print(json.dumps(measurements(clock.steps, before, peak_memory(device))))


if __name__ == "__main__":
    main()
