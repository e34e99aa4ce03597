"""The windows of an objective, cut from the user's documents.

perplexity   the first L' tokens of documents                              (LongRoPE, arXiv 2402.13753, section 4.2)
needle       a passkey stated at spread depths in L' tokens of real text; only the answer's tokens count
                                                                           (LongRoPE2, arXiv 2502.20082, section 3.2)
mixed        both, half of the weight each
other lengths beside L', each with its share of the weight
short side   windows of L tokens, for a cap on the loss there
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from longrope.checkpoint import Checkpoint
from longrope.retrieval import RetrievalSample, passkey_sample
from longrope.search.objective import Objective, Window
from longrope.search.options import SearchOptions
from longrope.text import Corpus

# Further windows that gradient steps draw from; more documents generalise better than more steps on few.
EXTRA_WINDOWS = 64


def build_objective(checkpoint: Checkpoint, corpus: Corpus, target: int, options: SearchOptions) -> Objective:
    """All windows of a search; the cap of a two-sided one is set once its reference is measured.

    Args:
        checkpoint: gives the tokenizer and L.
        corpus: documents.
        target: L' in tokens.
        options: objective, num_documents, window_shares, short_budget, num_short_windows.

    Raises:
        InputError: documents too short.
    """
    own_share = 1.0 - sum(share for _, share in options.window_shares)
    windows, extra = list[Window](), list[Window]()
    for part, (ranking, fresh) in enumerate(_parts(checkpoint, corpus, target, options, own_share)):
        windows += [replace(window, part=part) for window in ranking]
        extra += [replace(window, part=part, extra=True) for window in fresh]
    if options.short_budget is not None:
        short = whole_windows(corpus, checkpoint.window, options.num_short_windows)
        windows += [replace(window, side="short") for window in short]
    return Objective((*windows, *extra))


def oddities(corpus: Corpus, length: int, options: SearchOptions, original: int) -> Iterator[str]:
    """What a person should know of texts that serve, but not as asked; `original`: L, of a cap's windows."""
    num_documents = options.num_documents
    count, short = len(corpus.documents), sum(len(document) < length for document in corpus.documents)
    if short:
        yield f"{short} of {count} documents are shorter than {length} tokens and were left out at that length"
    wanted = {length: _num_windows(options)[0], **{other: num_documents for other, _ in options.window_shares}}
    if options.short_budget is not None:
        wanted[original] = max(options.num_short_windows, wanted.get(original, 0))
    for tokens, number in wanted.items():
        windows = len(corpus.windows(tokens, number)) if number else 0
        if windows < number:
            yield f"expected {number} windows of {tokens} tokens, got {windows}; more text ranks candidates better"


def whole_windows(corpus: Corpus, length: int, num_documents: int, *, share: float = 1.0) -> list[Window]:
    """The first `length` tokens of so many documents, weighted by the tokens they predict.

    A corpus of fewer documents gives further windows of the same ones.

    Args:
        corpus: documents.
        length: tokens of each window.
        num_documents: how many windows.
        share: weight of all of them together.

    Raises:
        InputError: no document is long enough; says how many there are and how long the longest is.
    """
    return _shared([Window(ids) for ids in corpus.windows(length, num_documents)], share)


def needle_windows(
    checkpoint: Checkpoint, corpus: Corpus, length: int, count: int, *, share: float = 1.0, seed: int = 0
) -> list[Window]:
    """Windows with a passkey at depths spread from start to end; only the answer's tokens count.

    Args:
        checkpoint: gives the tokenizer.
        corpus: filler, one document a window, in turn.
        length: tokens of each window.
        count: how many windows.
        share: weight of all of them together.
        seed: of keys and places.

    Raises:
        InputError: no document is long enough.
    """
    rng = np.random.default_rng(seed)
    fillers = [document.ids for document in corpus.documents if len(document) >= length]
    if not fillers:
        corpus.windows(length)  # says what was found
    encode, start = checkpoint.encode_plain, checkpoint.added_around[0]
    samples = [
        passkey_sample(encode, fillers[k % len(fillers)][len(start) :], length, (k + 0.5) / count, rng, start_ids=start)
        for k in range(count)
    ]
    return _shared([_needle(sample) for sample in samples], share)


def _parts(
    checkpoint: Checkpoint, corpus: Corpus, target: int, options: SearchOptions, own_share: float
) -> Iterator[tuple[list[Window], list[Window]]]:
    """(windows that rank candidates, further ones for gradient steps) of each part of the objective.

    Of further ones about as many as its share; none where the documents have no more.
    """
    count, (num_whole, num_needles) = options.num_documents, _num_windows(options)
    share = own_share / 2 if num_whole and num_needles else own_share

    def fresh(length: int, share: float) -> list[Window]:
        return [Window(ids) for ids in corpus.windows(length, count + round(EXTRA_WINDOWS * share))[count:]]

    if num_whole:
        yield whole_windows(corpus, target, num_whole, share=share), fresh(target, share)
    if num_needles:
        further = max(1, round(EXTRA_WINDOWS * share))
        yield (
            needle_windows(checkpoint, corpus, target, num_needles, share=share),
            needle_windows(checkpoint, corpus, target, further, seed=1),
        )
    for length, part in options.window_shares:
        yield whole_windows(corpus, length, count, share=part), fresh(length, part)


def _num_windows(options: SearchOptions) -> tuple[int, int]:
    """How many whole windows and how many needles rank candidates."""
    count = options.num_documents
    half = max(1, count // 2)
    return {"perplexity": (count, 0), "needle": (0, count), "mixed": (count - half or 1, half)}[options.objective]


def _shared(windows: Sequence[Window], share: float) -> list[Window]:
    counted = sum(window.counted for window in windows)
    return [replace(window, weight=share * window.counted / counted) for window in windows]


def _needle(sample: RetrievalSample) -> Window:
    return Window(sample.token_ids, sample.answer_start, sample.answer_stop)
