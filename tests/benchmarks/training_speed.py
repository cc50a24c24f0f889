"""Tokens a second and peak memory of LoRA training, ours against a plain implementation.

All train SmolLM2-135M-Instruct on the same rows (worked tasks, masked as in the recipe of the
embedded denoiser), with the same masks, LoRA, optimizer and batch size, each in a process of its
own, in turn::

    python tests/benchmarks/training_speed.py --rounds 3 --json OUT.json

- ``plain`` is what one writes first: rows in their order, padded to the longest of the batch,
  logits at all positions, cross-entropy, of which the masked ones are kept.
- ``same batches`` is ``DiffusionTrainer`` as the recipe runs it (logits at masked positions only,
  compiled layers, no copies in float32 for LoRA) on the very batches of ``plain``.
- ``ours`` also puts rows of like lengths into a batch, as the recipe does.

A run goes over its batches twice and times the second pass, so that neither compilation nor the
first allocations count. Tokens are those of the rows, without padding. Memory is the process's
highest resident set, of which the model and the libraries are a part. The first batch's loss shows
that it is the same model and the same batch. On a CPU without instructions for bfloat16 (``lscpu``
shows no ``amx_bf16``) add ``--set model.bf16=false``: all kinds then compute in float32.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, TrainerCallback

from dspy_diffusion_infill.denoisers import Encoding
from dspy_diffusion_infill.denoisers.checkpoints import smollm2
from dspy_diffusion_infill.denoisers.checkpoints.tokenizer import load_tokenizer
from dspy_diffusion_infill.training.dataset import Collator, MaskedSequence, MaskedSequences
from dspy_diffusion_infill.training.masking import draw_mask
from dspy_diffusion_infill.training.mixture import Mixture, RowPool
from dspy_diffusion_infill.training.model import load_trainable
from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.rows import TextCoder, with_worked_examples
from dspy_diffusion_infill.training.run import build_trainer, plan_stage
from tools.worked_tasks.tasks import load_tasks, worked_groups

KINDS = ("plain", "same batches", "ours")
STAGE = 1  # of the recipe: full-sequence and window masking


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The embedded denoiser's recipe, for two passes over a few batches."""
    overrides = [
        "data.sources=[{path: rows.jsonl}]",
        f"optimizer.batch_size={options.batch_size}",
        "optimizer.accumulation=1",
        f"stages.{STAGE}.steps={2 * options.steps}",
        "stages.0.weights=null",
        "stages.1.weights=null",
        "logging_steps=1",
        "save_steps=1000",
    ]
    return load_recipe("smollm2-adapt-fs", [*overrides, *options.overrides])


def pools_of(recipe: Recipe) -> tuple[RowPool, ...]:
    groups = tuple(group for _, group in worked_groups(load_tasks(seed=0), seed=0))
    return (RowPool(groups, with_worked_examples, 1.0, recipe.data.max_length),)


def sequences(recipe: Recipe, coder: TextCoder, *, by_length: bool) -> list[MaskedSequence]:
    """The sequences of one pass."""
    stage = recipe.stages[STAGE]
    assert stage.steps is not None
    num_batches, size = stage.steps // 2, stage.optimizer.batch_size
    data = MaskedSequences(
        Mixture(pools=pools_of(recipe), coder=coder, in_order=False),
        partial(draw_mask, stage.masking),
        num_sequences=num_batches * size,
        seed=0,
        batch_size=size,
        bucket=num_batches if by_length else 1,
    )
    return [data[k] for k in range(len(data))]


class Clock(TrainerCallback):
    """The seconds of the second half of the steps, and the first loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps // 2:
            self.began = time.perf_counter()
        if state.global_step == state.max_steps:
            self.seconds = time.perf_counter() - self.began
        control.should_save = False


def run_ours(recipe: Recipe, *, by_length: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pools = load_trainable(recipe, folder), pools_of(recipe)
        plan = plan_stage(recipe, STAGE, pools, folder, num_processes=1)
        trainer = build_trainer(recipe, plan, pools, model, lambda line: None)
        data = sequences(recipe, model.denoiser(), by_length=by_length)
        trainer.train_dataset = data * 2
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return figures(data, clock.seconds, clock.losses[0])


class PlainCoder:
    """Renders and encodes as the denoiser does."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> Encoding:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Encoding(tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))

    def render(self, messages: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))


def plain_base(base: str, dtype: torch.dtype) -> tuple[LlamaForCausalLM, Any]:
    if base != smollm2.BASE:
        model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
        return model, load_tokenizer(Path(base))
    model, tokenizer = smollm2.load_base(dtype)
    tokenizer.chat_template = smollm2.CHAT_TEMPLATE
    return model, tokenizer


def run_plain(recipe: Recipe) -> dict[str, float]:
    options, lora, adapt = recipe.stages[STAGE].optimizer, recipe.model.lora, recipe.model.adapt
    assert adapt is not None
    bf16 = recipe.model.bf16
    base, tokenizer = plain_base(recipe.model.base, torch.bfloat16 if bf16 else torch.float32)
    base.config.is_causal = False
    numbers = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")
    model = get_peft_model(base, numbers).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay
    )
    data = sequences(recipe, PlainCoder(tokenizer), by_length=False)
    collate = Collator(mask_id=tokenizer.convert_tokens_to_ids(adapt.mask_token), pad_id=0)
    losses, began = [], 0.0
    for first in range(0, 2 * len(data), options.batch_size):
        if first == len(data):
            began = time.perf_counter()
        start = first % len(data)
        batch = collate(data[start : start + options.batch_size])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            nll = F.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), batch["x0"][:, 1:], reduction="none"
            )
        masked = batch["masked"][:, 1:]
        loss = ((nll * masked).sum(1) / masked.sum(1)).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(weights, options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return figures(data, time.perf_counter() - began, losses[0])


def figures(data: list[MaskedSequence], seconds: float, first_loss: float) -> dict[str, float]:
    tokens = sum(len(sequence.input_ids) for sequence in data)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "peak_gb": highest / 1e9,
        "first_loss": first_loss,
    }


def run(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """One run in this process."""
    recipe = recipe_of(options)
    return run_plain(recipe) if kind == "plain" else run_ours(recipe, by_length=kind == "ours")


def measure(kind: str, arguments: list[str]) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the {kind} run failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(runs: list[dict[str, Any]]) -> tuple[str, dict[str, dict[str, float]]]:
    """A line for each kind, of medians, and their ratios to ``plain``."""
    lines, middle, ratios = [], {}, {}
    for kind in KINDS:
        own = [found for found in runs if found["kind"] == kind]
        middle[kind] = {
            name: median(found[name] for found in own) for name in ("tokens_per_second", "peak_gb")
        }
        ratios[kind] = {name: middle[kind][name] / middle["plain"][name] for name in middle[kind]}
        lines.append(
            f"{kind:12} {middle[kind]['tokens_per_second']:8.1f} tokens/s "
            f"({ratios[kind]['tokens_per_second']:.2f} x)  {middle[kind]['peak_gb']:6.2f} GB "
            f"({ratios[kind]['peak_gb']:.2f} x)  first loss {own[0]['first_loss']:.3f}"
        )
    return "\n".join(lines), ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--steps", type=int, default=8, help="batches of one pass")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="K=V", dest="overrides")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        print(json.dumps(run(options.child, options)))
        return
    passed = ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    passed += [f"--set={override}" for override in options.overrides]
    runs = [
        {"kind": kind, **measure(kind, passed)} for _ in range(options.rounds) for kind in KINDS
    ]
    text, ratios = summary(runs)
    print(text)
    if options.json:
        found = {"threads": torch.get_num_threads(), "runs": runs, "ratios": ratios}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
