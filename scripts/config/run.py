"""Settings of a training run (read by `train`), split into those that change its numbers and those that do not."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from scripts.config.base import Section

Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class RunConfig(Section):
    """One training run of one model on one blend.

    The global batch belongs to the blend. `ranks`, `nodes`, `micro_batch`, `zero`, `offload`, `gradient_checkpointing`,
    `workers`, `pixels`, `deterministic`, `export`, the trackers and the checkpoint settings only say how the same
    batches are computed, kept and shown: changing them continues an unfinished run instead of starting a new one.
    """

    RESULT_NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {"ranks", "nodes", "micro_batch", "zero", "offload", "gradient_checkpointing", "workers", "pixels"}
        | {"checkpoint_every", "keep_checkpoints", "export", "trackers", "project", "memory_gb", "deterministic"}
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"early_stopping_patience"})
    """Settings that change numbers and came later than the first runs: left out where they are as if they were not."""

    model: str
    """Entry of `models` to start from."""
    blend: str
    """Entry of `blends` to train on."""
    attention: Literal["mmca", "causal", "dattn"] = "mmca"
    """`mmca`: the paper's two separate softmaxes over text and images; `causal`: ordinary attention; `dattn`: the two
    merged by their weights (keeps a pretrained language model's behaviour at the first step)."""
    epochs: Positive = 1
    """Passes over the blend. With `redraw` each pass has its own draws and order."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the language model's trained parameters, and of every part without one of its own.
    Embeddings alone: 1e-3; adapters: 1e-4 to 2e-4; a whole language model: 2e-5 to 1e-4 for billions of parameters,
    4e-3 for the miniature."""
    embeddings_learning_rate: Rate | None = None
    """Peak learning rate of the token embeddings; empty: the same as `learning_rate`."""
    projector_learning_rate: Rate | None = None
    """Peak learning rate of the projector; empty: the same as `learning_rate`."""
    vision_learning_rate: Rate | None = None
    """Peak learning rate of the vision encoder; empty: the same as `learning_rate`."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's decay of the mean and of the mean square of gradients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay, applied to matrices only, never to norms and biases."""
    warmup_steps: Natural = 0
    """Steps over which the rate rises linearly from zero; a tenth of all steps is usual."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up, ending at the last step."""
    final_learning_rate: Share = 0.0
    """Rate at the end as a share of the peak rate."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; longer ones are scaled down."""
    train_language: Literal["frozen", "lora", "full"] = "frozen"
    """How the decoder's layers are trained: not at all (the paper's choice), through low-rank adapters beside them, or
    whole."""
    train_embeddings: bool = True
    """Whether the token embeddings are trained (with the output head where the two are tied)."""
    train_projector: bool = True
    """Whether the projector is trained. A new one must be; one that was trained before may rest."""
    train_vision: Literal["frozen", "lora", "full"] = "frozen"
    """How the vision encoder is trained. A frozen one stays outside the training engine and costs the least."""
    language_lora_rank: Positive = 16
    """Rank of the decoder's adapters (`train_language: lora`)."""
    vision_lora_rank: Positive = 16
    """Rank of the vision encoder's adapters (`train_vision: lora`)."""
    lora_scale: Annotated[float, Field(gt=0)] = 2.0
    """Factor of an adapter's update (alpha / rank). 2 is usual; the original's was 1 / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is dropped in training."""
    seed: int = 0
    """Seed of what is random inside the model, such as dropout. Data never is: the plan holds every draw."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations; the optimiser keeps fp32 copies. `bf16` where the GPU has it; `fp16` on
    older ones, with a loss scale that adapts itself."""
    threads: Positive = 1
    """CPU threads of each rank. Part of the cause: another number of threads adds numbers in another order."""
    evaluate_every: Natural = 0
    """Steps between measurements of the held-out loss; 0: only before training and after each epoch."""
    evaluate_batches: Natural = 0
    """How many global batches of held-out conversations the loss is measured on; 0: all of them."""
    early_stopping_patience: Natural = 0
    """End the run after so many measurements of the held-out loss in a row that were no better than the best; 0: it
    never ends early."""
    ranks: Positive = 2
    """Processes that share the work, on all nodes together: one per GPU, or one per core (or few) on a CPU."""
    nodes: Positive = 1
    """Machines that the ranks are spread over, equally many on each."""
    memory_gb: Natural = 0
    """Memory that a job of this run asks for on every node, in GB; `python -m scripts.train --estimate` tells how much
    it needs. 0: 4 GB for every rank there, enough for the miniature."""
    micro_batch: Positive = 8
    """Conversations, or packs, that a rank computes at once: as many as memory allows. Gradients add up to the global
    batch."""
    zero: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is divided among ranks. 0 nothing, 1 optimiser state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in the CPU's memory instead of the GPU's, at the price of speed: the optimiser's state and its fp32
    copies (`zero` >= 2), or these and the weights too (`zero` 3)."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input in the forward pass and compute the rest again in the backward pass: a third more
    work, for memory that no longer grows with what happens inside a layer. The gradients are the same."""
    workers: Natural = 0
    """Processes per rank that prepare batches ahead of time. 0: between steps, right for small images and few cores."""
    pixels: bool = False
    """Decode and resize every image once, into a store that all epochs and ranks read (150 kB an image of 224 pixels,
    below `pixels/`), instead of in every epoch. The batches are the same, bit for bit; it pays where decoding is slower
    than the model."""
    deterministic: bool = True
    """On a GPU, compute only with algorithms whose results repeat, so that a run that was interrupted ends with the
    same numbers as one that was not. A decoder whose code calls an operation that has none must go without."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints; a killed run repeats at most as many."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = ["tensorboard"]
    """Where the curves are shown beside `metrics.jsonl`, which is always written. `wandb` and `trackio` must be
    installed (`pip install wandb`, `pip install trackio`)."""
    project: Annotated[str, Field(min_length=1)] = "visualchat"
    """Project under which `wandb` and `trackio` file the run."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept. At least 2 survives a damaged newest one."""
    export: Literal["full", "delta"] = "full"
    """What the exported folders hold: everything, or only what was trained, with a checked reference to the bases,
    which must then stay where they are. `delta` saves copying a large language model."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        least = {"none": 0, "optimizer": 2, "parameters": 3}[self.offload]
        if self.zero < least:
            raise ValueError(
                f"offload {self.offload} needs zero >= {least}, not {self.zero}: only what is divided moves"
            )
        if self.ranks % self.nodes:
            raise ValueError(f"ranks {self.ranks} cannot be spread equally over nodes {self.nodes}")
        parts = (self.train_language, self.train_vision, self.train_embeddings, self.train_projector)
        if all(part in ("frozen", False) for part in parts):
            raise ValueError("everything is frozen, so there is nothing to train")
        return self

    def numbers(self) -> dict:
        """The settings that change the run's numbers, as plain JSON values."""
        values = self.model_dump(mode="json", exclude=set(self.RESULT_NEUTRAL))
        unset = {name for name in self.LATER if values[name] == type(self).model_fields[name].default}
        return {name: value for name, value in values.items() if name not in unset}
