"""Runs a recipe with accelerate's FSDP2 on CPUs (gloo), where accelerate itself offers none.

sharded_on_cpus.py RECIPE OUTPUT [KEY=VALUE …] [--resume], in processes of torch.distributed.run,
under the environment that ``accelerate launch --config_file fsdp2.yaml`` makes.
"""

import sys
from pathlib import Path
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import train


def force_sharding() -> None:
    """Takes the branch that ``AcceleratorState`` takes for several GPUs under FSDP."""
    begin = state.AcceleratorState.__init__
    known: list[FullyShardedDataParallelPlugin] = []

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            known.append(fsdp_plugin)
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if known:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, known[-1]

    state.AcceleratorState.__init__ = begin_sharded


def main(recipe: str, output: str, *words: str) -> None:
    force_sharding()
    overrides = [word for word in words if word != "--resume"]
    train(load_recipe(recipe, overrides), output=Path(output), resume="--resume" in words)
    assert state.AcceleratorState().distributed_type == DistributedType.FSDP


if __name__ == "__main__":
    main(*sys.argv[1:])
