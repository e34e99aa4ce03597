"""Which runtime uses which factor set when, and how each is started: the one table that `inspect`, reports and cards read.

`ran`: this program's own checks run the runtime. What the others do was read in their source; their commands were not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from converters.base import RuntimeUse, window_words
from longrope.architectures import ARCHITECTURES
from longrope.factors import RescaleFactors

_FRESH_CACHE = "generate from a fresh cache once a sequence passes $original tokens, or export --factor-sets single"
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
_GENAI = """```python
from huggingface_hub import snapshot_download
import onnxruntime_genai as genai

model = genai.Model(snapshot_download("$repo", allow_patterns="onnx/*") + "/onnx")
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
        option: of the context's length.
        drops_cache: the row is about model types whose class does, or does not, drop the cache at the original window.
        ran: whether this program's checks run it.
    """

    name: str
    format: str
    uses: str = ""
    safe: bool = False
    advice: str = ""
    run: str = ""
    option: str = ""
    drops_cache: bool | None = None
    ran: bool = False


def _shell(command: str) -> str:
    return f"```sh\n{command}\n```"


RUNTIMES = (
    Runtime(
        "transformers",
        "hf",
        _LONGEST + "while keys already cached keep the short set",
        False,
        _FRESH_CACHE,
        _TRANSFORMERS,
        drops_cache=False,
        ran=True,
    ),
    Runtime(
        "transformers",
        "hf",
        _LONGEST + "and then drops the cache",
        True,
        run=_TRANSFORMERS,
        drops_cache=True,
        ran=True,
    ),
    Runtime(
        "vLLM",
        "hf",
        "the long set for everything when --max-model-len is above $original, else the short set",
        True,
        "pass --max-model-len: its default is $original",
        _shell("vllm serve $repo --max-model-len $target"),
    ),
    Runtime(
        "SGLang",
        "hf",
        "the long set when a batch holds a position from $original on",
        False,
        _FRESH_CACHE,
        _shell("python -m sglang.launch_server --model-path $repo --context-length $target"),
    ),
    Runtime("TGI", "hf"),
    Runtime("mlx-lm", "hf", "always the long set", True, run=_shell("mlx_lm.generate --model $repo --prompt 'Once'")),
    Runtime(
        "llama.cpp",
        "gguf",
        _CONTEXT,
        True,
        _CONTEXT_ADVICE,
        _shell("llama-cli -hf $repo:$tag -c $target"),
        option="-c",
        ran=True,
    ),
    Runtime(
        "Ollama",
        "gguf",
        _CONTEXT,
        True,
        _CONTEXT_ADVICE,
        _shell("ollama run hf.co/$repo:$tag   # then: /set parameter num_ctx $target"),
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
    Runtime("onnxruntime", "onnx", _ONNX, False, _PREFILL_AGAIN, ran=True),
    Runtime("onnxruntime-genai", "onnx", _ONNX, False, _PREFILL_AGAIN, _GENAI),
    Runtime("optimum", "onnx", _ONNX, False, _PREFILL_AGAIN),
    Runtime("transformers.js", "onnx", _ONNX, False, _PREFILL_AGAIN, _JS),
)


def runtime_uses(format: str, factors: RescaleFactors) -> list[RuntimeUse]:
    """The rows of a format for these factors, with their lengths filled in."""
    row = ARCHITECTURES.get(factors.model_type or "")
    drops = row is not None and row.drops_cache_at_crossing
    fitting = [each for each in RUNTIMES if each.format == format and each.drops_cache in (None, drops)]
    if factors.factor_sets == "single":
        return [
            RuntimeUse(each.name, "the one set, at every length", True, "", _filled(each.run, each, factors), each.ran)
            for each in fitting
        ]
    return [
        RuntimeUse(
            each.name,
            *(_filled(each.uses, each, factors), each.safe, _filled(each.advice, each, factors)),
            _filled(each.run, each, factors),
            each.ran,
        )
        for each in fitting
        if each.uses
    ]


def _filled(text: str, runtime: Runtime, factors: RescaleFactors) -> str:
    known = {"original": window_words(factors), "target": factors.target_length or "N", "option": runtime.option}
    return Template(text).safe_substitute(known)
