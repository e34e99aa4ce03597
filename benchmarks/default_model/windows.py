"""Training windows of the default model: plain prose, and prose with something in it to be found again.

    prose      │ a contiguous run of the documents, at a random offset
    passkey    │ filler · "The pass key is 48213." · filler · "What is the pass key? The pass key is 48213"
    register   │ filler with several people's numbers told, then asked for in another order
    echo       │ filler · segment · filler · the same segment again
    drill      │ one segment of random tokens or digits over and over: nothing but copying can predict it

Each window comes with weights for its tokens' losses, so that answers count for more than filler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from longrope.retrieval import Encode, passkey_sample
from longrope.text import TokenIds

Weights = npt.NDArray[np.float32]

_NAME_LIST: Final = """
Adam Agnes Anne Arthur Bella Bridget Charles Clara Daniel Diana Edmund Edith Emma Fanny Frank George Grace Harriet
Henry Isabel James Jane John Kate Laura Lucy Margaret Martin Mary Nathan Nora Oliver Paul Peter Rachel Robert Rose
Ruth Sarah Simon Sophia Susan Thomas Ursula Victor Walter William
"""
NAMES: Final = tuple(_NAME_LIST.split())


@dataclass(frozen=True)
class Mix:
    """What a batch of windows is made of. Shares are fractions; what is left of 1 is plain prose."""

    passkey: float = 0.10
    register: float = 0.07
    echo: float = 0.07
    drill: float = 0.02
    answer_weight: float = 4.0

    @property
    def prose(self) -> float:
        """Share of plain prose."""
        return 1.0 - self.passkey - self.register - self.echo - self.drill


class WindowSampler:
    """Draws training windows from one long stream of token ids, reproducibly by its random generator."""

    def __init__(self, stream: TokenIds, encode: Encode, length: int, mix: Mix, rng: np.random.Generator) -> None:
        self.stream, self.encode, self.length, self.mix, self.rng = stream, encode, length, mix, rng
        self.vocabulary = np.arange(1, int(stream.max()) + 1)
        self.digits = np.array(encode("0123456789"))

    def batch(self, num_windows: int) -> tuple[TokenIds, Weights]:
        """`num_windows` windows: ids and loss weights, both of shape (num_windows, length)."""
        mix = self.mix
        kinds = (self._passkey, self._register, self._echo, self._drill, self._prose)
        shares = (mix.passkey, mix.register, mix.echo, mix.drill, mix.prose)
        drawn = [kinds[kind]() for kind in self.rng.choice(len(kinds), num_windows, p=shares)]
        return np.stack([ids for ids, _ in drawn]), np.stack([weights for _, weights in drawn])

    def _run(self, length: int) -> TokenIds:
        start = int(self.rng.integers(self.stream.size - length + 1))
        return self.stream[start : start + length]

    def _ones(self) -> Weights:
        return np.ones(self.length, dtype=np.float32)

    def _prose(self) -> tuple[TokenIds, Weights]:
        return self._run(self.length), self._ones()

    def _passkey(self) -> tuple[TokenIds, Weights]:
        sample = passkey_sample(self.encode, self._run(self.length), self.length, float(self.rng.random()), self.rng)
        weights = self._ones()
        weights[sample.answer_start : sample.answer_stop] = self.mix.answer_weight
        return sample.token_ids, weights

    def _register(self) -> tuple[TokenIds, Weights]:
        names = self.rng.choice(NAMES, int(self.rng.integers(2, 5)), replace=False)
        numbers = self.rng.integers(100, 100_000, names.size)
        questions: list[int] = []
        answers: list[float] = []
        for i in self.rng.permutation(names.size):
            asked = self.encode(f"\n\nWhat is the number of {names[i]}? The number of {names[i]} is")
            answer = self.encode(f" {numbers[i]}")
            questions += [*asked, *answer]
            answers += [1.0] * len(asked) + [self.mix.answer_weight] * len(answer)
        statements = [self.encode(f"\n\nThe number of {n} is {k}.\n\n") for n, k in zip(names, numbers, strict=True)]
        filler = self._run(self.length - len(questions) - sum(map(len, statements)))
        runs = np.split(filler, np.sort(self.rng.integers(0, filler.size + 1, names.size)))
        told_ids = [part for pair in zip(runs, statements, strict=False) for part in pair]
        weights = self._ones()
        weights[self.length - len(questions) :] = answers
        return np.concatenate([*told_ids, runs[-1], questions]), weights

    def _echo(self) -> tuple[TokenIds, Weights]:
        size = int(self.rng.integers(8, self.length // 3))
        segment = self._run(size) if self.rng.random() < 0.6 else self.rng.choice(self.vocabulary, size)
        room = self.length - 2 * size
        first, second = sorted(self.rng.integers(0, room + 1, 2))
        filler = self._run(room)
        ids = np.concatenate([filler[:first], segment, filler[first:second], segment, filler[second:]])
        weights = self._ones()
        weights[second + size + 2 : second + 2 * size] = 2.0
        return ids, weights

    def _drill(self) -> tuple[TokenIds, Weights]:
        alphabet = self.digits if self.rng.random() < 0.2 else self.vocabulary
        period = int(np.exp(self.rng.uniform(np.log(4), np.log(self.length // 4))))
        weights = self._ones()
        weights[:period] = 0.0
        return np.resize(self.rng.choice(alphabet, period), self.length), weights
