"""From a recipe to a trained denoiser."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainingArguments

from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.placement import silent_progress
from dspy_diffusion_infill.training.callbacks import (
    EvaluationDuringTraining,
    LoggedFigures,
    Progress,
)
from dspy_diffusion_infill.training.dataset import Collator, MaskedSequences
from dspy_diffusion_infill.training.evaluation import EvaluationData, read_evaluation
from dspy_diffusion_infill.training.masking import draw_mask
from dspy_diffusion_infill.training.mixture import Mixture, RowPool, make_pools, read_sources
from dspy_diffusion_infill.training.model import Trainable, has_accelerator, load_trainable
from dspy_diffusion_infill.training.options import OptimizerOptions, Recipe, Stage
from dspy_diffusion_infill.training.output import write_output
from dspy_diffusion_infill.training.run_folder import (
    begin,
    check_data,
    figures_of,
    latest_checkpoint,
    num_cut_of,
    stage_folder,
    step_of,
)
from dspy_diffusion_infill.training.trainer import DiffusionTrainer

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run.

    Attributes:
        output: the folder that ``load_denoiser`` opens.
        figures: what the evaluation at the end gave, by name.
    """

    output: Path
    figures: LoggedFigures


def train(
    recipe: Recipe,
    *,
    output: str | Path,
    resume: bool = False,
    show: Callable[[str], None] = print,
) -> Trained:
    """Runs the stages of a recipe, and writes the model with its card.

    Args:
        recipe: everything that decides the run.
        output: the run's folder.
        resume: go on where a run of the same recipe in that folder was stopped; start one if there
            is none. The losses are those of a run that was never stopped.
        show: where lines about progress go; only the main process calls it.

    Raises:
        DataError: a row cannot be trained on; the message has file and line.
        DenoiserError: the base cannot be loaded.
        ValueError: the folder holds a run and ``resume`` is off, or one of another recipe or of
            other data; or the number of processes does not divide the recipe's ``accumulation``.
    """
    # 1. The run's folder, and its data; both fail before a large model is loaded.
    process, output = PartialState(cpu=not has_accelerator()), Path(output)
    show = show if process.is_main_process else _silent
    if process.is_main_process:
        begin(recipe, output, resume=resume)
    process.wait_for_everyone()
    sources = read_sources(recipe.data)
    evaluation = read_evaluation(recipe.evaluation)
    if process.is_main_process:
        check_data(sources, output)
    process.wait_for_everyone()

    # 2. The stages, each from the weights of the one before.
    model = load_trainable(recipe, output)
    pools, tallies = make_pools(sources, recipe.data, model.denoiser())
    evaluation = evaluation.fitting(model.denoiser())
    about_data = [str(tally) for tally in tallies]
    for line in about_data:
        show(line)
    weights = output
    for number in range(len(recipe.stages)):
        plan = plan_stage(recipe, number, pools, output, num_processes=process.num_processes)
        latest = latest_checkpoint(plan.folder)
        if latest is None or step_of(latest) != plan.num_steps:
            if number > 0:
                del model
                _free_memory()
                model = load_trainable(recipe, output, weights=weights)
            latest = run_stage(recipe, plan, pools, model, evaluation, show)
        weights = latest
        about_data += _about_cut(plan, num_cut_of(latest))

    # 3. The last checkpoint as a denoiser, with its card.
    figures = figures_of(weights)
    if process.is_main_process:
        write_output(recipe, output, weights, model, figures, about_data)
    process.wait_for_everyone()
    return Trained(output, figures)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a run, with what the data and the number of processes decide.

    Attributes:
        stage: of the recipe.
        number: of the stage, from 0.
        folder: of its checkpoints.
        num_steps: optimizer steps.
        accumulation: batches of one step, in each process.
    """

    stage: Stage
    number: int
    folder: Path
    num_steps: int
    accumulation: int

    @property
    def num_sequences(self) -> int:
        """Of all steps, over all processes."""
        optimizer = self.stage.optimizer
        return self.num_steps * optimizer.batch_size * optimizer.accumulation


def plan_stage(
    recipe: Recipe, number: int, pools: tuple[RowPool, ...], output: Path, *, num_processes: int
) -> StagePlan:
    """Works out the number of steps, and shares a step among the processes.

    Raises:
        ValueError: the number of processes does not divide the recipe's ``accumulation``.
    """
    stage = recipe.stages[number]
    accumulation = stage.optimizer.accumulation
    if accumulation % num_processes:
        raise ValueError(
            f"optimizer.accumulation={accumulation} must be a multiple of the {num_processes} "
            "processes, which share the batches of a step"
        )
    num_steps = stage.steps
    if stage.epochs is not None:
        num_rows = sum(len(pool.elements) for pool in _pools_of(stage, pools))
        by_epochs = int(stage.epochs * num_rows) // (stage.optimizer.batch_size * accumulation)
        num_steps = min(max(1, by_epochs), stage.steps or by_epochs + 1)
    assert num_steps is not None
    folder = stage_folder(recipe, number, output)
    return StagePlan(stage, number, folder, num_steps, accumulation // num_processes)


def run_stage(
    recipe: Recipe,
    plan: StagePlan,
    pools: tuple[RowPool, ...],
    model: Trainable,
    evaluation: EvaluationData,
    show: Callable[[str], None],
) -> Path:
    """Runs one stage from its latest checkpoint, or from the start; returns its last checkpoint."""
    optimizer = plan.stage.optimizer
    if optimizer.warmup_steps >= plan.num_steps:
        show(
            f"stage {plan.stage.name} has {plan.num_steps} steps, no more than "
            f"warmup_steps={optimizer.warmup_steps}: its learning rate stays below "
            f"{optimizer.learning_rate:g}; lower optimizer.warmup_steps"
        )
    trainer = build_trainer(recipe, plan, pools, model, show, evaluation)
    start = latest_checkpoint(plan.folder)
    with silent_progress():
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    last = latest_checkpoint(plan.folder)
    assert last is not None and step_of(last) == plan.num_steps, "Trainer saves at the last step"
    return last


def build_trainer(
    recipe: Recipe,
    plan: StagePlan,
    pools: tuple[RowPool, ...],
    model: Trainable,
    show: Callable[[str], None],
    evaluation: EvaluationData | None = None,
) -> DiffusionTrainer:
    """The Trainer of a stage: data, loss, optimizer numbers and callbacks."""
    checkpoint, stage = model.checkpoint, plan.stage
    adapt = recipe.model.adapt
    trainer = DiffusionTrainer(
        model=model.model,
        args=_arguments(recipe, plan),
        train_dataset=_dataset(recipe, plan, pools, model),
        # What is padding is hidden by the attention mask: any token will do.
        data_collator=Collator(mask_id=checkpoint.mask_id, pad_id=checkpoint.mask_id),
        shift=checkpoint.shift,
        loss=stage.loss,
        annealing_steps=adapt.annealing_steps if adapt and plan.number == 0 else 0,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(stage.name, plan.folder / "log.jsonl", show))
    if evaluation is not None:
        figures = partial(measure, evaluation, model, trainer, seed=recipe.seed)
        trainer.add_callback(
            EvaluationDuringTraining(evaluation.options.every, figures, trainer.log, show)
        )
    return trainer


def measure(
    evaluation: EvaluationData, model: Trainable, trainer: DiffusionTrainer, *, seed: int
) -> LoggedFigures:
    """The figures of the model as it is, in the precision that it is trained in."""
    with trainer.clock_stopped(), trainer.autocast_smart_context_manager():
        return evaluation.measure(model.denoiser(), seed=seed)


def _dataset(
    recipe: Recipe, plan: StagePlan, pools: tuple[RowPool, ...], model: Trainable
) -> MaskedSequences:
    masking = plan.stage.masking
    seed = recipe.seed + 1_000_003 * plan.number  # each stage draws anew
    mixture = Mixture(
        pools=_pools_of(plan.stage, pools),
        coder=model.denoiser(),
        in_order=plan.stage.epochs is not None,
        seed=seed,
        needs_response=masking.response_only > 0,
        eos_id=_eos_id(model.checkpoint) if masking.eos_padding else 0,
        eos_padding=masking.eos_padding,
    )
    return MaskedSequences(
        mixture,
        partial(draw_mask, masking, loss=plan.stage.loss),
        num_sequences=plan.num_sequences,
        seed=seed,
        batch_size=plan.stage.optimizer.batch_size,
        bucket=recipe.data.bucket,
    )


def _pools_of(stage: Stage, pools: tuple[RowPool, ...]) -> tuple[RowPool, ...]:
    """The pools that the stage draws from, with its own weights where it has any."""
    if stage.weights is None:
        return pools
    pairs = zip(pools, stage.weights, strict=True)
    return tuple(replace(pool, weight=weight) for pool, weight in pairs if weight > 0)


def _about_cut(plan: StagePlan, num_cut: int | None) -> list[str]:
    """A line for the card, where sequences were cut."""
    if not num_cut:
        return []
    return [
        f"stage {plan.stage.name}: {num_cut:,} of {plan.num_sequences:,} sequences were cut at "
        "their longest length"
    ]


def _eos_id(checkpoint: Checkpoint) -> int:
    eos_id = checkpoint.tokenizer.eos_token_id
    if not isinstance(eos_id, int):
        raise ValueError("eos_padding needs a tokenizer with an end-of-text token; set it to 0")
    return eos_id


def _arguments(recipe: Recipe, plan: StagePlan) -> TrainingArguments:
    optimizer: OptimizerOptions = plan.stage.optimizer
    return TrainingArguments(
        output_dir=str(plan.folder),
        max_steps=plan.num_steps,
        per_device_train_batch_size=optimizer.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        train_sampling_strategy="sequential",  # sequence i is what the seed says, in this order
        remove_unused_columns=False,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type=_SCHEDULES[optimizer.schedule],
        warmup_steps=optimizer.warmup_steps,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        bf16=recipe.model.bf16,
        activation_checkpointing=recipe.model.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        use_cpu=not has_accelerator(),
        seed=recipe.seed,
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_steps,
        save_total_limit=2,
        report_to=list(recipe.report_to) or "none",
        disable_tqdm=True,
    )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _silent(_line: str) -> None:
    pass
