"""The settings of a recipe, as frozen dataclasses; every number has its unit and range.

``recipe.load_recipe`` reads them from YAML and pydantic checks them. The defaults are the paper's
where it has them (Table 5).
"""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from dspy_diffusion_infill.yaml_settings import STRICT, Bool, Float, Int

LossName = Literal["masked_mean", "elbo"]
Form = Literal["full", "lora", "qlora"]
Shape = Literal["rows", "ungrouped", "worked_examples", "chat_adapter"]
TooLong = Literal["cut", "drop", "raise"]
WindowOrder = Literal["random", "left_to_right"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class LoraOptions:
    """Numbers of a LoRA adapter.

    Attributes:
        rank: >= 1.
        alpha: the update is scaled by alpha / rank.
        dropout: in [0, 1).
        target_modules: names of the adapted linear layers, or ``all-linear``.
    """

    rank: Int = 32
    alpha: Int = 64
    dropout: Float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AdaptOptions:
    """How a causal LM becomes a masked diffusion LM: causal mask dropped, shift kept.

    Attributes:
        mask_token: a token of the vocabulary that the model has no other use for; with
            ``form: full``, a new token is added where there is none of this name, which the other
            forms refuse: they would not train its embedding.
        annealing_steps: optimizer steps over which the later tokens come into sight; 0 is at once.
        context_length: tokens that the trained denoiser takes; None is the longest row's limit.
        block_length: masks that it fills best before those that follow; None is all at once.
        temperature: that suits it; None is the default of ``load_denoiser``.
    """

    mask_token: str
    annealing_steps: Int = 0
    context_length: Int | None = None
    block_length: Int | None = None
    temperature: Float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ModelOptions:
    """The model that is trained.

    Attributes:
        base: a denoiser's name, hub id or folder; with ``adapt``, a causal LM's.
        revision: branch, tag or commit of a hub checkpoint.
        form: all weights, a LoRA adapter, or one over 4-bit weights (bitsandbytes, GPU).
        lora: the adapter's numbers, where the form has one.
        adapt: where the base is a causal LM.
        adapter: folder of an adapter that training goes on from, of the same shape.
        bf16: compute in bfloat16; weights that are trained stay in float32.
        gradient_checkpointing: compute activations again in the backward pass; saves memory.
        compile: compile the layers (torch.compile, for batches of any shape): a minute or more at
            the start, and less time a step after it. Needs a C++ compiler on CPUs.
    """

    base: str
    revision: str | None = None
    form: Form = "full"
    lora: LoraOptions = field(default_factory=LoraOptions)
    adapt: AdaptOptions | None = None
    adapter: str | None = None
    bf16: Bool = True
    gradient_checkpointing: Bool = False
    compile: Bool = False

    def __post_init__(self) -> None:
        if self.adapter is not None and self.form == "full":
            raise ValueError(
                f"adapter={self.adapter!r} needs form=lora or form=qlora, got form=full"
            )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SourceOptions:
    """Where rows come from, and what is made of them.

    Attributes:
        path: a JSONL file, or a data set's id on the hub.
        split: of a hub data set; None says that ``path`` is a file.
        weight: share of the sequences where they are drawn at random (a stage with ``steps``).
        shape: ``rows`` as they are; ``ungrouped``: rows that share their instructions with no other
            row; ``worked_examples`` or ``chat_adapter``: instructions that several rows share,
            stated once above some worked examples, as plain text or as DSPy's ChatAdapter does.
        prompt_only: take rows without a response too.
        remove: texts that are taken out of every row, such as another tokenizer's end-of-text.
        max_field_chars: of a Feedback Collection row's fields, cut at a word; None is all.
        max_length: tokens of a sequence of this source; None is the data's.
        max_examples: worked examples of one row, 1 to so many, the one whose answer is the response
            among them; None is 6 for ``worked_examples`` and 3 for ``chat_adapter``.
        examples: of ``worked_examples``: the answered ones stand ``after`` the instructions, as in
            the contexts that the optimizer makes, or ``before`` them.
    """

    path: str
    split: str | None = None
    weight: Float = 1.0
    shape: Shape = "rows"
    prompt_only: Bool = False
    remove: tuple[str, ...] = ()
    max_field_chars: Int | None = None
    max_length: Int | None = None
    max_examples: Int | None = None
    examples: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight must be above 0, got weight={self.weight}")
        if self.max_examples is not None:
            _at_least(1, max_examples=self.max_examples)
        if self.max_examples is not None and self.shape not in ("worked_examples", "chat_adapter"):
            raise ValueError(
                "max_examples needs shape=worked_examples or shape=chat_adapter, "
                f"got shape={self.shape}"
            )
        if self.examples == "before" and self.shape != "worked_examples":
            raise ValueError(f"examples=before needs shape=worked_examples, got shape={self.shape}")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataOptions:
    """The data that the model is trained on.

    Attributes:
        sources: at least one.
        max_length: tokens of a sequence.
        too_long: what happens to a row of more tokens: ``cut`` keeps its first ``max_length`` (a
            row whose response would be lost is dropped), ``drop`` leaves it out, ``raise`` is an
            error. Of drawn worked examples, ``drop`` leaves out as many as do not fit. Rows that
            are read are counted when they are, sequences that were cut in the log.
        on_error: ``raise`` at the first bad row with file and line, or ``skip`` and count it.
        bucket: batches among which sequences are sorted by length, to save padding.
    """

    sources: tuple[SourceOptions, ...]
    max_length: Int = 4096
    too_long: TooLong = "drop"
    on_error: Literal["raise", "skip"] = "raise"
    bucket: Int = 1

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one file or data set, got none")
        if self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length}")
        _at_least(1, bucket=self.bucket)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class MaskingOptions:
    """The forward process: shares of sequences masked in each way; they add up to 1.

    Attributes:
        full_sequence: share with floor(t * |X|) tokens of prompt and response masked.
        response_only: share with each response token masked with probability t.
        window: share with contiguous spans masked.
        window_lengths: shortest and longest span, tokens.
        tokens_per_window: one span for so many tokens, beside one in each part of the instructions.
        window_order: which of a span's tokens are masked: ``random`` ones, or the last ones, as a
            span looks that is filled from ``left_to_right`` (denoisers with ``block_length`` 1).
        low_discrepancy: so many consecutive sequences get t from different strata; 0 draws freely.
        eos_padding: responses end with end-of-text tokens up to a multiple of so many tokens, and
            those count as response; 0 adds none.
    """

    full_sequence: Float = 0.0
    response_only: Float = 0.0
    window: Float = 0.0
    window_lengths: tuple[Int, Int] = (4, 16)
    tokens_per_window: Int = 64
    window_order: WindowOrder = "random"
    low_discrepancy: Int = 0
    eos_padding: Int = 0

    def __post_init__(self) -> None:
        shares = (self.full_sequence, self.response_only, self.window)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                "full_sequence, response_only and window must be shares that add up to 1, got "
                f"{self.full_sequence} + {self.response_only} + {self.window} = {sum(shares):g}"
            )
        if not 1 <= self.window_lengths[0] <= self.window_lengths[1]:
            raise ValueError(
                f"window_lengths must be 1 <= shortest <= longest, got {list(self.window_lengths)}"
            )
        _at_least(1, tokens_per_window=self.tokens_per_window)
        _at_least(0, low_discrepancy=self.low_discrepancy, eos_padding=self.eos_padding)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class OptimizerOptions:
    """AdamW and its schedule (paper Table 5).

    Attributes:
        learning_rate: the highest of the schedule.
        schedule: ``cosine`` and ``linear`` decay to 0; ``constant`` stays.
        warmup_steps: steps of linear warm-up.
        batch_size: sequences that one process holds at once.
        accumulation: batches of one step, shared among the processes: a step is the same however
            many there are.
        betas: decay rates of AdamW's moments.
        eps: AdamW's epsilon.
        weight_decay: decoupled, on weight matrices.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
    """

    learning_rate: Float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Int = 500
    batch_size: Int = 1
    accumulation: Int = 32
    betas: tuple[Float, Float] = (0.9, 0.999)
    eps: Float = 1e-8
    weight_decay: Float = 0.01
    max_grad_norm: Float = 1.0

    def __post_init__(self) -> None:
        _at_least(1, batch_size=self.batch_size, accumulation=self.accumulation)
        _at_least(0, warmup_steps=self.warmup_steps, max_grad_norm=self.max_grad_norm)
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Stage:
    """One run of the optimizer.

    Attributes:
        name: of the stage's folder.
        masking: the forward process.
        optimizer: the recipe's, with what this stage says itself.
        epochs: passes over all rows; each row once a pass, in an order of its own.
        steps: optimizer steps; without ``epochs``, on rows that are drawn by the sources' weights,
            with it, the stage ends after so many at the latest.
        loss: ``masked_mean`` (the paper) or ``elbo`` (1/t), which has mask draws of its own.
        weights: of the sources in this stage, 0 for none of one; None is the sources' own.
    """

    name: str
    masking: MaskingOptions
    optimizer: OptimizerOptions
    epochs: Float | None = None
    steps: Int | None = None
    loss: LossName = "masked_mean"
    weights: tuple[Float, ...] | None = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise ValueError(f"stage {self.name!r} needs epochs or steps, got neither")
        if min(self.epochs or 1, self.steps or 1) <= 0 or 0 in (self.epochs, self.steps):
            raise ValueError(
                f"stage {self.name!r}: epochs and steps must be above 0, "
                f"got epochs={self.epochs}, steps={self.steps}"
            )
        if self.loss == "elbo" and self.masking.window > 0:
            raise ValueError(
                f"stage {self.name!r}: loss=elbo is a bound only without window masking, "
                f"got window={self.masking.window}; take loss=masked_mean"
            )
        if self.weights is not None and (min(self.weights, default=0) < 0 or not any(self.weights)):
            raise ValueError(
                f"stage {self.name!r}: weights must be 0 or more, and one of them above 0, "
                f"got {list(self.weights)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class EvaluationOptions:
    """What is measured during training, and at its end.

    Attributes:
        every: optimizer steps between two evaluations; 0 is at the end only.
        probe: JSONL file of the infill probe, rows {text, start, end}; None leaves it out.
        probe_rows: how many of its rows.
        held_out: rows with a response, whose NELBO is measured given all the turns before it: a
            JSONL file, or a data set's id on the hub.
        held_out_split: of a hub data set; None says that ``held_out`` is a file.
        held_out_rows: how many of its rows, the first that fit the model's context.
        num_samples: masks drawn for each of those rows; even, >= 2.
    """

    every: Int = 0
    probe: str | None = None
    probe_rows: Int = 100
    held_out: str | None = None
    held_out_split: str | None = None
    held_out_rows: Int = 32
    num_samples: Int = 16

    def __post_init__(self) -> None:
        _at_least(0, every=self.every)
        _at_least(1, probe_rows=self.probe_rows, held_out_rows=self.held_out_rows)
        if self.num_samples < 2 or self.num_samples % 2:
            raise ValueError(f"num_samples must be an even number from 2, got {self.num_samples}")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Recipe:
    """Everything that decides a training run.

    Attributes:
        name: of the output folder and the model card.
        model: the model that is trained.
        data: on what.
        stages: in order; each goes on from the weights of the one before.
        evaluation: what is measured.
        seed: decides every random choice.
        logging_steps: optimizer steps between two lines of the log.
        save_steps: optimizer steps between two checkpoints; a multiple of ``logging_steps``, so
            that a resumed run logs the same averages.
        report_to: trackers that transformers' Trainer knows: ``tensorboard``, ``wandb``, ….
    """

    name: str
    model: ModelOptions
    data: DataOptions
    stages: tuple[Stage, ...]
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    seed: Int = 0
    logging_steps: Int = 10
    save_steps: Int = 100
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages must hold at least one stage, got none")
        _at_least(1, logging_steps=self.logging_steps, save_steps=self.save_steps)
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps must be a multiple of logging_steps={self.logging_steps}, "
                f"got save_steps={self.save_steps}"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages must have different names, got {', '.join(names)}")
        num_sources = len(self.data.sources)
        for stage in self.stages:
            if stage.weights is not None and len(stage.weights) != num_sources:
                raise ValueError(
                    f"stage {stage.name!r} must have one weight for each of {num_sources} sources, "
                    f"got {list(stage.weights)}"
                )
        prompt_only = any(source.prompt_only for source in self.data.sources)
        for stage in self.stages:
            if prompt_only and stage.masking.response_only > 0:
                raise ValueError(
                    f"stage {stage.name!r} masks responses only, and a source has "
                    "prompt_only: true; set it to false"
                )


def _at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {name}={value}")
