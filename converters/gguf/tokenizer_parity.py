"""Do llama.cpp and the tokenizers library split text alike? Asked before any weight is written.

Vocabulary ──weightless GGUF──► llama.cpp ──ids──┐
tokenizer.json ──► tokenizers ──ids──────────────┴─► first difference, or none
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.gguf import native
from converters.gguf.container import TensorInfo, Value, write_skeleton
from longrope.files import errors_of_writing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts on which splitters are known to differ.
AWKWARD = (
    "",
    " ",
    "  two  spaces,   three,    four     ",
    "\n",
    "\n\n\n",
    " \n \n\t\t\n  x\r\n\r\ny",
    "tabs\tand\t\tmore \t mixed  \t",
    "trailing newline\n",
    "0 7 42 365 1024 65536 1234567 3.14159 1,000,000 0x1F 1e-9 ½ ² Ⅷ ٣٤",
    "2026-11-23T07:10:47Z v1.2.3-rc4+build.56 192.168.0.1:8080",
    "I'm you're he'll they'd we've it's don't I'M YOU'RE HE'LL 'tis ’twas rock'n'roll",
    "CamelCase snake_case SCREAMING_CASE kebab-case ALLCAPSword iPhone15Pro",
    "¿Qué? Ärger, naïve façade, Łódź, Þórr, ΑΒΓ αβγ, Привет мир, עולם שלום, مرحبا بالعالم, नमस्ते दुनिया, สวัสดีชาวโลก",
    "你好，世界！漢字かなカナ混じり文。안녕하세요 세계 ㄱㄴㄷ",
    "😀 😃😄 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👍🏽 ❤️ ☃ ✓ → ∑ √ ∞",
    "“quotes” ‘single’ «guillemets» – en — em … ellipsis • bullet € £ ¥ § ©",
    "...!!!??? --- === *** ### $$$ %%% &&& @@@ ^^^ ~~~ ``` ''' \"\"\"",
    "def f(x: int) -> list[int]:\n    return [i**2 for i in range(x) if i % 2 == 0]  # squares\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }\n\n\treturn a[n-1];\n",
    '<html><body class="x">&nbsp;&#169;</body></html>',
    "https://example.org/path?q=1&r=two#frag mail@example.org C:\\dir\\file.txt /usr/bin/env",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n* item\n  * nested\n1. first\n",
    "non\u00a0breaking ideographic\u3000space thin\u2009space",
    "The quick brown fox jumps over the lazy dog. " * 4,
)
_ALPHABET = "aZéßж漢字か한😀 \t\n.,'’-_/#0123456789"
_RANDOM_TEXTS = 200
_CONTROL_TOKENS = 64


@dataclass(frozen=True)
class Difference:
    """A text that the two split differently."""

    text: str
    expected: Sequence[int]
    actual: Sequence[int]

    def __str__(self) -> str:
        pairs = zip(self.expected, self.actual, strict=False)
        shorter = min(len(self.expected), len(self.actual))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
        window = slice(max(at - 2, 0), at + 6)
        return (
            f"{self.text[:60]!r} becomes {list(self.actual[window])} in llama.cpp, expected {list(self.expected[window])} "
            f"(from token {window.start} on)"
        )


def awkward_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that tell splitters apart: known hard ones, random mixtures, and control tokens in and between words."""
    yield from AWKWARD
    rng = np.random.default_rng(0)
    for _ in range(_RANDOM_TEXTS):
        yield "".join(rng.choice(list(_ALPHABET), size=rng.integers(1, 40)))
    for added in sorted(tokenizer.get_added_tokens_decoder().values(), key=lambda token: str(token.content))[
        :_CONTROL_TOKENS
    ]:
        yield f"{added.content}"
        yield f"before{added.content}after {added.content} and\n{added.content}\n"


def difference(
    tokenizer: Tokenizer, values: Mapping[str, Value], infos: Sequence[TensorInfo] = (), name: str | None = None
) -> Difference | None:
    """The first awkward text that llama.cpp, given these metadata, splits otherwise than `tokenizer`; None if none.

    Args:
        infos: tensors of the file; where given, llama.cpp checks them too, as it would on loading the file.
        name: of the model, for messages.

    Raises:
        InputError: llama.cpp does not load a file like this; says why.
        MissingRequirementError: llama-cpp-python is not installed.
    """
    texts = list(awkward_texts(tokenizer))
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    with tempfile.TemporaryDirectory(prefix="longrope-vocab-") as folder:
        path = Path(folder) / "skeleton.gguf"
        with errors_of_writing(path):
            write_skeleton(path, values, infos)
        with native.loaded_model(path, load="skeleton" if infos else "vocabulary", name=name) as model:
            for text, ids in zip(texts, expected, strict=True):
                found = native.tokenize(model, text)
                if found != ids:
                    return Difference(text, ids, found)
    return None
