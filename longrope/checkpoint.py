"""Open a model from a folder, a Hub id or (through an opener of the converters) a GGUF file, without loading weights.

    open_checkpoint("folder" | "org/name@rev" | "file.gguf") ──► Checkpoint: facts of config.json, tokenizer, weight files

Nothing here imports torch or transformers; `longrope.modeling.build_model` does, when a model is to run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.architectures import Architecture, architecture_of
from longrope.errors import InputError, MissingRequirementError, UnsupportedError
from longrope.factors import BoundFactors, RescaleFactors
from longrope.hf_config import from_config, rope_parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
OPENERS = "longrope.checkpoint_openers"  # entry points: file suffix → callable(path) -> Checkpoint
DEFAULT_ROPE_THETA = 10_000.0
EXTENDABLE_ROPE_TYPES = ("default", "longrope", "su", None)
# Bytes of a weight file that its fingerprint takes: its start, and a sample in every so many.
FIRST_WEIGHTS, SAMPLE, SAMPLE_EVERY = 1 << 20, 1 << 14, 1 << 23
# Buffers that old checkpoints carry; every runtime computes them.
DERIVED = re.compile(r".*\.(inv_freq|masked_bias|attention\.bias)")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder whose config.json and weight headers have been read and found sound.

    Args:
        path: the folder.
        name: what the user called it; goes into reports.
        config: parsed config.json.
        keep_alive: whatever owns `path` when it is temporary (a GGUF file unpacked for the run).
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    keep_alive: Any = field(default=None, compare=False, repr=False)

    @cached_property
    def architecture(self) -> Architecture:
        """Row of the architecture table. Raises UnsupportedError."""
        return architecture_of(self.config)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @cached_property
    def factors(self) -> BoundFactors | None:
        """The rescale factors the checkpoint already carries, bound to it; None when it has not been extended."""
        found = from_config(self.config)
        return self.bind(found, target=self.max_position_embeddings) if found else None

    @property
    def window(self) -> int:
        """L: the window the model was trained for before any extension, in tokens."""
        extended = from_config(self.config)
        if extended and extended.original_max_position_embeddings:
            return extended.original_max_position_embeddings
        return self._config_value("max_position_embeddings")

    @property
    def max_position_embeddings(self) -> int:
        return self._config_value("max_position_embeddings")

    @property
    def rope_theta(self) -> float:
        rope = rope_parameters(self.config)
        return float(rope.get("rope_theta") or self.config.get("rope_theta") or DEFAULT_ROPE_THETA)

    @property
    def head_dim(self) -> int:
        given = self.config.get("head_dim")
        return int(given or self._config_value("hidden_size") // self._config_value("num_attention_heads"))

    @property
    def rotary_dim(self) -> int:
        """head_dim * partial_rotary_factor, as transformers computes it; the rotated part of latent attention's heads."""
        if latent := self.config.get("qk_rope_head_dim"):
            return int(latent)
        rope = rope_parameters(self.config)
        partial = rope.get("partial_rotary_factor") or self.config.get("partial_rotary_factor") or 1.0
        return int(self.head_dim * partial)

    @property
    def vocab_size(self) -> int:
        return self._config_value("vocab_size")

    def bind(self, factors: RescaleFactors, target: int | None = None) -> BoundFactors:
        """`factors` with this model's facts filled in; what is bound to it already comes back equal.

        Args:
            factors: as a file says them.
            target: L' in tokens; None when the factors say it.

        Raises:
            FactorError: a contradiction, or neither the factors nor `target` say L'.
            UnsupportedError: as `require_extendable`.
        """
        self.require_extendable()
        return factors.bound_to(
            original=self.window,
            rope_theta=self.rope_theta,
            rotary_dim=self.rotary_dim,
            model_type=self.model_type,
            target=target,
        )

    def require_extendable(self) -> None:
        """Raise UnsupportedError when another method rescales the RoPE already."""
        rope_type = rope_parameters(self.config).get("rope_type", rope_parameters(self.config).get("type"))
        if rope_type not in EXTENDABLE_ROPE_TYPES:
            raise UnsupportedError(
                f"{self.name}: its RoPE is already rescaled by {rope_type!r}; expected an unscaled or a longrope model"
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizers-library tokenizer of tokenizer.json, which neither cuts nor pads, whatever the file says.

        Raises:
            UnsupportedError: there is no tokenizer.json, or the tokenizers library cannot read it.
        """
        from tokenizers import Tokenizer

        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise UnsupportedError(
                f"{self.name}: no tokenizer.json; convert the tokenizer first "
                "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the library raises bare Exception
            raise UnsupportedError(
                f"{self.name}: tokenizer.json is not one the tokenizers library knows: {error}"
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with whatever the tokenizer adds by itself (BOS)."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` alone, as a part of a longer one."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
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
        return _weight_files(self.path)

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in the weight files. Raises InputError."""
        shapes = [entry["shape"] for file in self.weight_files for entry in safetensors_header(file).values()]
        return sum(math.prod(shape) for shape in shapes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json, tokenizer.json, the weight files' headers and sizes, and samples of their weights.

        Cheap, and two trainings of one model differ; those of the last layers too, in files above `SAMPLE_EVERY` bytes.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        tokenizer = self.path / "tokenizer.json"
        digest.update(tokenizer.read_bytes() if tokenizer.is_file() else b"")
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
    """The original RoPE as factors for `target` tokens: ones, attention factor 1, no start tokens."""
    ones = (1.0,) * (checkpoint.rotary_dim // 2)
    return checkpoint.bind(RescaleFactors(ones, ones, attention_factor=1.0, method="none"), target=target)


def placeholder_factors(checkpoint: Checkpoint, target: int, n_hat: int = 0) -> BoundFactors:
    """Two sets of harmless values for `target` tokens: what exports and training are planned with before a search."""
    pairs = checkpoint.rotary_dim // 2
    ones, twos = (1.0,) * pairs, (2.0,) * pairs
    return checkpoint.bind(RescaleFactors(ones, twos, n_hat=n_hat, method="placeholder"), target=target)


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
    if is_hub_id(str(name)):
        return open_folder(hub_snapshot(str(name)), str(name))
    raise InputError(f"{name}: no such file or folder")


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
    file = path / "config.json"
    if not file.is_file():
        raise InputError(f"{name}: expected a Hugging Face folder, found no config.json in it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{name}: config.json is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{name}: config.json: expected an object, got {type(config).__name__}")
    checkpoint = Checkpoint(path, name, config, keep_alive)
    _ = checkpoint.architecture
    if needs_weights:
        _ = checkpoint.weight_files
    return checkpoint


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name → {dtype, shape, data_offsets}, checked against the file's size.

    Raises:
        InputError: truncated, or not a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{path}: truncated or not safetensors: its header says {length} bytes, the file has {size}"
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise InputError(f"{path}: not a safetensors file: its header cannot be read") from None
    if size != 8 + length + end:
        raise InputError(f"{path}: truncated or damaged: expected {8 + length + end} bytes, got {size}")
    return dict(header)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _indexed_files(index)
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        raise InputError(f"{folder}: {_why_no_weights(folder)}")
    files = []
    for name in names:
        file = folder / name
        if Path(name).name != name:
            raise InputError(f"{index}: weight file {name!r} lies outside the folder; refused")
        if not file.is_file():
            raise InputError(f"{file}: no such file, but the index names it")
        safetensors_header(file)
        files.append(file)
    return tuple(files)


def _indexed_files(index: Path) -> list[str]:
    """The files that model.safetensors.index.json names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        names = set()
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{index}: expected a weight_map of tensor names to files")
    return sorted(names)


def _why_no_weights(folder: Path) -> str:
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)]
    if pickles:
        return f"only pickle weights ({pickles[0]}), which can run code when loaded; convert them to safetensors first"
    return "expected model.safetensors or model.safetensors.index.json, found neither"


def _opener(path: Path) -> Callable[[Path], Checkpoint]:
    found = list(entry_points(group=OPENERS, name=path.suffix.lower()))
    if not found:
        raise InputError(f"{path}: expected a Hugging Face folder or a .gguf file, got a {path.suffix or 'plain'} file")
    opener: Callable[[Path], Checkpoint] = found[0].load()
    return opener


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path here reads like `org/name` or `org/name@revision`."""
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not Path(name).parent.exists()


def hub_snapshot(hub_id: str, patterns: Sequence[str] = HUB_FILES) -> Path:
    """The folder of a repository's files that match, downloaded where they are not in the Hub's cache.

    Raises:
        InputError: there is no such repository.
        MissingRequirementError: the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except RepositoryNotFoundError:
        raise InputError(f"{hub_id}: neither a folder here nor a repository on the Hub (or a private one)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingRequirementError(
            f"{hub_id}: not a folder here, and the Hub cannot be reached ({type(error).__name__})"
        ) from None
