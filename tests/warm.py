"""What the fork server of ``forked`` does once: all imports, and the embedded denoiser's weights.

It may start no thread, for none lives on in a forked process.
"""

import threading

import tqdm
from embedded_pair import MISSING

# Not for their names: to have them loaded. ``training.run`` brings torch, transformers and peft.
import dspy_diffusion_infill.cli.app
import dspy_diffusion_infill.optimizer.diffusion_infill
import dspy_diffusion_infill.training.run  # noqa: F401
from dspy_diffusion_infill.denoisers.checkpoints import hub, loading
from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.placement import Options

tqdm.tqdm.monitor_interval = 0  # the monitor is a thread


def share_embedded_denoiser() -> None:
    """``load_denoiser`` gives the weights that are loaded here, where it is asked for them."""
    read, embedded, defaults = loading._open, hub.find(hub.EMBEDDED), Options()
    checkpoint = read(embedded, defaults)

    def opened(source: hub.CheckpointFiles, options: Options) -> Checkpoint:
        same = (source, options) == (embedded, defaults)
        return checkpoint if same else read(source, options)

    loading._open = opened


if not MISSING:
    share_embedded_denoiser()
assert threading.active_count() == 1
