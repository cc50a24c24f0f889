"""One step of a recipe; saves its gradients. For ``accelerate launch``, in one or more processes.

gradients_of_a_step.py RECIPE OUTPUT GRADIENTS.safetensors
"""

import sys
from pathlib import Path

from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback

from dspy_diffusion_infill.training.mixture import make_pools, read_sources
from dspy_diffusion_infill.training.model import load_trainable
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import build_trainer, plan_stage


class SaveGradients(TrainerCallback):
    def __init__(self, target: str) -> None:
        self.target = target

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if state.is_world_process_zero:
            named = ((n.removeprefix("module."), p.grad) for n, p in model.named_parameters())
            save_file({name: g.clone() for name, g in named if g is not None}, self.target)


def main(recipe_path: str, output: str, target: str) -> None:
    process = PartialState(cpu=True)
    overrides = ["stages.0.steps=1", "optimizer.max_grad_norm=0", "optimizer.accumulation=4"]
    recipe = load_recipe(recipe_path, overrides)
    model = load_trainable(recipe, Path(output))
    pools, _ = make_pools(read_sources(recipe.data), recipe.data, model.denoiser())
    plan = plan_stage(recipe, 0, pools, Path(output), num_processes=process.num_processes)
    trainer = build_trainer(recipe, plan, pools, model, print)
    trainer.add_callback(SaveGradients(target))
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
