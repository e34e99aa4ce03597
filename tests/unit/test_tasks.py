"""Tasks on user-given JSONL: what is read, what is refused, what is asked of a model, and the scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import FactorSet
from longrope.tasks import TaskRunner, exact_match, f1_score, read_records, rouge_1, rouge_l
from longrope.text import TokenIds

NUMBERS = [{"input": f"{k} and {k}", "output": str(2 * k)} for k in range(10, 40)]
DOCUMENT = "The baker lives in the mill. " * 12
QUESTIONS = [{"context": DOCUMENT, "question": "Where does the baker live?", "answers": ["the mill", "a mill"]}] * 3
SUMMARIES = [{"document": DOCUMENT, "summary": "A baker lives in a mill."}]


class Knowing:
    """A source that goes on from any prompt with the text it is told, then an end token; notes what it was asked."""

    name, rule = "knowing", "per_forward"

    def __init__(self, checkpoint: Checkpoint, text: str = "") -> None:
        self.tokenizer, self.vocab_size = checkpoint.tokenizer, 384
        self.told = checkpoint.encode_plain(text)
        self.prompts: list[str] = []
        self.lengths: list[int] = []

    def set_for(self, length: int) -> FactorSet:
        self.lengths.append(length)
        return "long"

    def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[torch.Tensor]:
        """Predicts each next token of `ids` itself: the text that is read is the text that is known."""
        rows = torch.zeros(len(ids), self.vocab_size)
        rows[torch.arange(len(ids) - 1), torch.as_tensor(ids[1:])] = 5.0
        written = max((k for k in range(len(self.told) + 1) if list(ids[len(ids) - k :]) == self.told[:k]), default=0)
        rows[-1, self.told[written] if written < len(self.told) else 0] = 5.0
        if written == 0:
            self.prompts.append(self.tokenizer.decode(list(ids)))
        yield rows

    def decode_logits(self, ids: TokenIds, prefill: int) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None: ...


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


# -- files


@pytest.mark.parametrize(("task", "records"), [("many-shot", NUMBERS), ("qa", QUESTIONS), ("summarize", SUMMARIES)])
def test_records_are_read(tmp_path: Path, task: str, records: list[Any]) -> None:
    assert read_records(write(tmp_path / "f.jsonl", [*records, {**records[0], "more": 1}]), task) == [
        *records,
        records[0],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON lines with context"),
        ('{"context": "a"}\n', "line 1: question: expected a string, found none"),
        ("\n[1]\n", "line 2"),
        ("{broken\n", "line 1"),
        ('{"context": "a", "question": "b", "answers": "c"}', "answers: expected a list of 1 or more"),
        ('{"context": "a", "question": "b", "answers": []}', "answers: expected a list of 1 or more"),
        ('{"context": 3, "question": "b", "answers": ["c"]}', "context: expected a string, got 3"),
    ],
)
def test_other_files_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_records(tmp_path / "f.jsonl", "qa")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "none.jsonl", "qa")


# -- many-shot


def test_many_shot_shows_examples_and_counts_whole_outputs(pico: Checkpoint) -> None:
    seen: list[TokenIds] = []

    class Half(Knowing):
        def logits(self, ids: TokenIds, factor_set: FactorSet, chunk: int) -> Iterator[torch.Tensor]:
            seen.append(ids)
            for rows in super().logits(ids, factor_set, chunk):
                row = rows.clone()
                text = pico.tokenizer.decode(list(ids))
                target = str(2 * int(text.rsplit("Input: ", 1)[1].split(" ")[0]))
                row[-1, pico.tokenizer.encode(target).ids[-1] if len(seen) % 2 else 1] = 9.0
                yield row

    row = TaskRunner(Half(pico), pico).many_shot(NUMBERS, 3, 512, queries=4)
    assert (row.task, row.shots, row.samples, row.window) == ("many-shot", 3, 4, 512)
    assert row.scores["accuracy"] == 0.5
    for ids, query in zip(seen, NUMBERS[-4:], strict=True):
        text = pico.tokenizer.decode(list(ids))
        assert text.count("Input:") == 4
        assert f"Input: {query['input']}\nOutput: " in text
        shown = list(text.split("\n\n")[:-1])
        assert all(line.split("Output: ")[1] == str(2 * int(line.split()[1])) for line in shown)
        assert query["input"] not in "".join(shown)


def test_examples_are_the_same_for_the_same_seed(pico: Checkpoint) -> None:
    lengths = []
    for seed in (0, 0, 1):
        source = Knowing(pico)
        TaskRunner(source, pico).many_shot(NUMBERS, 5, 512, queries=2, seed=seed)
        lengths.append(source.prompts)
    assert lengths[0] == lengths[1] != lengths[2]


def test_too_many_shots_are_refused_with_counts(pico: Checkpoint) -> None:
    runner = TaskRunner(Knowing(pico), pico)
    with pytest.raises(InputError, match="4 of 4 prompts with 20 shots do not fit a window of 64"):
        runner.many_shot(NUMBERS, 20, 64, queries=4)
    with pytest.raises(InputError, match="expected 40 examples and 4 queries, got 30 lines"):
        runner.many_shot(NUMBERS, 40, 64, queries=4)


# -- documents


def test_questions_are_judged_by_their_first_line(pico: Checkpoint) -> None:
    source = Knowing(pico, " The mill!\nQuestion: and then?")
    row = TaskRunner(source, pico, max_new_tokens=30).questions(QUESTIONS, 512)
    assert row.scores == {"exact_match": 1.0, "f1": 1.0}
    assert (row.samples, row.truncated) == (3, 0)
    assert source.prompts[0].endswith("Question: Where does the baker live?\nAnswer:")
    assert max(source.lengths) == int(row.mean_tokens) + 30


def test_summaries_are_judged_by_all_that_is_written(pico: Checkpoint) -> None:
    row = TaskRunner(Knowing(pico, " A baker lives\nin a mill."), pico, max_new_tokens=60).summaries(SUMMARIES, 512)
    assert row.scores == {"rouge1": 1.0, "rougeL": 1.0}


def test_an_answer_ends_where_room_or_text_ends(pico: Checkpoint) -> None:
    row = TaskRunner(Knowing(pico, " A baker lives in"), pico, max_new_tokens=3).summaries(SUMMARIES, 512)
    assert 0 < row.scores["rouge1"] < 1


def test_documents_that_do_not_fit_are_refused_with_counts(pico: Checkpoint) -> None:
    short = {**QUESTIONS[0], "context": "The mill."}
    with pytest.raises(InputError, match=r"2 of 3 documents do not fit a window of 128 .* cut their middles"):
        TaskRunner(Knowing(pico), pico, max_new_tokens=8).questions([QUESTIONS[0], short, QUESTIONS[1]], 128)


def test_documents_lose_their_middle_on_request(pico: Checkpoint) -> None:
    document = f"First words. {DOCUMENT} Last words."
    source = Knowing(pico)
    runner = TaskRunner(source, pico, max_new_tokens=8, truncate=True)
    row = runner.questions([{**QUESTIONS[0], "context": document}], 100)
    assert (row.truncated, row.mean_tokens) == (1, 92)
    assert source.prompts[0].startswith("First words.")
    assert " Last words.\n\nQuestion:" in source.prompts[0]
    with pytest.raises(InputError, match="no room for a document"):
        runner.questions(QUESTIONS, 20)


# -- scores


@pytest.mark.parametrize(
    ("written", "expected", "exact", "f1"),
    [
        ("The Mill.", "mill", 1, 1),
        ("in the mill", "mill", 0, 2 / 3),
        ("no", "yes", 0, 0),
        ("", "", 1, 1),
        ("", "yes", 0, 0),
        ("a mill a mill", "mill", 0, 2 / 3),
    ],
)
def test_squad_scores(written: str, expected: str, exact: float, f1: float) -> None:
    assert exact_match(written, expected) == exact
    assert f1_score(written, expected) == pytest.approx(f1)


def test_rouge_on_lins_example() -> None:
    """ROUGE-L of Lin (2004), section 3.1: order matters, gaps do not."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(0.5)
    assert rouge_1("the gunman kill police", reference) == pytest.approx(0.75)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = (rng.integers(0, 4, rng.integers(1, 9)).tolist() for _ in range(2))

        def longest(a: list[int], b: list[int]) -> int:
            if not a or not b:
                return 0
            if a[0] == b[0]:
                return 1 + longest(a[1:], b[1:])
            return max(longest(a[1:], b), longest(a, b[1:]))

        expected = 2 * longest(left, right) / (len(left) + len(right))
        texts = [" ".join(f"w{k}" for k in values) for values in (left, right)]
        assert rouge_l(*texts) == pytest.approx(expected)
