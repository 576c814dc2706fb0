"""Settings of a training run (read by `train`), and which of them change its results."""

import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from scripts.config.base import Section

Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
DEFAULT_RATE = 1e-3
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
_START = r"[A-Za-z0-9][A-Za-z0-9_-]*(:(final|best))?"


class Start(NamedTuple):
    """The run whose weights another one begins with, and which of its two results: final or best."""

    run: str
    which: str


class RunConfig(Section):
    """One training run of one model on one blend.

    The global batch is a setting of the blend. `ranks`, `nodes`, `micro_batch`, `zero`, `zero_hpz`, `offload`,
    `gradient_checkpointing`, `workers`, `pixels`, `deterministic`, `export`, the trackers and the checkpoint settings
    do not change the results: after a change of these an unfinished run continues instead of starting again.
    """

    RESULT_NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {"ranks", "nodes", "micro_batch", "zero", "zero_hpz", "offload", "gradient_checkpointing", "workers", "pixels"}
        | {"checkpoint_every", "keep_checkpoints", "export", "trackers", "project", "memory_gb", "deterministic"}
        | {"evaluate", "allow_high_rates"}
    )
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"early_stopping_patience", "optimizer", "features", "fused_layers", "compile", "quantize"}
    )
    """Settings that change the results but were added later: left out of the fingerprint if they have their default,
    so that earlier runs stay valid."""
    BY_CONTENT: ClassVar[frozenset[str]] = frozenset({"start"})
    """Settings that name something whose content is in the fingerprint, so that its name does not count."""

    model: str
    """Entry of `models`: the model that is trained."""
    blend: str
    """Entry of `blends` to train on."""
    attention: Literal["mmca", "causal", "dattn"] = "mmca"
    """`mmca`: the paper's two separate softmaxes over text and images; `causal`: ordinary attention; `dattn`: the two
    merged by their weights (keeps the behaviour of a pretrained language model at the first step)."""
    start: Annotated[str, Field(pattern=f"^{_START}$")] | None = None
    """Another run of the same model, whose weights this one begins with: `align`, `align:final` (the same) or
    `align:best`. What that run has trained and this one does not stays as it is, and is part of the result. Adapters of
    the same part, rank and scale continue; others are merged. Empty: the weights of `models`."""
    epochs: Positive = 1
    """Passes over the blend. With `redraw` each pass has its own samples and order."""
    learning_rate: Rate | None = None
    """Peak learning rate of the language model's trained parameters, and of all parts without a separate one. Empty:
    one for each part that is safe for the decoder's size and the way it is trained (docs/training.md)."""
    embeddings_learning_rate: Rate | None = None
    """Peak learning rate of the token embeddings. Empty: the same as `learning_rate`, or a safe one if that is
    empty."""
    projector_learning_rate: Rate | None = None
    """Peak learning rate of the projector. Empty: the same as `learning_rate`, or a safe one if that is empty."""
    vision_learning_rate: Rate | None = None
    """Peak learning rate of the vision encoder. Empty: the same as `learning_rate`, or a safe one if that is empty."""
    allow_high_rates: bool = False
    """Accept learning rates that a pretrained decoder or encoder does not survive: above 1e-4 for a whole one, 5e-3 for
    adapters, 1e-3 for token embeddings. They are refused otherwise."""
    optimizer: Literal["adamw"] = "adamw"
    """What turns gradients into updates (an entry of `scripts/training/optimizers.py`)."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's decay rates of the mean and of the mean square of gradients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay, applied to matrices only, never to norms and biases."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from zero; a tenth of all steps is usual."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up, until the last step (`scripts/training/schedules.py`)."""
    final_learning_rate: Share = 0.0
    """Learning rate at the last step as a share of the peak."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which larger gradients are clipped."""
    train_language: Literal["frozen", "lora", "full"] = "frozen"
    """How the decoder's layers are trained: not at all (the paper's choice), through low-rank adapters, or fully."""
    train_embeddings: bool = True
    """Whether the token embeddings are trained (with the output head if the two are tied)."""
    train_projector: bool = True
    """Whether the projector is trained. A new one must be; a trained one may be frozen."""
    train_vision: Literal["frozen", "lora", "full"] = "frozen"
    """How the vision encoder is trained. A frozen one is kept outside of the training engine and costs the least."""
    language_lora_rank: Positive = 16
    """Rank of the decoder's adapters (`train_language: lora`)."""
    vision_lora_rank: Positive = 16
    """Rank of the vision encoder's adapters (`train_vision: lora`)."""
    lora_scale: Annotated[float, Field(gt=0)] = 2.0
    """Factor of an adapter's update (alpha / rank). 2 is usual; that of the original is 1 / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of an adapter's inputs."""
    seed: int = 0
    """Seed of randomness inside the model, such as dropout. The data are not random: the plan fixes them."""
    quantize: Literal["none", "nf4"] = "none"
    """Keep the weights of the frozen decoder's linear layers in 4 bits (`nf4`, bitsandbytes), and train what stands
    beside them: projector and adapters (QLoRA). Embeddings and output head are not rounded. A quarter of the memory of
    bf16 weights; each step takes longer, and results differ by rounding. Needs bitsandbytes (`pip install
    bitsandbytes`); not with `train_language: full`, `zero` 3 or `compile`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations; the optimizer keeps fp32 copies. `bf16` if the GPU supports it; `fp16`
    on older ones, with dynamic loss scaling; `auto`: bf16 where this machine has a GPU that supports it, else fp32."""
    threads: Positive = 1
    """CPU threads of each rank. It changes the results, because it changes the order of sums."""
    evaluate_every: Natural = 0
    """Steps between measurements of the held-out loss; 0: only before training and after each epoch."""
    evaluate_batches: Natural = 0
    """Global batches of held-out conversations on which the loss is measured; 0: all of them."""
    early_stopping_patience: Natural = 0
    """Stop the run after this many consecutive measurements of the held-out loss without a new minimum; 0: never."""
    ranks: Positive = 2
    """Training processes on all nodes together: one per GPU, or one per (few) CPU cores."""
    nodes: Positive = 1
    """Machines, each with the same number of ranks."""
    memory_gb: Natural = 0
    """CPU memory that a job of this run requests per node, in GB; `python -m scripts.train --estimate` computes how
    much it needs. 0: 4 GB per rank, enough for the miniature."""
    micro_batch: Positive = 8
    """Conversations, or packs, in one forward pass of a rank: as many as memory allows. Gradients are accumulated over
    the global batch."""
    zero: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is sharded across ranks. 0: nothing, 1: optimizer state, 2: gradients too, 3: weights too."""
    zero_hpz: Positive = 1
    """Number of neighbouring ranks that hold a second copy of the weights among them (`zero` 3), so that they gather
    frozen weights from each other and not from all ranks. With the ranks of a node, on several nodes, that traffic
    stays inside the node; each GPU needs the weights divided by this number in addition. 1: no second copy."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in CPU memory instead of GPU memory, which is slower: the optimizer's state and its fp32 copies
    (`zero` >= 2), or these and the weights (`zero` 3)."""
    gradient_checkpointing: bool | Natural = False
    """Keep only each layer's input in the forward pass and recompute the rest in the backward pass: a third more
    computation, much less memory for activations. A number n does so in every n-th layer alone, which costs less where
    memory is left; `true` is 1, `false` is 0. The gradients are the same."""
    fused_layers: Literal["none", "liger"] = "none"
    """Kernels for norms, rotary positions and SwiGLU of a Llama-like decoder. `liger`: those of Liger Kernel (`pip
    install liger-kernel`), on a GPU: fewer launches and less memory for activations. Results differ by rounding."""
    compile: bool = False
    """Compile the decoder's layers with torch.compile, which fuses what lies between the matrix products and the
    attention. The first steps take longer. Not with `zero` 3. Results differ by rounding."""
    workers: Natural = 0
    """Processes per rank that prepare batches ahead of time. 0: between steps, for small images and few cores."""
    pixels: bool = False
    """Decode and resize every image once, into a store that all epochs and ranks read (150 kB for an image of 224
    pixels, below `pixels/`), instead of in every epoch. The batches are the same, bit for bit; useful if decoding is
    slower than the model."""
    features: bool = False
    """Run the frozen vision encoder once over every image, into a store that all epochs and ranks read (half a megabyte
    for an image of 256 tokens of width 1024, below `features/`), instead of in every step. Images are then not decoded
    in training, so `pixels` is only of use to the encoding itself. The features are rounded to bf16: in `bf16` the
    losses are the same to the rounding of the encoder's sums, in `fp32` and `fp16` to that of bf16. Useful if the
    encoder takes a notable share of a step and the disk has room. Needs `train_vision: frozen`."""
    deterministic: bool = True
    """On a GPU, use only deterministic algorithms, so that an interrupted run ends with the same numbers as an
    uninterrupted one. Set it to false if the decoder needs an operation without a deterministic algorithm."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints; a killed run repeats at most as many."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=["tensorboard"])
    """Where curves are logged in addition to `metrics.jsonl`. `wandb` and `trackio` must be installed (`pip install
    wandb`, `pip install trackio`)."""
    project: Annotated[str, Field(min_length=1)] = "visualchat"
    """Project name for `wandb` and `trackio`."""
    keep_checkpoints: Positive = 2
    """Number of checkpoints to keep. With at least 2 a run survives a damaged newest one."""
    evaluate: bool = True
    """Whether the trained model is exported, evaluated and locked; `false` for a stage that only another run starts
    from. Its curves are in the report all the same."""
    export: Literal["full", "delta"] = "full"
    """What the exported folders contain: `full`: all weights; `delta`: only the trained ones, with a verified reference
    to the base models, which must stay where they are. `delta` avoids copies of a large language model."""

    @field_validator("start", mode="before")
    @classmethod
    def _check_start(cls, value: object) -> object:
        if value is None or (isinstance(value, str) and re.fullmatch(_START, value)):
            return value
        raise ValueError("should be the name of a run, or NAME:final or NAME:best for one of its two results")

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _check_checkpointing(cls, value: object) -> object:
        if isinstance(value, bool) or (isinstance(value, int) and value >= 0):
            return value
        raise ValueError(f"{value!r} is none of: true (every layer), false (none), n (every n-th layer)")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        least = {"none": 0, "optimizer": 2, "parameters": 3}[self.offload]
        if self.zero < least:
            raise ValueError(
                f"offload {self.offload} needs zero >= {least}, not {self.zero}: only what is sharded can be offloaded"
            )
        if self.ranks % self.nodes:
            raise ValueError(f"ranks {self.ranks} cannot be spread equally over nodes {self.nodes}")
        self._check_second_copy()
        if self.compile and self.zero == 3:
            raise ValueError(
                "compile needs zero 0, 1 or 2: at 3 DeepSpeed gathers weights between the operations of a layer, and "
                "ranks whose graphs differ can wait for each other forever; use fused_layers there"
            )
        if self.compile and self.fused_layers != "none":
            raise ValueError(f"compile and fused_layers {self.fused_layers} replace the same operations; choose one")
        self._check_quantize()
        if self.features and self.train_vision != "frozen":
            raise ValueError(
                f"features: true needs train_vision: frozen, not {self.train_vision}: the output of an encoder that is "
                "trained changes in every step; set features: false, or pixels: true to store decoded images"
            )
        parts = (self.train_language, self.train_vision, self.train_embeddings, self.train_projector)
        if all(part in ("frozen", False) for part in parts):
            raise ValueError("everything is frozen, so there is nothing to train")
        return self

    def _check_quantize(self) -> None:
        if self.quantize == "none":
            return
        if self.train_language == "full":
            raise ValueError(
                f"quantize: {self.quantize} keeps the decoder's weights in 4 bits, which cannot take the small steps "
                "of training; set train_language: lora, which trains adapters beside them, or frozen"
            )
        if self.zero == 3:
            raise ValueError(
                f"quantize: {self.quantize} needs zero 0, 1 or 2: at 3 weights are divided among the ranks as numbers "
                "of one format, and these are packed; 4 bits are already an eighth of fp32"
            )
        if self.compile:
            raise ValueError(
                f"quantize: {self.quantize} and compile do not go together: the quantised layers of bitsandbytes are "
                "not made for torch.compile; set compile: false"
            )

    def _check_second_copy(self) -> None:
        if self.zero_hpz == 1:
            return
        if self.zero != 3:
            raise ValueError(
                f"zero_hpz {self.zero_hpz} is a second copy of divided weights, which needs zero 3, not {self.zero}; "
                "set it to 1"
            )
        if self.offload == "parameters":
            raise ValueError(
                f"zero_hpz {self.zero_hpz} is a second copy of the weights on the GPUs, and offload: parameters takes "
                "them away from there; leave one of them out"
            )
        ranks_here = self.ranks // self.nodes
        if ranks_here % self.zero_hpz:
            raise ValueError(
                f"zero_hpz {self.zero_hpz} does not divide the {ranks_here} ranks of a node; use {ranks_here}"
            )

    @property
    def language_rate(self) -> float:
        """The peak learning rate of the language model, and of all parts without a separate one."""
        return DEFAULT_RATE if self.learning_rate is None else self.learning_rate

    def rate_of(self, part: str) -> float:
        """The peak learning rate of a part: language, embeddings, projector or vision."""
        rates = {
            "embeddings": self.embeddings_learning_rate,
            "projector": self.projector_learning_rate,
            "vision": self.vision_learning_rate,
        }
        return self.language_rate if (rate := rates.get(part)) is None else rate

    @property
    def started_from(self) -> Start | None:
        """The run and the result that this one begins with, if it does not begin with the model as it was made."""
        if self.start is None:
            return None
        run, _, which = self.start.partition(":")
        return Start(run, which or "final")

    def numbers(self) -> dict[str, Any]:
        """The settings that change the results, as plain JSON values."""
        values = self.model_dump(mode="json", exclude=set(self.RESULT_NEUTRAL | self.BY_CONTENT))
        values["learning_rate"] = self.language_rate
        unset = {name for name in self.LATER if values[name] == type(self).model_fields[name].default}
        return {name: value for name, value in values.items() if name not in unset}
