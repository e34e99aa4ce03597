"""Which runtime uses which factor set when, and how each is started: the one table that `inspect`, reports and cards read.

`ran` is what `make bench-engines` measured: windows below, at and above the original one, with one and with two sets, against
transformers 5. What the other runtimes do was read in their source. A test holds this table against benchmarks/results.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from converters.base import RuntimeUse, window_words
from longrope.architectures import ARCHITECTURES
from longrope.factors import RescaleFactors

_FRESH_CACHE = "generate from a fresh cache once a sequence passes $original tokens, or export --factor-sets single"
_GENERATE_ACROSS = (
    "call longrope.generate_across in the place of generate, which reads the sequence again at $original tokens, or "
    "export --factor-sets single"
)
_PREFILL_AGAIN = "prefill again once a sequence passes $original tokens, or export --factor-sets single"
_LONGEST = "the long set as soon as the longest sequence of a batch has more than $original tokens, "
_CONTEXT = (
    "the short set in contexts ($option, rounded up to a multiple of 256) of up to $original tokens, the long set in "
    "larger ones; never both in one context"
)
_CONTEXT_ADVICE = (
    "start it with $option $original for short work; a larger context has the long set for short prompts too"
)
_ONNX = (
    "the long set for every row that holds a position from $original on, or whose rope_total_length is above $original; "
    "keys already cached keep the short set"
)
_TRANSFORMERS = """```python
from transformers import pipeline

generate = pipeline("text-generation", "$repo")
print(generate("Once upon a time", max_new_tokens=64)[0]["generated_text"])
```"""
_SNAPSHOT = 'snapshot_download("$repo", allow_patterns="onnx/*") + "/onnx"'
_GENAI = """```python
{imports}import onnxruntime_genai as genai

model = genai.Model({model})
tokenizer = genai.Tokenizer(model)
options = genai.GeneratorParams(model)
options.set_search_options(max_length=$target)
generator = genai.Generator(model, options)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```"""
_JS = """```js
import { pipeline } from "@huggingface/transformers";

const generate = await pipeline("text-generation", "$repo", { dtype: "$dtype" });
console.log(await generate("Once upon a time", { max_new_tokens: 64 }));
```"""


# Differences below this one are rounding of the table of results.
FINEST = 1e-7


@dataclass(frozen=True)
class Ran:
    """What came of running a runtime.

    Args:
        version: of it.
        date: of the measurement.
        off: largest difference of the loss of any window to transformers 5 with the set that the row says, in nats per
            token; None where the runtime refuses the model.
    """

    version: str
    date: str
    off: float | None

    def __str__(self) -> str:
        found = "which refuses it" if self.off is None else f"loss within {max(self.off, FINEST):.0e} of the reference"
        return f"run with {self.version} on {self.date}, {found}"


@dataclass(frozen=True)
class Runtime:
    """A row of the table.

    Args:
        name: of the runtime.
        format: that it runs.
        uses: of two sets, which one when; empty where nobody has looked, which leaves the row out.
        safe: whether generating across the original window is right with two sets.
        advice: what makes it right, or which option chooses.
        run: Markdown that starts it, with `$repo`, `$tag` (weight type of a GGUF file), `$dtype` (of transformers.js)
            and `$target`; empty where it is a library only.
        run_local: the same for an artifact on this machine, with `$path`; empty where it needs the Hub's layout.
        option: of the context's length.
        drops_cache: the row is about model types whose class does, or does not, drop the cache at the original window.
        ran: each version that was run.
    """

    name: str
    format: str
    uses: str = ""
    safe: bool = False
    advice: str = ""
    run: str = ""
    run_local: str = ""
    option: str = ""
    drops_cache: bool | None = None
    ran: tuple[Ran, ...] = ()

    @property
    def checked(self) -> str:
        """How the row is known."""
        return "; ".join(map(str, self.ran)) or "read in its source, not run"

    @property
    def refuses(self) -> bool:
        """Whether no version runs the model."""
        return bool(self.ran) and all(each.off is None for each in self.ran)


def _shell(command: str) -> str:
    return f"```sh\n{command}\n```"


RUNTIMES = (
    Runtime(
        "transformers",
        "hf",
        _LONGEST + "while keys already cached keep the short set",
        False,
        _GENERATE_ACROSS,
        _TRANSFORMERS,
        _TRANSFORMERS.replace("$repo", "./$path"),
        drops_cache=False,
        ran=(Ran("5.24.0", "2026-11-29", 1e-15), Ran("4.57.6", "2026-11-29", 1e-15)),
    ),
    Runtime(
        "transformers",
        "hf",
        _LONGEST + "and then drops the cache",
        True,
        run=_TRANSFORMERS,
        run_local=_TRANSFORMERS.replace("$repo", "./$path"),
        drops_cache=True,
    ),
    Runtime(
        "vLLM",
        "hf",
        "the long set for everything when --max-model-len is above $original, else the short set",
        True,
        "pass --max-model-len: its default is $original",
        _shell("vllm serve $repo --max-model-len $target"),
        _shell("vllm serve ./$path --max-model-len $target"),
        ran=(Ran("0.32.0", "2026-11-29", 2e-7),),
    ),
    Runtime(
        "SGLang",
        "hf",
        "the long set when a batch holds a position from $original on",
        False,
        _FRESH_CACHE,
        _shell("python -m sglang.launch_server --model-path $repo --context-length $target"),
        _shell("python -m sglang.launch_server --model-path ./$path --context-length $target"),
    ),
    Runtime("TGI", "hf"),
    Runtime(
        "mlx-lm",
        "hf",
        "always the long set",
        True,
        run=_shell("mlx_lm.generate --model $repo --prompt 'Once'"),
        run_local=_shell("mlx_lm.generate --model ./$path --prompt 'Once'"),
        ran=(Ran("0.32.2", "2026-11-29", 4.1e-7),),
    ),
    Runtime(
        "CTranslate2",
        "hf",
        "none, but of Phi-3 models: its converter refuses longrope of every other model type",
        True,
        ran=(Ran("4.8.5", "2026-11-29", None),),
    ),
    Runtime(
        "llama.cpp",
        "gguf",
        _CONTEXT,
        True,
        _CONTEXT_ADVICE,
        _shell("llama-cli -hf $repo:$tag -c $target"),
        _shell("llama-cli -m ./$path -c $target"),
        option="-c",
        ran=(Ran("0.3.36", "2026-11-29", 1.3e-6),),
    ),
    Runtime(
        "Ollama",
        "gguf",
        _CONTEXT,
        True,
        _CONTEXT_ADVICE,
        _shell("ollama run hf.co/$repo:$tag   # then: /set parameter num_ctx $target"),
        _shell(
            "printf 'FROM ./$path\\nPARAMETER num_ctx $target\\n' > Modelfile\n"
            "ollama create extended -f Modelfile\nollama run extended"
        ),
        option="num_ctx",
    ),
    Runtime(
        "LM Studio",
        "gguf",
        _CONTEXT,
        True,
        _CONTEXT_ADVICE,
        _shell("lms get $repo\nlms load --context-length $target"),
        option="--context-length",
    ),
    Runtime("onnxruntime", "onnx", _ONNX, False, _PREFILL_AGAIN, ran=(Ran("1.32.0", "2026-11-29", 1.1e-6),)),
    Runtime(
        "onnxruntime-genai",
        "onnx",
        _ONNX,
        False,
        _PREFILL_AGAIN,
        _GENAI.format(model=_SNAPSHOT, imports="from huggingface_hub import snapshot_download\n"),
        _GENAI.format(model='"./$path"', imports=""),
        ran=(Ran("0.18.0", "2026-11-29", 1.1e-6),),
    ),
    Runtime("optimum", "onnx", _ONNX, False, _PREFILL_AGAIN),
    Runtime("transformers.js", "onnx", _ONNX, False, _PREFILL_AGAIN, _JS, ran=(Ran("4.3.1", "2026-11-29", 1.1e-6),)),
    Runtime("OpenVINO", "onnx", _ONNX, False, _PREFILL_AGAIN, ran=(Ran("2026.4.1", "2026-11-29", 2.7e-7),)),
)


def runtime_uses(format: str, factors: RescaleFactors) -> list[RuntimeUse]:
    """The rows of a format for these factors, with their lengths filled in."""
    row = ARCHITECTURES.get(factors.model_type or "")
    drops = row is not None and row.drops_cache_at_crossing
    fitting = [each for each in RUNTIMES if each.format == format and each.drops_cache in (None, drops)]
    if factors.factor_sets == "single":
        return [_of_one_set(each, factors) for each in fitting]
    return [
        RuntimeUse(
            each.name,
            _filled(each.uses, each, factors),
            each.safe,
            _filled(each.advice, each, factors),
            _filled(each.run, each, factors),
            _filled(each.run_local, each, factors),
            each.checked,
        )
        for each in fitting
        if each.uses
    ]


def _of_one_set(runtime: Runtime, factors: RescaleFactors) -> RuntimeUse:
    uses = runtime.uses if runtime.refuses else "the one set, at every length"
    run, run_local = (_filled(text, runtime, factors) for text in (runtime.run, runtime.run_local))
    return RuntimeUse(runtime.name, uses, True, "", run, run_local, runtime.checked)


def _filled(text: str, runtime: Runtime, factors: RescaleFactors) -> str:
    known = {"original": window_words(factors), "target": factors.target_length or "N", "option": runtime.option}
    return Template(text).safe_substitute(known)
