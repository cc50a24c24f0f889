"""The model that is trained: a denoiser's weights, or a LoRA adapter on them."""

import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel, set_seed

from dspy_diffusion_infill.denoisers.checkpoints import hub, smollm2
from dspy_diffusion_infill.denoisers.checkpoints.adapter import ADAPTER_WEIGHTS
from dspy_diffusion_infill.denoisers.checkpoints.causal import CAUSAL_CLASSES, load_causal
from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.loading import load
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import SETTINGS_FILE, Settings
from dspy_diffusion_infill.denoisers.checkpoints.reading import read_config
from dspy_diffusion_infill.denoisers.checkpoints.tokenizer import load_tokenizer
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import (
    DenoiserError,
    MissingMaskTokenError,
    NotMaskedDiffusionError,
)
from dspy_diffusion_infill.training.options import LoraOptions, ModelOptions, Recipe

ADDED_BASE = "base"  # folder in the output that holds a base with a mask token added


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model in training.

    Attributes:
        model: what the optimizer steps; a ``PeftModel`` where there is an adapter.
        checkpoint: the same weights as a denoiser's.
        name: of that denoiser.
    """

    model: PreTrainedModel | PeftModel
    checkpoint: Checkpoint
    name: str

    def denoiser(self) -> TransformerDenoiser:
        """The weights as they are now, where they are now.

        Passes go through the outermost model: where weights are sharded, it gathers those of head,
        norm and embeddings, which the base of a ``PeftModel`` alone would find in pieces.
        """
        outermost = cast(PreTrainedModel, self.model)
        return TransformerDenoiser(replace(self.checkpoint, model=outermost), name=self.name)


def load_trainable(recipe: Recipe, output: Path, *, weights: Path | None = None) -> Trainable:
    """Loads the recipe's base, on the CPU, and what an earlier stage made of it.

    Args:
        recipe: names the base and the form.
        output: the run's folder.
        weights: a checkpoint of an earlier stage, whose weights are taken.

    Raises:
        DenoiserError: the base cannot be loaded.
        MissingMaskTokenError: a mask token would have to be added, and the form cannot train it.
        ValueError: ``model.adapter`` is no folder of an adapter, or of another rank or of other
            layers.
    """
    options = recipe.model
    if options.adapter is not None:
        _check_adapter(options.adapter, options.lora)
    set_seed(recipe.seed)  # the adapter's first weights are random
    denoiser = _load_base(recipe, output)
    inner = denoiser.model
    # Checkpoints keep the names that the model has in memory, and not those it was published with:
    # Trainer finds no others when it resumes. And peft is not to look the base up on the hub.
    inner._weight_conversions = []  # pyright: ignore
    inner.name_or_path = ""
    _for_speed(inner, options)
    if options.form == "full":
        if weights is not None:
            load_weights(inner, weights)
        inner.requires_grad_(True)
        return Trainable(inner, denoiser.checkpoint, denoiser.name)
    if options.form == "qlora":
        inner = prepare_model_for_kbit_training(inner, use_gradient_checkpointing=False)
    start = weights or (Path(options.adapter) if options.adapter else None)
    with warnings.catch_warnings():
        # peft asks transformers for a name that transformers has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # An adapter to go on from takes the recipe's numbers too: dropout may differ.
        config = _lora_config(options)
        if start is not None:
            model = PeftModel.from_pretrained(inner, str(start), is_trainable=True, config=config)
            _check_layers(model, start)
        else:
            model = get_peft_model(inner, config)
    _in_float32(model, autocast=options.bf16)
    base = cast(PreTrainedModel, model.get_base_model())
    return Trainable(model, replace(denoiser.checkpoint, model=base), denoiser.name)


def output_settings(recipe: Recipe, output: Path) -> Settings | None:
    """What ``masked_diffusion.json`` of the output says; None for the published layout."""
    options, is_full = recipe.model, recipe.model.form == "full"
    name = _base_name(options, output)
    if options.adapt is not None:
        settings = _adapted(recipe, name)
    else:
        base = _settings_of(options)
        if is_full and base is None:
            return None
        settings = replace(base or Settings(), base=name, revision=options.revision)
    return replace(settings, base=None, revision=None) if is_full else settings


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Loads a checkpoint of all weights into the model, in place."""
    missing = set(model.state_dict())
    for file in sorted(folder.glob("model*.safetensors")):
        state = load_file(file)
        model.load_state_dict(state, strict=False)
        missing -= set(state)
    if model.config.tie_word_embeddings:
        missing.discard("lm_head.weight")
    assert not missing, f"{folder} lacks {sorted(missing)[:3]}"


def _load_base(recipe: Recipe, output: Path) -> TransformerDenoiser:
    options = recipe.model
    if options.form == "qlora" and not torch.cuda.is_available():
        raise DenoiserError(
            "model.form=qlora needs a GPU and bitsandbytes, and torch sees no GPU here; "
            "set model.form=lora"
        )
    dtype = "float32" if options.form == "full" or not options.bf16 else "bfloat16"
    quantization = "4bit" if options.form == "qlora" else None
    device = f"cuda:{PartialState().local_process_index}" if quantization else "cpu"
    name, revision = options.base, options.revision
    if options.adapt is not None:
        # A folder that says how the causal LM is used is what ``load_denoiser`` opens.
        folder, revision = output / "stages", None
        base = _base_with_mask_token(options, output)
        if PartialState().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            _adapted(recipe, base).write(folder)
        PartialState().wait_for_everyone()
        name = str(folder)
    else:
        _settings_of(options)  # refuses a base that cannot be trained on before it is loaded
    return load(
        name, device=device, dtype=dtype, revision=revision, quantization=quantization
    )


def _settings_of(options: ModelOptions) -> Settings | None:
    """What the base says in a ``masked_diffusion.json`` of its own.

    Raises:
        ValueError: the base is an adapter on another base.
    """
    folder = hub.find(options.base, options.revision).folder
    if not (folder / SETTINGS_FILE).is_file():
        return None
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model.base={options.base!r} is an adapter: set model.base (and model.adapt) to what "
            f"it was made from, and model.adapter to {options.base!r}"
        )
    return Settings.read(folder)


def _adapted(recipe: Recipe, base: str) -> Settings:
    options, adapt = recipe.model, recipe.model.adapt
    assert adapt is not None
    lengths = [source.max_length or recipe.data.max_length for source in recipe.data.sources]
    return Settings(
        base=base,
        revision=options.revision if base == options.base else None,
        mask_token=adapt.mask_token,
        shift=True,
        chat_template=smollm2.CHAT_TEMPLATE if base == smollm2.BASE else None,
        context_length=adapt.context_length or max(lengths),
        block_length=adapt.block_length,
        temperature=adapt.temperature,
    )


def _base_with_mask_token(options: ModelOptions, output: Path) -> str:
    """The base as ``load_denoiser`` finds it; where it lacks the mask token, a copy with it."""
    if options.base == smollm2.BASE:
        return options.base
    source = hub.find(options.base, options.revision)
    adapt = options.adapt
    assert adapt is not None
    tokenizer = load_tokenizer(source.folder)
    if adapt.mask_token in tokenizer.get_vocab():
        return options.base if source.hub_id else str(source.folder.resolve())
    if options.form != "full":
        raise MissingMaskTokenError(
            f"the vocabulary of {options.base} has no token {adapt.mask_token!r}, and with "
            f"model.form={options.form} the embedding of an added one would never be trained: set "
            "model.form=full, or model.adapt.mask_token to a token that the model has no other "
            "use for"
        )
    copy = output / ADDED_BASE
    if PartialState().is_main_process and not copy.is_dir():
        hub.fetch_weights(source)
        model_type = read_config(source.folder).get("model_type")
        if model_type not in CAUSAL_CLASSES:
            raise NotMaskedDiffusionError(
                f"{options.base} has model_type={model_type!r}; adapt takes a causal LM of type "
                f"{', '.join(CAUSAL_CLASSES)}"
            )
        model = load_causal(source.folder)
        tokenizer.add_special_tokens({"mask_token": adapt.mask_token})
        model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))
        unfinished = copy.with_suffix(".unfinished")  # what a kill leaves is never taken for whole
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
        unfinished.rename(copy)
    PartialState().wait_for_everyone()
    return str(copy.resolve())


def _check_adapter(folder: str, lora: LoraOptions) -> None:
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        raise ValueError(
            f"model.adapter={folder!r} has no {file.name}: name the output folder of a run with "
            "model.form=lora or qlora"
        )
    rank = json.loads(file.read_text(encoding="utf-8")).get("r")
    if rank != lora.rank:
        raise ValueError(
            f"model.adapter={folder!r} has rank {rank}, and model.lora.rank={lora.rank}: "
            f"an adapter keeps its rank, so set model.lora.rank={rank}"
        )


def _check_layers(model: PeftModel, adapter: Path) -> None:
    """Refuses an adapter of other layers: peft would leave those out, or start them anew.

    Raises:
        ValueError: the recipe adapts other layers than the adapter does.
    """
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        there = _layers(file.keys())
    asked = _layers(get_peft_model_state_dict(model))
    if there != asked:
        raise ValueError(
            f"the adapter in {adapter} is of the layers {', '.join(sorted(there))}, and the recipe "
            f"adapts {', '.join(sorted(asked))}: set model.lora.target_modules to the adapter's own"
        )


def _layers(weights: Iterable[str]) -> set[str]:
    """The names of the adapted layers without their place in the model: ``q_proj``, …."""
    return {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in weights}


def _base_name(options: ModelOptions, output: Path) -> str:
    """The base's name in the output's settings: a hub id, or a path from the output."""
    if (output / ADDED_BASE).is_dir():
        return ADDED_BASE
    if Path(options.base).expanduser().is_dir():
        return os.path.relpath(Path(options.base).expanduser(), output)
    return hub.KNOWN.get(options.base, options.base)


def _lora_config(options: ModelOptions) -> LoraConfig:
    lora = options.lora
    targets = lora.target_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def has_accelerator() -> bool:
    """Whether training runs on a GPU, and not on the CPU."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _for_speed(model: PreTrainedModel, options: ModelOptions) -> None:
    """Takes what trains fastest here; compiling layer by layer costs one layer's compilation."""
    if not has_accelerator():
        # On CPUs, the backward pass of the fused kernel takes longer than the plain attention.
        model.set_attn_implementation("eager")
    if options.compile:
        for layer in model.get_submodule("model.layers").children():
            layer.compile(dynamic=True)


def _in_float32(model: torch.nn.Module, *, autocast: bool) -> None:
    """Keeps the adapter's weights in float32, and leaves the precision of its inputs to autocast.

    peft would copy the inputs of every layer to float32, and autocast back again: the same numbers,
    for a copy of each in memory.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = not autocast  # pyright: ignore
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
