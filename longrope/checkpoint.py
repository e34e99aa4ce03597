"""Open a model from a folder, a Hub id or (through an opener of the converters) a GGUF file, without loading weights.

    open_checkpoint("folder" | "org/name@rev" | "file.gguf") ──► Checkpoint: facts of config.json, tokenizer, weight files

Nothing here imports torch or transformers; `longrope.modeling.build_model` does, when a model is to run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.architectures import (
    WRAPPERS,
    Architecture,
    Rotates,
    architecture_of,
    attending_to,
    sliding_window_of_all,
)
from longrope.base_rope import BaseRope, base_rope, plain_rope
from longrope.config_fields import Config, check_config
from longrope.config_sizes import refuse_unfilled_sizes
from longrope.errors import FactorError, InputError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.family import BETA_FAST, BETA_SLOW, FamilyName, RopeFamily
from longrope.hf_config import (
    FULL,
    PER_SET_FACTORS,
    extended_config,
    from_config,
    require_family,
    rope_parameters,
    transformers_config,
    with_one_set,
    with_window,
)
from longrope.hub import hint_for, hub_id_of, hub_snapshot
from longrope.reading import own_file, read_object, said_by
from longrope.tokenizer_files import TokenizerFile, tokenizer_file
from longrope.weights import (
    is_packed,
    names_of,
    quantization_method,
    refuse_adapter,
    safetensors_header,
    way_out_of,
    weight_files,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OPENERS = "longrope.checkpoint_openers"  # entry points: file suffix → callable(path) -> Checkpoint
SUFFIXES = {b"GGUF": ".gguf"}  # first bytes of files that come without a suffix, such as Ollama's blobs
# Bytes of a weight file that its fingerprint takes: its start, and a sample in every so many.
FIRST_WEIGHTS, SAMPLE, SAMPLE_EVERY = 1 << 20, 1 << 14, 1 << 23
# Where multimodal checkpoints keep their text model, in place of `model.`; and its output head.
TEXT_PREFIXES = ("model.language_model.", "language_model.model.")
TEXT_HEADS = {"lm_head.": "lm_head.", "language_model.lm_head.": "lm_head."}
# Bases that the parameters of a family hold, too.
_HELD_BY = {"yarn": ("yarn",), "linear": ("yarn", "linear")}
# Buffers that old checkpoints carry; every runtime computes them.
DERIVED = re.compile(r".*\.(inv_freq|masked_bias|attention\.bias)")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder whose config.json and weight headers have been read and found sound.

    Args:
        path: the folder.
        name: what the user called it; goes into reports.
        config: parsed config.json; of a multimodal model, its `text_config`.
        keep_alive: whatever owns `path` when it is temporary (a GGUF file unpacked for the run).
        wrapper: the whole config.json of a multimodal model; None elsewhere.
        released: the RoPE that config.json says, where `from_original` has put another in its place; None elsewhere.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    keep_alive: Any = field(default=None, compare=False, repr=False)
    wrapper: Mapping[str, Any] | None = None
    released: BaseRope | None = None

    @property
    def whole_config(self) -> Mapping[str, Any]:
        """config.json as it is."""
        return self.config if self.wrapper is None else self.wrapper

    @cached_property
    def architecture(self) -> Architecture:
        """Row of the architecture table. Raises UnsupportedError."""
        return architecture_of(self.config)

    def attending_to(self, length: float = math.inf) -> Checkpoint:
        """The same model, in which no layer looks back fewer than `length` tokens, where all of them do: all then see
        everything. Search, training, reference and exports of a longer window run with this attention."""
        if sliding_window_of_all(self.config) is None:
            return self
        wrapper = self.wrapper and {**self.wrapper, "text_config": attending_to(self.config, length)}
        return replace(self, config=attending_to(self.config, length), wrapper=wrapper)

    def from_original(self, window: int) -> Checkpoint:
        """The same weights, extended from another window than the released one.

        The window before its publisher's rescaling (`original_max_position_embeddings`; of linear interpolation, the
        window by its factor) brings back the RoPE of that time. Any other is where the released RoPE really works to,
        as of a config.json that overstates its window, and that RoPE stays.

        Args:
            window: L in tokens.

        Raises:
            InputError: it is above the released window, or below the one that two factor sets switch at.
            UnsupportedError: the rescaling cannot be taken out.
        """
        own, released = self.base, self.max_position_embeddings
        if not 2 <= window <= released:
            raise InputError(
                f"{self.name}: original window {window}: expected 2 to {released} tokens, its max_position_embeddings; where "
                "config.json understates the window, correct it there"
            )
        if window == released:
            return self
        plain = not own.is_plain and window == own.before
        self._require_movable(window, plain=plain)
        config = with_window(self.config, window, plain=plain)
        return replace(
            self,
            config=config,
            wrapper=self.wrapper and {**self.wrapper, "text_config": config},
            released=self.released or own,
        )

    def _require_movable(self, window: int, *, plain: bool) -> None:
        """Refuse a window that this model's rescaling depends on, and to take out one that attention is scaled with."""
        own, rope = self.base, rope_parameters(self.config)
        if own.is_longrope and not plain:
            raise InputError(
                f"{self.name}: original window {window}: its factors are for {own.window} tokens and were put on a window of "
                f"{own.before}; expected one of these"
            )
        if own.rope_type == "yarn" and not plain and rope.get("factor") is None:
            raise InputError(
                f"{self.name}: config.json: its YaRN has no factor, and another window would give another; write "
                f"{own.window / own.pretraining_window:g} there"
            )
        scaled = [name for name in ("mscale_all_dim", "llama_4_scaling_beta") if rope.get(name)]
        if plain and scaled:
            raise UnsupportedError(
                f"{self.name}: attention is scaled by {scaled[0]} as well, which belongs to the publisher's rescaling, so "
                f"that this cannot be taken out; extend it from the released window of {own.window} tokens"
            )

    def require_rotation(self) -> None:
        """Raise UnsupportedError where no layer rotates that sees everything, so that rescaling extends nothing."""
        found = {self.rotates(layer) for layer in range(self._config_value("num_hidden_layers"))}
        if "extended" not in found:
            where = "in its local layers only, which never see further back" if "local" in found else "nowhere (NoPE)"
            raise UnsupportedError(
                f"{self.name}: this {self.model_type} model rotates {where}: rescaling extends nothing. Its layers that "
                "see everything work without positions, at any length that the model was trained for"
            )

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @cached_property
    def base(self) -> BaseRope:
        """The RoPE that the model comes with, rescaled by its publisher (or by an extension) or not.

        Raises:
            InputError: a rotary parameter is missing or out of range.
            UnsupportedError: a rope_type without a closed form.
        """
        theta = {"rope_theta": self.rope_theta}
        parameters = {**rope_parameters(self.config), **theta}
        return base_rope(self.config, parameters, rotary_dim=self.rotary_dim, window=self.max_position_embeddings)

    @cached_property
    def factors(self) -> BoundFactors | None:
        """The rescale factors the checkpoint already carries, bound to it; None when it has not been extended."""
        found = from_config(self.config)
        return self.bind_product(found, target=self.max_position_embeddings) if found else None

    @property
    def window(self) -> int:
        """L in tokens: the window that the model was released with; of a longrope model, that of its short set."""
        return self.base.switch

    @property
    def max_position_embeddings(self) -> int:
        return self._config_value("max_position_embeddings")

    @property
    def rope_theta(self) -> float:
        given = rope_parameters(self.config).get("rope_theta") or self.config.get("rope_theta")
        old = self.config.get("rotary_emb_base")
        value = given or old or self.architecture.default_theta
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{self.name}: config.json: rope_theta: expected a number, got {value!r}")
        return float(value)

    @property
    def head_dim(self) -> int:
        given = self.config.get("head_dim")
        return int(given or self._config_value("hidden_size") // self._config_value("num_attention_heads"))

    @property
    def rotary_dim(self) -> int:
        """head_dim * partial_rotary_factor, as transformers computes it; the rotated part of latent attention's heads."""
        if latent := self.config.get("qk_rope_head_dim"):
            return int(latent)
        rope, head_dim = rope_parameters(self.config), self._full_head_dim
        if rope.get("rope_type") == "proportional":  # gives every pair a frequency, 0 to those that are not rotated
            return head_dim
        if whole := self.config.get("rotary_dim"):
            return int(whole)
        partial = next((value for value in self._partial_factors(rope) if value is not None), 1.0)
        return int(head_dim * partial)

    @property
    def _full_head_dim(self) -> int:
        """Dimensions of a head in layers that see everything (Gemma 4's are larger than those of its other layers)."""
        by_layer = self.config.get("per_layer_config") or {}
        own = (by_layer.get(str(layer), {}) for layer, kind in enumerate(self.layer_types) if kind == FULL)
        found = next((each["head_dim"] for each in own if "head_dim" in each), None) if by_layer else None
        return int(self.config.get("global_head_dim") or found or self.head_dim)

    def _partial_factors(self, rope: Mapping[str, Any]) -> Iterator[float | None]:
        """Every spelling of the rotated part of a head, and the type's default."""
        yield rope.get("partial_rotary_factor")
        yield self.config.get("partial_rotary_factor")
        yield self.config.get("rotary_pct")
        yield self.architecture.default_partial

    @cached_property
    def layer_types(self) -> Sequence[str]:
        """What each layer attends to, as transformers calls it; `full_attention` where the configuration is silent."""
        given = self.config.get("layer_types")
        if not given and self.architecture.needs_layer_types:
            given = getattr(transformers_config(self.config), "layer_types", None)
        return given or [FULL] * self._config_value("num_hidden_layers")

    def rotates(self, layer: int) -> Rotates:
        """Which rotary embedding a layer uses: the `extended` one, its type's own `local` one, or `none`."""
        return self.architecture.rotates(self.config, self.layer_types, layer)

    @cached_property
    def text_prefix(self) -> str:
        """What the names of the text model's weights begin with in the files: `model.`, of multimodal models another."""
        if self.wrapper is None:
            return "model."
        names = self.weight_names.values()
        found = [prefix for prefix in TEXT_PREFIXES if any(name.startswith(prefix) for name in names)]
        if len(found) != 1:
            raise InputError(f"{self.name}: expected weights of a text model under {' or '.join(TEXT_PREFIXES)}")
        return found[0]

    def text_name(self, stored: str) -> str | None:
        """The name of a stored weight within the text model (`model.layers.0…`, `lm_head.weight`); None for the others'."""
        name = self.weight_names[stored]
        if self.wrapper is None:
            return name
        if name.startswith(self.text_prefix):
            return "model." + name.removeprefix(self.text_prefix)
        head = next((head for head in TEXT_HEADS if name.startswith(head)), None)
        return head and TEXT_HEADS[head] + name.removeprefix(head)

    @property
    def vocab_size(self) -> int:
        return self._config_value("vocab_size")

    def extended_config(self, factors: BoundFactors) -> dict[str, Any]:
        """The whole config.json with factors in it, in the text part of a multimodal model; see `hf_config.extended_config`.

        Raises:
            UnsupportedError: as there.
        """
        if self.wrapper is None:
            return extended_config(self.config, factors)
        text = extended_config({"model_type": self.model_type, **self.wrapper["text_config"]}, factors)
        return {**self.wrapper, "text_config": text}

    def base_for(self, target: int) -> BaseRope:
        """The RoPE that an extension to `target` tokens is put on.

        The model's own; but where its own longrope reaches `target`, the plain RoPE that was extended.
        """
        if self.base.is_longrope and target <= self.base.window:
            return plain_rope(self.rope_theta, self.rotary_dim, self.window)
        return self.base

    def require_family(self, name: str, base: BaseRope | None = None) -> None:
        """Raise UnsupportedError for a model that the parameters of this family cannot be given to.

        Those of YaRN take the place of a yarn base, which they hold; linear ones that of a linear base.

        Args:
            name: of the family.
            base: the RoPE that they are put on; None for the model's own.
        """
        require_family(self.config, name)
        base = base or self.base
        if not (base.is_plain or base.rope_type in _HELD_BY[name]):
            raise UnsupportedError(
                f"{self.name}: its RoPE is rescaled already (rope_type {base.rope_type}), and engines hold one "
                f"rescaling only, of which {name} is none that equals it. Free factors go on top of it"
            )

    def bind(self, factors: RescaleFactors, target: int | None = None) -> BoundFactors:
        """`factors` with this model's facts filled in, as products with its own RoPE; bound ones come back equal.

        Factors are put on the RoPE with which the model reaches the length that they extend: they say it as
        `original_max_position_embeddings`, and where they are silent it is the released window. Those that hold a base
        already (`RescaleFactors.base`), and those that extend a longrope model from before, are not multiplied again.

        Args:
            factors: as a file says them.
            target: L' in tokens; None when the factors say it.

        Raises:
            FactorError: a contradiction, or neither the factors nor `target` say L'.
            UnsupportedError: a rope_type without a closed form, or start tokens on a rescaled RoPE.
        """
        length = factors.target_length or target
        if factors.base is not None or length is None:
            return self.bind_product(factors, target)
        base = self.base_for(length)
        if self.released is not None and (base.is_plain or factors.family is not None):
            return self.bind_product(replace(factors, base=base), target)
        if (
            factors.family is not None
            or base.is_plain
            or factors.original_max_position_embeddings not in (None, base.window)
        ):
            return self.bind_product(factors, target)
        if factors.num_pairs != len(base.long_factor):
            return self.bind_product(factors, target)  # which says what is wrong with them
        attention = factors.attention_factor
        product = replace(
            factors,
            short_factor=_times(factors.short_factor, base.short_factor),
            long_factor=_times(factors.long_factor, base.long_factor),
            attention_factor=None if attention is None else attention * base.attention_factor,
            original_max_position_embeddings=base.switch,
            base=base,
        )
        return self.bind_product(product, target)

    def bind_product(self, factors: RescaleFactors, target: int | None = None) -> BoundFactors:
        """As `bind`, for factors as a runtime computes with them: whatever base there is, they hold it.

        Raises:
            FactorError: a contradiction, another base RoPE than this model's, or nothing says L'.
            UnsupportedError: start tokens on a rescaled RoPE.
        """
        own, base = self.released or self.base, factors.base
        if factors.family is not None:
            self.require_family(factors.family.type, base)
        if base is not None and not (own.is_longrope or base.is_longrope or own.can_start(base)):
            raise FactorError(
                f"the factors were made on RoPE of type {base.rope_type!r}, and {self.name} has {own.rope_type!r} of "
                "another kind; they belong to another model"
            )
        if base is not None and self.released is not None and base.window != self.base.window:
            raise FactorError(
                f"the factors extend {self.name} from {base.window} tokens, and {self.base.window} was asked for"
            )
        below = (base,) if base is not None and base.is_plain else (own, base)
        if factors.n_hat and not all(each is None or each.is_plain or each.is_longrope for each in below):
            raise UnsupportedError(
                f"{self.name}: start tokens keep the original RoPE, and this model's is rescaled; use n_hat 0"
            )
        return factors.bound_to(
            original=self.window if base is None or own.is_longrope or base.is_longrope else base.switch,
            rope_theta=self.rope_theta,
            rotary_dim=self.rotary_dim,
            model_type=self.model_type,
            target=target,
        )

    @cached_property
    def _tokenizer_file(self) -> TokenizerFile:
        return tokenizer_file(self.path, self.name)

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json: the folder's own, or one that transformers made of tokenizer.model or of vocabulary and merges.

        Raises:
            MissingRequirementError: a library that this takes is missing.
            UnsupportedError: there is none, and none can be made.
        """
        return self._tokenizer_file.path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizers-library tokenizer of tokenizer.json, which neither cuts nor pads, whatever the file says.

        Raises:
            MissingRequirementError, UnsupportedError: as `tokenizer_file`, or the tokenizers library cannot read it.
        """
        from tokenizers import Tokenizer

        file = str(self.tokenizer_file)
        try:
            with said_by("the tokenizers library", f"{self.name}: tokenizer.json"):
                tokenizer = Tokenizer.from_file(file)
        except InputError as error:
            raise UnsupportedError(str(error)) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with whatever the tokenizer adds by itself (BOS).

        Raises:
            InputError: a token that the model has no row for, or the tokenizers library cannot split the text.
        """
        return self._with_rows(self._split(text, special=True))

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` alone, as a part of a longer one. Raises as `encode`."""
        return self._with_rows(self._split(text, special=False))

    def _split(self, text: str, *, special: bool) -> list[int]:
        tokenizer = self.tokenizer
        with said_by("the tokenizers library", f"{self.name}: tokenizer.json", "split a text by it"):
            return tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises InputError where the tokenizers library cannot put it together."""
        tokenizer = self.tokenizer
        with said_by("the tokenizers library", f"{self.name}: tokenizer.json", "put a text together by it"):
            return tokenizer.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)

    def _with_rows(self, ids: list[int]) -> list[int]:
        """Token ids that all have a row in the embedding."""
        last = max(ids, default=0)
        if last >= self.vocab_size:
            raise InputError(
                f"{self.name}: the text holds the token {self.tokenizer.id_to_token(last)!r} ({last}), but the model has "
                f"rows for {self.vocab_size} tokens only (vocab_size); take it out of the text"
            )
        return ids

    @cached_property
    def added_around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text, such as <bos>; many models attend to it from everywhere."""
        whole, plain = self.encode("a"), self.encode_plain("a")
        at = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
        return whole[:at], whole[at + len(plain) :]

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files, each with a sound header and complete. Raises InputError."""
        return weight_files(self.path)

    @cached_property
    def weight_headers(self) -> Mapping[Path, Mapping[str, Any]]:
        """The header of each weight file: name in the file → {dtype, shape, data_offsets}. Raises InputError."""
        return {file: safetensors_header(file) for file in self.weight_files}

    @cached_property
    def weight_names(self) -> Mapping[str, str]:
        """Name of each tensor in the files → its name in transformers' model. Raises InputError."""
        tied = self.config.get("tie_word_embeddings") is True
        try:
            return names_of((name for header in self.weight_headers.values() for name in header), tied=tied)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None

    @property
    def quantization(self) -> str | None:
        """The method by which the weights are quantized (gptq, fp8, …); None for plain floats, whatever config.json says."""
        tensors = [each for header in self.weight_headers.values() for each in header.items()]
        packed = [(name, entry["dtype"]) for name, entry in tensors if is_packed(entry["dtype"])]
        if packed and (method := self.announced_quantization):
            return method
        return min((dtype for name, dtype in packed if dtype.startswith("F") or name.endswith("weight")), default=None)

    @property
    def announced_quantization(self) -> str | None:
        """What config.json says of quantized weights, to transformers or to MLX; None when it says nothing."""
        mlx = "mlx" if self.whole_config.get("quantization") else None
        return quantization_method(self.whole_config) or mlx

    def require_float_weights(self) -> None:
        """Refuse weights that nothing here computes with.

        Raises:
            UnsupportedError: they are quantized.
            InputError: config.json says so, and they are not.
        """
        if method := self.quantization:
            raise UnsupportedError(f"{self.name}: its weights are quantized ({method}); {way_out_of(method)}")
        if method := quantization_method(self.whole_config):
            raise InputError(
                f"{self.name}: config.json has a quantization_config ({method}), but the weights are plain floats; "
                "remove quantization_config from config.json if they were dequantized"
            )

    def oddities(self) -> list[str]:
        """What was mended or left out in reading the folder, in words, to be said before it is used."""
        said = []
        if renamed := [name for name, new in self.weight_names.items() if name != new]:
            said.append(
                f"{len(renamed)} weights have other names than in the model, as training tools and models saved without "
                f"their head leave them; {renamed[0]} is taken for {self.weight_names[renamed[0]]}"
            )
        if self.architecture.per_set_attention and self.base.is_longrope:
            said.append(
                f"transformers rotates {self.model_type} by its short set at every length; it is extended from its long set, "
                "as other engines use it beyond the original window, by a single set"
            )
        elif ignored := [name for name in PER_SET_FACTORS if name in rope_parameters(self.config)]:
            said.append(
                f"config.json has {' and '.join(ignored)}, which transformers ignores for {self.model_type}; exports are "
                "written without"
            )
        window = sliding_window_of_all(self.config)
        if window is not None and window < self.max_position_embeddings:
            said.append(
                f"all its layers attend to the last {window} tokens only (sliding_window); an extension beyond them attends "
                "to everything: sliding_window becomes null, as in the long versions of Phi-3"
            )
        ends = self.config.get("eos_token_id")
        for end in ends if isinstance(ends, list) else [ends]:
            if isinstance(end, int) and end >= self.vocab_size:
                said.append(
                    f"eos_token_id {end} lies beyond the vocabulary of {self.vocab_size} tokens: no text ever ends with it"
                )
        if method := self.quantization:
            said.append(
                f"its weights are quantized ({method}): copied as they are and not run here; to validate the folder, compare "
                "it with the original model in a runtime that has this quantization"
            )
        return said

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in the weight files. Raises InputError."""
        shapes = [entry["shape"] for header in self.weight_headers.values() for entry in header.values()]
        return sum(math.prod(shape) for shape in shapes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json, tokenizer.json, the weight files' headers and sizes, and samples of their weights.

        Cheap, and two trainings of one model differ; those of the last layers too, in files above `SAMPLE_EVERY` bytes.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        tokenizer = self.path / "tokenizer.json"
        digest.update(own_file(self.path, tokenizer.name).read_bytes() if tokenizer.is_file() else b"")
        for file in self.weight_files:
            with file.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                digest.update(handle.read(length))
                digest.update(handle.read(FIRST_WEIGHTS))
                size = file.stat().st_size
                for place in range(SAMPLE_EVERY, size, SAMPLE_EVERY):
                    handle.seek(place)
                    digest.update(handle.read(SAMPLE))
            digest.update(str(size).encode())
        return digest.hexdigest()

    def _config_value(self, name: str) -> int:
        value = self.config.get(name)
        if value is None:
            raise InputError(f"{self.name}: config.json has no {name}")
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{self.name}: config.json: {name}: expected a whole number above 0, got {value!r}")
        return value


def unscaled_factors(checkpoint: Checkpoint, target: int) -> BoundFactors:
    """The model's own RoPE as factors for `target` tokens: ones on its base, no start tokens."""
    ones = (1.0,) * (checkpoint.rotary_dim // 2)
    return checkpoint.bind(RescaleFactors(ones, ones, attention_factor=1.0, method="none"), target=target)


def placeholder_factors(
    checkpoint: Checkpoint, target: int, n_hat: int = 0, family: FamilyName = "free"
) -> BoundFactors:
    """Two sets of harmless values for `target` tokens: what exports and training are planned with before a search.

    Of a family they are one set that every format which holds the family holds: linear interpolation, or the model's own
    YaRN where a softmax scale is computed from that.
    """
    if family != "free":
        checkpoint.require_family(family)
        held = _placeholder(checkpoint, target / checkpoint.window)
        factors = held.factors(checkpoint.rotary_dim, original=checkpoint.window, rope_theta=checkpoint.rope_theta)
        given = RescaleFactors(
            factors, factors, attention_factor=held.attention_factor, method="placeholder", family=held
        )
        return checkpoint.bind(given, target=target)
    pairs = checkpoint.rotary_dim // 2
    ones, twos = (1.0,) * pairs, (2.0,) * pairs
    return checkpoint.bind(RescaleFactors(ones, twos, n_hat=n_hat, method="placeholder"), target=target)


def _placeholder(checkpoint: Checkpoint, scale: float) -> RopeFamily:
    base, theta = checkpoint.base, checkpoint.rope_theta
    if base.rope_type != "yarn" or not checkpoint.architecture.softmax_scale:
        return RopeFamily("linear", scale, theta)
    moved = base.window / base.pretraining_window
    betas = {"beta_fast": BETA_FAST * moved, "beta_slow": BETA_SLOW * moved}
    return RopeFamily.yarn(scale * max(base.long_factor), theta, **betas, attention_factor=base.attention_factor)


def _times(factors: Sequence[float], base: Sequence[float]) -> tuple[float, ...]:
    return tuple(factor * own for factor, own in zip(factors, base, strict=True))


def open_checkpoint(name: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, a Hub id (`org/name` or `org/name@revision`) or a file an opener knows (`.gguf`).

    Raises:
        InputError: no such path, a broken file, pickle weights.
        MissingRequirementError: the Hub cannot be reached, or an extra is missing.
        UnsupportedError: the model type is not in the table.
    """
    path = Path(name)
    if path.is_file():
        return _opener(path)(path)
    if path.is_dir():
        return open_folder(path, str(name))
    if hub_id := hub_id_of(str(name)):
        return open_folder(hub_snapshot(hub_id), hub_id)
    raise InputError(f"{name}: no such file or folder{hint_for(str(name))}")


def open_folder(
    path: Path, name: str | None = None, keep_alive: Any = None, *, needs_weights: bool = True
) -> Checkpoint:
    """Open a Hugging Face folder; see `open_checkpoint` for what it raises.

    Args:
        path: the folder.
        name: what the user called it.
        keep_alive: owner of a temporary folder.
        needs_weights: False for folders of which only the configuration and the tokenizer are wanted (ONNX).
    """
    name = name or str(path)
    refuse_adapter(path, name)
    if not (path / "config.json").is_file():
        deeper = next((found.parent.name for found in sorted(path.glob("*/config.json"))), None)
        raise InputError(
            f"{name}: expected a Hugging Face folder, found no config.json in it"
            f"{f', but in its folder {deeper}; give that one' if deeper else ''}"
        )
    config = read_object(own_file(path, "config.json"), f"{name}: config.json", non_finite=True)
    check_config(config, name)
    config = with_one_set(config)
    text = config.get("text_config") if config.get("model_type") in WRAPPERS else None
    checkpoint = Checkpoint(path, name, Config(config, name), keep_alive)
    if isinstance(text, dict):
        checkpoint = Checkpoint(path, name, Config(_completed(config, text), name), keep_alive, wrapper=config)
    checkpoint.require_rotation()
    if needs_weights:
        refuse_unfilled_sizes(config, list(checkpoint.weight_headers.values()), name)
    return checkpoint


def _completed(config: Mapping[str, Any], text: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `text_config` with what transformers takes where it is silent; published ones say only what differs."""
    data = {"model_type": WRAPPERS[str(config["model_type"])], **text}
    full = transformers_config(data).to_dict()
    shared = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
    return {**{name: value for name, value in full.items() if "rope" not in name}, **shared, **data}


def _opener(path: Path) -> Callable[[Path], Checkpoint]:
    found = list(entry_points(group=OPENERS, name=path.suffix.lower()))
    if not found:
        with path.open("rb") as file:
            found = list(entry_points(group=OPENERS, name=SUFFIXES.get(file.read(4), "")))
    if not found:
        whole = f"; give its folder, {path.parent}" if (path.parent / "config.json").is_file() else ""
        raise InputError(
            f"{path}: expected a Hugging Face folder or a .gguf file, got a {path.suffix or 'plain'} file{whole}"
        )
    opener: Callable[[Path], Checkpoint] = found[0].load()
    return opener
