"""Settings of a training run (read by `train`), split into those that change its numbers and those that do not."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from scripts.sections.base import Section

Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Run(Section):
    """One training run of one model on one blend.

    The global batch belongs to the blend. `ranks`, `micro_batch`, `zero`, `workers`, `pixels`, `export` and the
    checkpoint settings only say how the same batches are computed and kept: changing them continues an unfinished run instead of
    starting a new one.
    """

    SAME_NUMBERS: ClassVar[frozenset[str]] = frozenset(
        {"ranks", "micro_batch", "zero", "workers", "pixels", "checkpoint_every", "keep_checkpoints", "export"}
    )

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
    clip: Annotated[float, Field(gt=0)] = 1.0
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
    language_rank: Positive = 16
    """Rank of the decoder's adapters (`train_language: lora`)."""
    vision_rank: Positive = 16
    """Rank of the vision encoder's adapters (`train_vision: lora`)."""
    lora_scale: Annotated[float, Field(gt=0)] = 2.0
    """Factor of an adapter's update (alpha / rank). 2 is usual; the original's was 1 / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is dropped in training."""
    seed: int = 0
    """Seed of what is random inside the model, such as dropout. Data never is: the plan holds every draw."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and activations; the optimiser keeps fp32 copies. `bf16` on GPUs, with `zero` >= 1."""
    threads: Positive = 1
    """CPU threads of each rank. Part of the cause: another number of threads adds numbers in another order."""
    evaluate_every: Natural = 0
    """Steps between measurements of the held-out loss; 0: only before training and after each epoch."""
    evaluate_batches: Natural = 0
    """How many global batches of held-out conversations the loss is measured on; 0: all of them."""
    ranks: Positive = 2
    """Processes that share the work: one per GPU, or one per core (or few) on a CPU."""
    micro_batch: Positive = 8
    """Conversations, or packs, that a rank computes at once: as many as memory allows. Gradients add up to the global
    batch."""
    zero: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is divided among ranks. 0 nothing, 1 optimiser state, 2 gradients too, 3 weights too."""
    workers: Natural = 0
    """Processes per rank that prepare batches ahead of time. 0: between steps, right for small images and few cores."""
    pixels: bool = False
    """Decode and resize every image once, into a store that all epochs and ranks read (150 kB an image of 224 pixels, below
    `pixels/`), instead of in every epoch. The batches are the same, bit for bit; it pays where decoding is slower than
    the model."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints; a killed run repeats at most as many."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept. At least 2 survives a damaged newest one."""
    export: Literal["full", "delta"] = "full"
    """What the exported folders hold: everything, or only what was trained, with a checked reference to the bases,
    which must then stay where they are. `delta` saves copying a large language model."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.precision == "bf16" and self.zero == 0:
            raise ValueError("precision bf16 needs zero >= 1, which keeps the fp32 copies of the weights")
        parts = (self.train_language, self.train_vision, self.train_embeddings, self.train_projector)
        if all(part in ("frozen", False) for part in parts):
            raise ValueError("everything is frozen, so there is nothing to train")
        return self

    def numbers(self) -> dict:
        """The settings that change the run's numbers, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(self.SAME_NUMBERS))
