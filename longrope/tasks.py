"""What a longer window is for: many examples before a question, questions on a long document, summaries of one.

    many-shot   {"input", "output"} a line      k examples ─► input ─► is the output the likeliest?      accuracy by k
    qa          {"context", "question", "answers"}   document, question ─► greedy ─► exact match, F1     (SQuAD's)
    summarize   {"document", "summary"}              document ─► greedy ─► ROUGE-1, ROUGE-L

Prompts are plain text. One that does not fit the window is refused, with how many there are, or its document loses its
middle on request, counted. Scores: SQuAD (Rajpurkar et al. 2016) for exact match and F1; ROUGE (Lin 2004). They are computed
here so that words of every script count; DESIGN.md says what libraries do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.metrics import perplexity
from longrope.reading import TEXT, check, list_of, read_lines, record
from longrope.retrieval import common_prefix
from longrope.scoring import LogitSource, greedy, score_answer
from longrope.sources import Stop
from longrope.text import TokenIds

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "many-shot": ("input", "output"),
    "qa": ("context", "question", "answers"),
    "summarize": ("document", "summary"),
}
EXAMPLE: Final = "Input: {input}\nOutput: {output}\n\n"
QUERY: Final = "Input: {input}\nOutput:"
QA_ENDING: Final = "\n\nQuestion: {question}\nAnswer:"
SUMMARY_ENDING: Final = "\n\nSummary:"


@dataclass(frozen=True)
class TaskRow:
    """How well one task went.

    Args:
        task: a key of `FIELDS`.
        window: tokens that a prompt and its answer may take.
        samples: prompts.
        scores: mean score by name, 0 to 1; of many-shot also `output_ppl`.
        shots: examples before the question; None where there are none.
        truncated: prompts whose document was cut to fit.
        mean_tokens: of a prompt.
    """

    task: str
    window: int
    samples: int
    scores: Mapping[str, float]
    shots: int | None = None
    truncated: int = 0
    mean_tokens: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """Token ids [T], and what is expected after them."""

    ids: TokenIds
    expected: tuple[str, ...]
    truncated: bool = False


def read_records(path: Path, task: str) -> list[dict[str, Any]]:
    """The lines of a task's JSONL file.

    Raises:
        InputError: unreadable, a line that is no object with the task's fields (texts; `answers` a list of texts), or empty.
    """
    kind = record({name: list_of(TEXT, least=1) if name == "answers" else TEXT for name in FIELDS[task]})
    checked = (check(data, kind, where) for where, data in read_lines(path, non_finite=True))
    records = [{name: data[name] for name in FIELDS[task]} for data in checked]
    if not records:
        raise InputError(f"{path}: expected JSON lines with {', '.join(FIELDS[task])}, found none")
    return records


class TaskRunner:
    """Puts prompts to a source; the checkpoint gives the tokenizer.

    Args:
        source: a model in some runtime.
        checkpoint: of the same model.
        max_new_tokens: most tokens of a generated answer.
        truncate: cut the middle out of documents that do not fit, instead of refusing them.
        on_prompt: called after each prompt.
    """

    def __init__(
        self,
        source: LogitSource,
        checkpoint: Checkpoint,
        *,
        max_new_tokens: int = 64,
        truncate: bool = False,
        on_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self.checkpoint, self.truncate, self.on_prompt = source, checkpoint, truncate, on_prompt
        self.max_new_tokens = max_new_tokens
        ends = checkpoint.config.get("eos_token_id")
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def many_shot(
        self, records: Sequence[Mapping[str, str]], shots: int, window: int, *, queries: int, seed: int = 0
    ) -> TaskRow:
        """Accuracy on the file's last `queries` lines after `shots` examples, drawn anew for each from the other lines.

        Raises:
            InputError: fewer lines than asked for, or prompts that do not fit.
        """
        pool, asked = records[:-queries], records[-queries:]
        if shots > len(pool) or len(asked) < queries:
            raise InputError(
                f"many-shot: expected {shots} examples and {queries} queries, got {len(records)} lines; "
                "use fewer shots or queries",
                option="shots",
            )
        pairs = []
        for number, query in enumerate(asked):
            drawn = np.random.default_rng([seed, number]).permutation(len(pool))[:shots]
            prompt = "".join(EXAMPLE.format(**pool[k]) for k in drawn) + QUERY.format(input=query["input"])
            whole = self.checkpoint.encode(f"{prompt} {query['output']}")
            pairs.append((np.asarray(whole, dtype=np.int64), common_prefix(self.checkpoint.encode(prompt), whole)))
        self._refuse_misfits("many-shot", [len(ids) for ids, _ in pairs], window, f"prompts with {shots} shots")
        found, nll, tokens = 0, 0.0, 0
        for ids, start in pairs:
            answer_nll, likeliest = score_answer(self.source, ids, start, self.source.set_for(len(ids)))
            found += likeliest
            nll += answer_nll
            tokens += len(ids) - start
            self.on_prompt()
        scores = {"accuracy": found / queries, "output_ppl": perplexity(nll / tokens)}
        return TaskRow("many-shot", window, queries, scores, shots, 0, _mean(len(ids) for ids, _ in pairs))

    def questions(self, records: Sequence[Mapping[str, Any]], window: int) -> TaskRow:
        """Exact match and F1 of what is written up to the end of the line, best of the given answers."""
        asked = [(r["context"], QA_ENDING.format(question=r["question"]), tuple(r["answers"])) for r in records]
        return self._generate("qa", asked, window, {"exact_match": exact_match, "f1": f1_score}, one_line=True)

    def summaries(self, records: Sequence[Mapping[str, str]], window: int) -> TaskRow:
        """ROUGE-1 and ROUGE-L (F1) of what is written."""
        asked = [(record["document"], SUMMARY_ENDING, (record["summary"],)) for record in records]
        return self._generate("summarize", asked, window, {"rouge1": rouge_1, "rougeL": rouge_l}, one_line=False)

    def _generate(
        self,
        task: str,
        asked: Sequence[tuple[str, str, tuple[str, ...]]],
        window: int,
        scorers: Mapping[str, Callable[[str, str], float]],
        *,
        one_line: bool,
    ) -> TaskRow:
        prompts = list(self._prompts(task, asked, window))
        sums = dict.fromkeys(scorers, 0.0)
        for prompt in prompts:
            used = self.source.set_for(len(prompt.ids) + self.max_new_tokens)
            written = greedy(self.source, prompt.ids, self.max_new_tokens, used, self._stop(one_line))
            text = self._text([token for token in written if token not in self.ends])
            text = text.strip().split("\n")[0] if one_line else text
            for name, scorer in scorers.items():
                sums[name] += max(scorer(text, expected) for expected in prompt.expected)
            self.on_prompt()
        scores = {name: value / len(prompts) for name, value in sums.items()}
        truncated = sum(prompt.truncated for prompt in prompts)
        return TaskRow(task, window, len(prompts), scores, None, truncated, _mean(len(p.ids) for p in prompts))

    def _prompts(self, task: str, asked: Sequence[tuple[str, str, tuple[str, ...]]], window: int) -> Iterator[Prompt]:
        """Documents and their endings as token ids that leave room for the answer."""
        parts = [
            (np.asarray(self.checkpoint.encode(document), dtype=np.int64), self._plain(ending))
            for document, ending, _ in asked
        ]
        if not self.truncate:
            needed = [len(ids) + len(ending) + self.max_new_tokens for ids, ending in parts]
            self._refuse_misfits(task, needed, window, "documents", option="truncate")
        for (ids, ending), (_, _, expected) in zip(parts, asked, strict=True):
            room = window - len(ending) - self.max_new_tokens
            if room < 2:
                raise InputError(f"{task}: a window of {window} tokens has no room for a document; use a longer one")
            cut = len(ids) > room
            kept = np.concatenate([ids[: room - room // 2], ids[len(ids) - room // 2 :]]) if cut else ids
            yield Prompt(np.concatenate([kept, ending]), expected, cut)

    def _refuse_misfits(self, task: str, needed: Sequence[int], window: int, what: str, option: str = "") -> None:
        longer = sum(tokens > window for tokens in needed)
        if longer:
            raise InputError(
                f"{task}: {longer} of {len(needed)} {what} do not fit a window of {window} tokens with their answers, "
                f"the longest needs {max(needed)}; use a longer window{' or cut their middles' if option else ''}",
                option=option,
            )

    def _stop(self, one_line: bool) -> Stop:
        """After an end token or, of one-line answers, when a line is full."""

        def stop(tokens: Sequence[int]) -> bool:
            return tokens[-1] in self.ends or (one_line and "\n" in self._text(tokens).lstrip())

        return stop

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.checkpoint.tokenizer.decode([int(token) for token in tokens])
        return text

    def _plain(self, text: str) -> TokenIds:
        return np.asarray(self.checkpoint.encode_plain(text), dtype=np.int64)


# -- scores


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"\w+", text.lower())


def normalized(text: str) -> list[str]:
    """SQuAD's comparison: lower-case words without punctuation and articles."""
    bare = re.sub(r"[^\w\s]", "", text.lower())
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def exact_match(written: str, expected: str) -> float:
    """1 when both are the same words after `normalized`, else 0."""
    return float(normalized(written) == normalized(expected))


def f1_score(written: str, expected: str) -> float:
    """Harmonic mean of the shares of common words, after `normalized`; of empty texts, whether both are."""
    return _overlap_f1(normalized(written), normalized(expected))


def rouge_1(written: str, expected: str) -> float:
    """ROUGE-1: F1 of common words, each counted as often as both have it."""
    return _overlap_f1(words(written), words(expected))


def rouge_l(written: str, expected: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words."""
    found, wanted = words(written), words(expected)
    return _f1(longest_common_subsequence(found, wanted), len(found), len(wanted))


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest sequence that both have in this order, not necessarily without gaps."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for k, other in enumerate(right, start=1):
            above = row[k]
            row[k] = diagonal + 1 if word == other else max(above, row[k - 1])
            diagonal = above
    return row[-1]


def _overlap_f1(written: Sequence[str], expected: Sequence[str]) -> float:
    common = sum((Counter(written) & Counter(expected)).values())
    return _f1(common, len(written), len(expected))


def _f1(common: int, written: int, expected: int) -> float:
    if not written or not expected:
        return float(written == expected)
    return 2 * common / (written + expected)


def _mean(values: Iterable[int]) -> float:
    return float(np.mean(list(values)))
