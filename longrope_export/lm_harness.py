"""EleutherAI's lm-evaluation-harness over any artifact: its tasks (RULER, LongBench, …) in the artifact's own runtime.

    lm_eval tasks ──requests──► HarnessModel ──score_answer, greedy──► LogitSource (transformers, llama.cpp, onnxruntime)

The harness is not a dependency: `pip install lm_eval` brings it. An exported Hugging Face folder also loads in it without
us (`lm_eval --model hf --model_args pretrained=DIR`); this is for what does not, and for one command over all formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, MissingRequirementError, UnsupportedError
from longrope.progress import Progress
from longrope.scoring import LogitSource, greedy, score_answer

INSTALL = "pip install lm_eval"
DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class HarnessRequest:
    """What the harness is to run.

    Args:
        tasks: names of tasks or groups.
        include: a folder of further tasks' YAML files.
        limit: documents of each task; None for all.
        lengths: prompt lengths of tasks that make their own (RULER).
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    lengths: tuple[int, ...] = ()


def require_harness() -> None:
    """Raise MissingRequirementError unless lm_eval is installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingRequirementError(f"--lm-eval needs the lm-evaluation-harness: {INSTALL} ({error})") from None


def run_harness(
    request: HarnessRequest, checkpoint: Checkpoint, source: LogitSource, window: int, progress: Progress
) -> dict[str, Any]:
    """Metrics by task, as the harness names them, with the versions of its tasks.

    Raises:
        MissingRequirementError: lm_eval is not installed, or a task's data cannot be had.
        InputError: it knows no such task.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    metadata = {"max_seq_lengths": list(request.lengths or (window,)), "tokenizer": str(checkpoint.path)}
    manager = TaskManager(include_path=str(request.include) if request.include else None, metadata=metadata)
    unknown = [name for name in request.tasks if name not in manager.all_tasks]
    if unknown:
        raise InputError(f"--lm-eval: the harness knows no task {', '.join(unknown)}; `lm_eval ls tasks` lists them")
    model = harness_model(checkpoint, source, window)
    try:
        found = simple_evaluate(
            model=model, tasks=list(request.tasks), task_manager=manager, limit=request.limit, bootstrap_iters=0
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise MissingRequirementError(f"--lm-eval: a task's data cannot be read here ({error})") from error
    if model.shortened:
        progress.warn(f"--lm-eval: {model.shortened} prompts were longer than {window} tokens and lost their start")
    return {"results": found["results"], "versions": found["versions"], "shortened": model.shortened}


def harness_model(checkpoint: Checkpoint, source: LogitSource, window: int) -> Any:
    """A source of logits as the harness's `TemplateLM`; made here, for the class can only be derived where lm_eval is."""
    from lm_eval.api.model import TemplateLM

    class HarnessModel(TemplateLM):  # type: ignore[misc]
        """Scores and generates one prompt at a time; greedy decoding only.

        Attributes:
            shortened: prompts that lost their start to fit the window.
        """

        shortened = 0

        @property
        def eot_token_id(self) -> int:
            ends = checkpoint.config.get("eos_token_id")
            return int(ends[0] if isinstance(ends, list) else ends or 0)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids: list[int] = checkpoint.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids
            return ids

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

            sums = []
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=window - 1,
                    context_len=1,
                )
                sums.append(sum(self._score(*make_disjoint_window(part))[0] for part in windows))
            return sums

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [self._generate(context, settings) for context, settings in (request.args for request in requests)]

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            return [self._score(context, continuation) for _, context, continuation in requests]

        def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
            """Summed log-probability of a continuation, and whether it is what greedy decoding writes."""
            ids = self._fitting([*context, *continuation], window)
            nll, likeliest = score_answer(source, ids, len(ids) - len(continuation), source.set_for(len(ids)))
            return -nll, likeliest

        def _generate(self, context: str, settings: dict[str, Any]) -> str:
            if settings.get("do_sample") or settings.get("temperature"):
                raise UnsupportedError("--lm-eval: the task samples; only greedy decoding is done here")
            count = int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
            until = settings.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            if count >= window:
                raise InputError(f"--lm-eval: the task writes up to {count} tokens, the window is {window}")
            ids = self._fitting(self.tok_encode(context), window - count)

            def stop(tokens: Sequence[int]) -> bool:
                return tokens[-1] == self.eot_token_id or any(text in self._text(tokens) for text in stops)

            text = self._text(greedy(source, ids, count, source.set_for(len(ids) + count), stop))
            return min((text.split(mark)[0] for mark in stops if mark), key=len, default=text)

        def _text(self, tokens: Iterable[int]) -> str:
            text: str = checkpoint.tokenizer.decode([int(token) for token in tokens if token != self.eot_token_id])
            return text

        def _fitting(self, ids: Sequence[int], room: int) -> np.ndarray[Any, np.dtype[np.int64]]:
            """The last `room` tokens, as the harness itself does; counted."""
            self.shortened += len(ids) > room
            return np.asarray(ids[-room:], dtype=np.int64)

    return HarnessModel()
