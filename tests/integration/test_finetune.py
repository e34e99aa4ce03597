"""Training of a pico model: the loss, resuming after kill -9, LoRA, what is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longrope.checkpoint import Checkpoint, open_folder
from longrope.errors import InputError, LongRopeError, MissingRequirementError
from longrope.estimates.training import checkpoint_bytes
from longrope.factors import BoundFactors, RescaleFactors
from longrope.finetune.batch import IGNORED
from longrope.finetune.checkpoints import latest_checkpoint
from longrope.finetune.data import training_rows
from longrope.finetune.log import read_log
from longrope.finetune.model import TrainedModel
from longrope.finetune.options import TrainOptions
from longrope.finetune.parallel import Parallel
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import finetune, mixture_of
from longrope.modeling import build_model
from longrope.text import Corpus, load_corpus
from longrope.weights import safetensors_header
from tests.common import REPOSITORY, pico_checkpoint

STAGE = Stage(256, steps=6, learning_rate=3e-3, warmup=2, batch=2, short_share=0.3, retrieval_share=0.2)
ONE_THREAD = TrainOptions(threads=1, save_every=2)


@pytest.fixture(scope="module")
def corpus(pico: Checkpoint, texts: Path) -> Corpus:
    return load_corpus([texts], pico.encode)


@pytest.fixture(scope="module")
def trained(pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("training") / "run"
    finetune(pico, dual, STAGE, corpus, folder, options=ONE_THREAD)
    return folder


def losses(folder: Path) -> list[float]:
    return [record.loss for record in read_log(folder / "log.jsonl")]


def test_training_lowers_the_loss_and_writes_the_same_kind_of_folder(trained: Path, pico: Checkpoint) -> None:
    records = read_log(trained / "log.jsonl")
    assert [record.step for record in records] == list(range(1, 7))
    assert records[-1].loss < records[0].loss - 0.3
    assert [record.learning_rate for record in records[:3]] == pytest.approx([0.0, 1.5e-3, 3e-3])
    assert records[-1].tokens == 6 * 2 * 256
    made = open_folder(trained / "model")
    assert made.config == pico.config
    assert made.fingerprint != pico.fingerprint
    assert made.encode("a b") == pico.encode("a b")
    assert build_model(made) is not None


def test_the_first_loss_is_that_of_a_plain_forward(trained: Path, pico: Checkpoint, corpus: Corpus) -> None:
    """transformers' logits of each sequence alone, with the set of its length, averaged by weight."""
    factors = open_factors(trained, pico)
    rows = training_rows(pico, corpus, mixture_of(STAGE, factors, ONE_THREAD))
    models = {0: build_model(pico, single(factors, "short")), 1: build_model(pico, single(factors, "long"))}
    total = weight = 0.0
    for number in range(STAGE.batch):
        batch = rows.row(number)
        for start, stop in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            model = models[int(batch.sets[0, start])]
            with torch.inference_mode():
                logits = model(input_ids=batch.ids[:, start:stop]).logits[0]
            labels = batch.labels[0, start:stop]
            nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
            total += float((nll * batch.weights[0, start:stop]).sum())
            weight += float(batch.weights[0, start:stop].sum())
    assert losses(trained)[0] == pytest.approx(total / weight, rel=1e-5)


def open_factors(folder: Path, checkpoint: Checkpoint) -> BoundFactors:
    import json

    return checkpoint.bind(RescaleFactors.from_json(json.loads((folder / "training.json").read_text())["factors"]))


def single(factors: BoundFactors, name: Any) -> BoundFactors:
    """One of two sets for every length."""
    return replace(factors, short_factor=factors.set(name), long_factor=factors.set(name))


def test_the_same_seed_gives_the_same_run(
    trained: Path, pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path
) -> None:
    finetune(pico, dual, STAGE, corpus, tmp_path / "run", options=ONE_THREAD)
    assert losses(tmp_path / "run") == losses(trained)


def test_activation_checkpointing_and_small_passes_change_nothing(
    trained: Path, pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path
) -> None:
    options = TrainOptions(threads=1, checkpointing=True, pass_tokens=256)
    finetune(pico, dual, STAGE, corpus, tmp_path / "run", options=options)
    assert losses(tmp_path / "run") == pytest.approx(losses(trained), rel=1e-5)


RESUMED = """
import sys
from dataclasses import replace
from pathlib import Path
from longrope.checkpoint import open_folder
from longrope.factors import RescaleFactors
from longrope.finetune.options import TrainOptions
from longrope.finetune.stages import Stage
from longrope.finetune.trainer import finetune
from longrope.text import load_corpus
model, factors, texts, folder = map(Path, sys.argv[1:])
checkpoint = open_folder(model)
stage = Stage(256, steps=6, learning_rate=3e-3, warmup=2, batch=2, short_share=0.3, retrieval_share=0.2)
finetune(checkpoint, RescaleFactors.load(factors), stage, load_corpus([texts], checkpoint.encode), folder,
         options=TrainOptions(threads=1, save_every=2), resume=True)
"""


@pytest.mark.parametrize("after_step", [3, 4])
def test_a_killed_run_goes_on_with_the_same_curve(
    trained: Path, pico: Checkpoint, factors_file: Path, texts: Path, tmp_path: Path, after_step: int
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", RESUMED, str(pico.path), str(factors_file), str(texts), str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while len(losses(folder)) < after_step:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "model").exists()
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert losses(folder) == pytest.approx(losses(trained), abs=1e-6)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        torch.testing.assert_close(tensor(folder, name), tensor(trained, name), rtol=0, atol=1e-6)


def tensor(folder: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(folder / "model" / "model.safetensors", "pt") as file:
        found: torch.Tensor = file.get_tensor(name)
    return found


def test_resuming_refuses_another_run(trained: Path, pico: Checkpoint, dual: BoundFactors, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"the run has changed: stage.learning_rate was 0.003, is 0.1"):
        finetune(pico, dual, Stage(256, steps=6, learning_rate=0.1, batch=2), corpus, trained, resume=True)
    with pytest.raises(InputError, match="exists"):
        finetune(pico, dual, STAGE, corpus, trained)


def test_a_finished_run_is_not_run_again(trained: Path, pico: Checkpoint, dual: BoundFactors, corpus: Corpus) -> None:
    before = (trained / "model" / "model.safetensors").stat().st_mtime_ns
    again = finetune(pico, dual, STAGE, corpus, trained, options=ONE_THREAD, resume=True)
    assert (trained / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert again.tokens == 6 * 2 * 256


def test_checkpoints_are_few_and_hold_no_pickle(trained: Path) -> None:
    assert latest_checkpoint(trained / "checkpoints") == trained / "checkpoints" / "step-00000006"
    assert {file.suffix for file in trained.rglob("*") if file.is_file() and "tensorboard" not in str(file)} <= {
        ".json",
        ".jsonl",
        ".safetensors",
    }


def test_buffers_of_old_checkpoints_do_not_stop_the_trained_weights(
    pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path
) -> None:
    """Llama 2's first exports carry inv_freq, which transformers has no place for any more."""
    folder = tmp_path / "old"
    shutil.copytree(pico.path, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**weights, name: torch.ones(4)}, file, metadata={"format": "pt"})
    run = finetune(open_folder(folder), dual, replace(STAGE, steps=2), corpus, tmp_path / "run", options=ONE_THREAD)
    (made,) = run.checkpoint.weight_files
    assert safetensors_header(made).keys() == weights.keys()


def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is that of the step before, and the run goes on from it."""
    stage, clip, steps = replace(STAGE, steps=3), Parallel.clip_grad_norm, []

    def broken(*arguments: Any) -> torch.Tensor:
        steps.append(clip(*arguments))
        return torch.tensor(float("nan")) if len(steps) == 3 else steps[-1]

    options = replace(ONE_THREAD, save_every=1)
    whole = finetune(pico, dual, stage, corpus, tmp_path / "whole", options=options)
    with monkeypatch.context() as patched:
        patched.setattr(Parallel, "clip_grad_norm", broken)
        with pytest.raises(LongRopeError, match=r"step 3: the gradient's norm is nan; .* lower learning rate"):
            finetune(pico, dual, stage, corpus, tmp_path / "run", options=options)
    run = finetune(pico, dual, stage, corpus, tmp_path / "run", options=options, resume=True)
    assert run.checkpoint.fingerprint == whole.checkpoint.fingerprint


@pytest.mark.parametrize("tied", [False, True])
def test_lora_merged_is_lora(tmp_path: Path, corpus: Corpus, tied: bool) -> None:
    """Only adapters, norms and embeddings move; the merged folder computes what the adapted model computed."""
    checkpoint = pico_checkpoint(tmp_path / "source", tie_word_embeddings=tied)
    factors = checkpoint.bind(RescaleFactors((1.0,) * 8, (2.0,) * 8, target_length=256))
    options = TrainOptions(threads=1, lora_rank=4)
    trained = TrainedModel(checkpoint, factors, options, Parallel.single())
    names = {name for name, p in trained.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "norm" in name or "embed" in name for name in names)
    assert any("lora_A" in name for name in names)
    batch = training_rows(checkpoint, corpus, mixture_of(STAGE, factors, options)).row(0)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    for _ in range(2):
        (trained.loss(batch) / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = trained.loss(batch).item()
    trained.save(tmp_path / "merged")
    merged = TrainedModel(open_folder(tmp_path / "merged"), factors, TrainOptions(threads=1), Parallel.single())
    assert merged.loss(batch).item() == pytest.approx(adapted, rel=1e-6)
    weights = safetensors_header(tmp_path / "merged" / "model.safetensors")
    assert weights.keys() == safetensors_header(checkpoint.weight_files[0]).keys()


def test_a_run_from_before_an_option_was_there_is_resumed(
    trained: Path, pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "old")
    file = tmp_path / "old" / "training.json"
    header = json.loads(file.read_text())
    del header["stage"]["distil_short"], header["options"]["lora_layers"]
    header["stage"]["factors"] = "elsewhere/factors.json"  # the same ones: they are in the header
    file.write_text(json.dumps(header))
    finetune(pico, dual, STAGE, corpus, tmp_path / "old", options=ONE_THREAD, resume=True)
    taught = replace(STAGE, distil_short=True)
    with pytest.raises(InputError, match=r"stage.distil_short was false, is true; teacher"):
        finetune(pico, dual, taught, corpus, tmp_path / "old", options=ONE_THREAD, resume=True)


def test_a_stage_says_how_much_an_answer_weighs(pico: Checkpoint, dual: BoundFactors, corpus: Corpus) -> None:
    stage = replace(STAGE, retrieval_share=0.6, answer_share=0.4)
    row = training_rows(pico, corpus, mixture_of(stage, dual, TrainOptions())).row(0)
    text, answers = row.weights[row.weights == 1].sum(), row.weights[row.weights > 1].sum()
    assert answers / (text + answers) == pytest.approx(0.4, abs=1e-3)


def test_lora_of_the_last_layers_leaves_all_below_alone(
    pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path
) -> None:
    options = TrainOptions(threads=1, lora_rank=4, lora_layers=1)
    model = TrainedModel(pico, dual, options, Parallel.single()).model
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".layers.1." in name or name.endswith("model.norm.weight") for name in names)
    assert sum("lora_A" in name for name in names) == 7
    training = finetune(pico, dual, STAGE, corpus, tmp_path / "run", options=options)
    before, after = load_file(pico.weight_files[0]), load_file(training.checkpoint.weight_files[0])
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in changed)
    batch = training_rows(pico, corpus, mixture_of(STAGE, dual, options)).row(0)
    was, now = (
        TrainedModel(checkpoint, dual, TrainOptions(threads=1), Parallel.single()).loss(batch).item()
        for checkpoint in (pico, training.checkpoint)
    )
    assert now < was


def test_lora_of_more_layers_than_there_are_is_refused(pico: Checkpoint, dual: BoundFactors) -> None:
    with pytest.raises(InputError, match="at most the model's 2 layers, got 3"):
        TrainedModel(pico, dual, TrainOptions(lora_rank=4, lora_layers=3), Parallel.single())
    with pytest.raises(InputError, match="lora_rank"):
        TrainOptions(lora_layers=1)


def test_lora_resumes(pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path) -> None:
    options = TrainOptions(threads=1, lora_rank=4, save_every=3)
    finetune(pico, dual, STAGE, corpus, tmp_path / "whole", options=options)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "model")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000006")
    finetune(pico, dual, STAGE, corpus, tmp_path / "half", options=options, resume=True)
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    assert tensor_bytes(tmp_path / "half") == pytest.approx(checkpoint_bytes(pico, options), rel=0.05)


def test_a_checkpoint_is_as_large_as_planned(trained: Path, pico: Checkpoint) -> None:
    assert tensor_bytes(trained) == pytest.approx(checkpoint_bytes(pico, ONE_THREAD), rel=0.01)


def tensor_bytes(run: Path) -> int:
    """Of a run's last checkpoint, without the files' headers."""
    latest = latest_checkpoint(run / "checkpoints")
    assert latest is not None
    headers = [safetensors_header(file) for file in (latest / "tensors").glob("*.safetensors")]
    return sum(stop - start for header in headers for start, stop in (t["data_offsets"] for t in header.values()))


def test_bfloat16_keeps_float32_weights(pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path) -> None:
    options = TrainOptions(threads=1, dtype="bfloat16")
    model = TrainedModel(pico, dual, options, Parallel.single())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    finetune(pico, dual, STAGE, corpus, tmp_path / "run", options=options)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0] - 0.3


@pytest.mark.parametrize(
    ("options", "message"), [({"optimizer": "adamw8bit"}, "bitsandbytes"), ({"liger": True}, "liger-kernel")]
)
def test_missing_libraries_are_told_before_any_work(
    pico: Checkpoint, dual: BoundFactors, corpus: Corpus, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MissingRequirementError, match=f"pip install {message}"):
        finetune(pico, dual, STAGE, corpus, tmp_path / "run", options=TrainOptions(**options))
    assert not (tmp_path / "run").exists()
