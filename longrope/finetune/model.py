"""From a checkpoint to what is trained, and back to a folder of weights.

Checkpoint ──build_model──► float32 ──rotary by sequence, attention in documents, LoRA──► TrainingLoss ──shard──► trained
                                                                                                                  │
folder: config.json and tokenizer as they were, weights in their own types ◄──save_model── merged, gathered ◄─────┘
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longrope.checkpoint import DERIVED, Checkpoint
from longrope.errors import InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope.factors import BoundFactors
from longrope.files import staged
from longrope.finetune.attention import NAME, use_document_attention
from longrope.finetune.loss import TrainingLoss
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel, full_weights
from longrope.finetune.rotary import SequenceRotary
from longrope.finetune.ulysses import use_ulysses
from longrope.loading import require_loadable
from longrope.modeling import DTYPES, build_model, decoder, detect_layout, replace_rotary, require_device
from longrope.weights import safetensors_header

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
# What LoRA leaves alone and is trained in full: few parameters, and longer windows need them (LongLoRA, arXiv 2309.12307).
TRAINED_IN_FULL = ("embed", "norm")


class TrainedModel:
    """A model in training: `loss` is what is called, `save` what ends it.

    Args:
        checkpoint: where it comes from.
        factors: both sets are in the rotary embedding.
        options: precision, LoRA, kernels.
        parallel: this process among all.
        checkpointing: recompute activations.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        factors: BoundFactors,
        options: TrainOptions,
        parallel: Parallel,
        *,
        checkpointing: bool = False,
    ) -> None:
        options = options.on(checkpoint)
        require_extras(options)
        require_trainable(checkpoint, options)
        self.checkpoint, self.parallel = checkpoint, parallel
        self.model: Any = build_model(checkpoint.attending_to(factors.target))
        rotary = SequenceRotary(factors, detect_layout(self.model, checkpoint.base))
        replace_rotary(self.model, rotary)
        use_document_attention(self.model)
        use_ulysses(self.model, parallel, NAME)
        if options.liger:
            _use_liger(self.model)
        self._adapter = _with_lora(self.model, options)
        if checkpointing:
            recompute_activations(self.model)
        self.model.train()
        compute = DTYPES[options.dtype]
        self.loss = TrainingLoss(self.model, rotary, compute)
        sharded = parallel.weights_mesh is not None
        parallel.shard(self.loss, param_dtype=compute if sharded and compute != torch.float32 else None)
        self.autocast = compute != torch.float32 and not sharded
        self.compute = compute

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.loss.parameters() if parameter.requires_grad]

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write weights, LoRA merged, in the checkpoint's own types, beside its configuration and tokenizer.

        All processes call it together; the first one writes.
        """
        if self._adapter is not None:
            self.model = self._adapter.merge_and_unload()
            self._adapter = None
        weights = dict(self._weights())
        if self.parallel.is_main:
            with staged(folder, overwrite=overwrite) as room:
                self._write(room, weights)
        self.parallel.barrier()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name, each in its type in the checkpoint; only the first process keeps them."""
        names = self.checkpoint.weight_names
        headers = self.checkpoint.weight_headers.values()
        stored = {names[name]: entry["dtype"] for header in headers for name, entry in header.items()}
        usual = max(set(stored.values()), key=list(stored.values()).count)
        once = {name for name, _ in self.model.named_parameters()} | {name for name, _ in self.model.named_buffers()}
        for name, tensor in full_weights(self.model):
            if self.parallel.is_main and (name in once or name in stored):
                yield name, tensor.to(TYPES[stored.get(name, usual)], copy=True).contiguous()

    def _write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=weights)
        for file in sorted(self.checkpoint.path.iterdir()):
            if file.suffix in (".json", ".model", ".txt", ".jinja") and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        written = {name for file in folder.glob("*.safetensors") for name in safetensors_header(file)}
        expected = {name for name in self.checkpoint.weight_names.values() if not DERIVED.fullmatch(name)}
        if written != expected:
            odd = sorted(written ^ expected)[0]
            raise LongRopeError(f"{folder}: the trained model's weights are not those of {self.checkpoint.name}: {odd}")


def recompute_activations(model: Any) -> None:
    """Activation checkpointing of transformers, layer by layer; transformers 6 drops the old name."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})


def require_extras(options: TrainOptions) -> None:
    """Raise MissingRequirementError for a library or device that is needed and not there."""
    require_device(options.device)
    needed = {
        "peft": (options.lora_rank is not None, "LoRA needs peft: pip install 'longrope-export[train]'"),
        "bitsandbytes": (options.optimizer == "adamw8bit", "adamw8bit needs bitsandbytes: pip install bitsandbytes"),
        "liger_kernel": (options.liger, "Liger kernels need liger-kernel: pip install liger-kernel"),
    }
    for package, (wanted, message) in needed.items():
        if wanted and find_spec(package) is None:
            raise MissingRequirementError(message)


def require_trainable(checkpoint: Checkpoint, options: TrainOptions) -> None:
    """What the files say of a training that would fail only once the weights are loaded, hours into a plan of stages.

    Raises:
        UnsupportedError: the model caps attention scores or logits, which packed attention and the fused loss cannot.
        InputError: LoRA is asked for in more layers than there are, or weights would be missing from the trained model.
    """
    config = checkpoint.config
    caps = [name for name in ("attn_logit_softcapping", "final_logit_softcapping") if config.get(name) is not None]
    if caps:
        raise UnsupportedError(f"training: this model caps its attention scores or logits ({', '.join(caps)})")
    layers, count = options.lora_layers, config["num_hidden_layers"]
    if layers is not None and layers > count:
        raise InputError(f"lora_layers: expected at most the model's {count} layers, got {layers}")
    for left_out in require_loadable(checkpoint):
        raise InputError(f"{checkpoint.name}: {left_out}. Remove them before training, which would lose them")


def _with_lora(model: Any, options: TrainOptions) -> Any:
    """PEFT's adapters on all linear layers but the head, or on the last ones'; norms and embeddings in full.

    PEFT's `modules_to_save` would train copies of these and leave tied embeddings apart. None: everything is trained.
    """
    model.requires_grad_(options.lora_rank is None)
    if options.lora_rank is None:
        return None
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(options.seed)
    alpha = options.lora_alpha or 2 * options.lora_rank
    frozen = _frozen_below(model, options.lora_layers)
    in_full = [
        parameter
        for name, parameter in model.named_parameters()
        if any(part in name for part in TRAINED_IN_FULL) and not name.startswith(frozen)
    ]
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        exclude_modules="|".join(f"{re.escape(prefix)}.*" for prefix in frozen) or None,
        task_type="CAUSAL_LM",
    )
    adapter = get_peft_model(model, config)
    for parameter in in_full:
        parameter.requires_grad_(True)
    return adapter


def _frozen_below(model: Any, layers: int | None) -> tuple[str, ...]:
    """Prefixes of the names that stay frozen when only the last `layers` are trained."""
    if layers is None:
        return ()
    layers_there = decoder(model).layers
    count, path = len(layers_there), next(name for name, module in model.named_modules() if module is layers_there)
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    return (f"{embedding}.", *(f"{path}.{number}." for number in range(count - layers)))


def _use_liger(model: Any) -> None:
    """Liger's norms and MLPs; rotary embedding, attention and loss stay ours."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False})
