"""Whether GPU, memory and disk take what the rows need."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from huggingface_hub import constants

from dspy_diffusion_infill.reproduction.check_files import downloads, recipes_needed
from dspy_diffusion_infill.reproduction.missing_pieces import Missing, missing
from dspy_diffusion_infill.reproduction.targets import PaperItem

_GIB = 2**30
_BYTES = 2  # of a weight in bfloat16
_WORK_GIB = 5  # what filling takes on top of the weights
_TRAINING_GIB = 75  # of a -lora recipe: one GPU of 80 GB
_LEAST_RAM_GIB = 2
_OUTPUT_GIB = 1


def missing_memory(target: PaperItem) -> Iterator[Missing]:
    """A GPU with too little free memory for a denoiser of known size, or too little RAM.

    One denoiser at a time is in memory, so that the largest decides.
    """
    needs: dict[str, float] = {}
    for row in target.measured:
        for name in row.denoisers(target.specs):
            if (billions := target.specs[name].billions) is not None:
                needs[name] = _weights_gib(billions) + _WORK_GIB
    if target.train:
        needs |= dict.fromkeys(recipes_needed(target, target.measured), _TRAINING_GIB)
    free = free_gpu_gib() if needs else 0.0
    short = {name for name, need in needs.items() if need > free}
    if short:
        need = max(needs[name] for name in short)
        found = "no GPU is seen" if free == 0 else f"the most that a GPU has free is {free:.0f} GiB"
        rows = [row for row in target.measured if row.denoisers(target.specs) & short]
        command = (
            f"run it on such a machine, or see how it goes: dspy-infill reproduce {target.table} "
            "--scale smoke"
        )
        yield missing(f"a GPU with {need:.0f} GiB free, {found}", command, rows)
    ram = psutil.virtual_memory().available / _GIB
    if ram < _LEAST_RAM_GIB:
        what = f"memory: {ram:.1f} GiB of RAM are free, {_LEAST_RAM_GIB} are needed"
        yield missing(what, "end other programs", target.measured)


def missing_disk(target: PaperItem) -> Iterator[Missing]:
    """Too little space for what is downloaded, trained and written."""
    specs = downloads(target).values()
    sizes = {str(spec.denoiser): _weights_gib(spec.billions or 0) for spec in specs}
    trained = recipes_needed(target, target.measured).values() if target.train else ()
    # A recipe's folder has the model, and its checkpoints are adapters.
    written = sum(_weights_gib(spec.billions or 0) for spec in trained)
    places = {
        Path(constants.HF_HUB_CACHE): (sum(sizes.values()), "export HF_HOME=A_LARGER_DISK"),
        target.output: (_OUTPUT_GIB + written, "give a larger disk as --output"),
    }
    for place, (need, command) in places.items():
        free = shutil.disk_usage(_existing(place)).free / _GIB
        if need > free:
            what = f"disk: {free:.0f} GiB are free at {place}, {need:.0f} are needed"
            yield missing(what, command, target.measured)


def free_gpu_gib() -> float:
    """What is free on the GPU that has the most, as the driver says; 0 where none is seen."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return max((float(line) / 1024 for line in done.stdout.split("\n") if line), default=0.0)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0.0


def _weights_gib(billions: float) -> float:
    return _BYTES * billions * 1e9 / _GIB


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.expanduser().absolute()
    return next(one for one in (path, *path.parents) if one.exists())
