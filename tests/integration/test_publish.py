"""Publishing to a local Hub over loopback: what is sent is what the plan says, and a fault leaves nothing half done."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrope.factors import RescaleFactors
from tests.common import PICO_BUDGET, TARGET, Outcome, pico_folder, pico_text, run_cli
from tests.hub import ID_TOKEN, NAMESPACE, TOKEN, LocalHub

REPO = f"{NAMESPACE}/pico"
GGUF = f"{REPO}-GGUF"
FACTS = ("--base-model", "org/base", "--license", "mit")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all formats, beside its model and texts."""
    room = tmp_path_factory.mktemp("publish")
    pico_folder(room / "model")
    (room / "texts").mkdir()
    for seed in range(4):
        (room / "texts" / f"{seed}.txt").write_text(pico_text(40, seed), encoding="utf-8")
    budget = PICO_BUDGET.replace("--max-evals 6", "--max-evals 2").split()
    formats = ("--formats", "hf,gguf,onnx:f16", "--factor-sets", "dual")
    outcome = run_cli(
        "extend",
        room / "model",
        "--target-length",
        TARGET,
        "--text",
        room / "texts",
        "-o",
        room / "run",
        *formats,
        *budget,
    )
    assert outcome.code == 0, outcome.err
    return room


@pytest.fixture
def run(room: Path) -> Path:
    return room / "run"


def publish(path: Path, *more: object, facts: tuple[str, ...] = FACTS) -> Outcome:
    return run_cli("publish", path, "--repo-id", REPO, *facts, *more)


def planned(path: Path, tmp_path: Path, *more: object) -> dict[str, Any]:
    """The plan of a dry run."""
    file = tmp_path / "plan.json"
    outcome = publish(path, "--dry-run", "--json", file, *more)
    assert file.exists(), outcome.err
    data: dict[str, Any] = json.loads(file.read_text())
    return data


def sent(plan: dict[str, Any]) -> dict[str, dict[str, str]]:
    """By repository, what a plan says it sends."""
    found = {
        each["repo_id"]: {file["path"]: file["sha256"] for file in each["files"] if file["change"] != "unchanged"}
        for each in plan["repositories"]
    }
    return {repo: files for repo, files in found.items() if files}


# -- the plan is what happens

SCENARIOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a run": ("", ()),
    "a run in one repository": ("", ("--layout", "single")),
    "a folder": ("hf", ()),
    "a GGUF file": ("gguf/model-f16.gguf", ()),
    "an ONNX folder": ("onnx", ()),
    "factors": ("factors.json", ()),
    "in public": ("hf", ("--public",)),
    "with a collection": ("", ("--collection",)),
    "to a new branch": ("hf", ("--revision", "v2")),
    "without a proof": ("hf", ("--unverified", "--validation", "/dev/null/none")),
    "as a pull request": ("hf", ("--create-pr",)),
    "over somebody's": ("hf", ("--update",)),
    "beside somebody's files": ("gguf/model-f16.gguf", ("--update",)),
}
THEIRS = {
    "README.md": "---\nlicense: apache-2.0\ntags:\n- mine\n---\n# Hands off\n\nMy words – untouched.\n".encode(),
    "config.json": b"{}\n",
    "notes.bin": b"mine",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_plan_is_what_the_hub_receives(name: str, hub: LocalHub, run: Path, tmp_path: Path) -> None:
    part, options = SCENARIOS[name]
    if "--update" in options or "--create-pr" in options:
        hub.make(REPO, THEIRS)
    plan = planned(run / part, tmp_path, *options)
    assert plan["blockers"] == []
    assert not hub.received, "a dry run sent something"
    outcome = publish(run / part, *options)
    assert outcome.code == 0, outcome.err
    assert hub.received == sent(plan)
    assert all(count == 1 for count in hub.uploads.values())
    assert outcome.err.count("published") == len(plan["repositories"])
    assert TOKEN not in outcome.out + outcome.err
    made = [each for each in plan["repositories"] if each["action"] == "create"]
    assert all(hub.repositories[each["repo_id"]].private == ("--public" not in options) for each in made)
    # The second time there is nothing to do, but for a pull request, which nobody has merged.
    hub.received.clear()
    if "--create-pr" not in options:
        assert publish(run / part, *options).code == 0
        assert hub.received == {}


def test_a_run_becomes_what_viewers_and_runtimes_look_for(hub: LocalHub, run: Path) -> None:
    assert publish(run, "--collection").code == 0
    model, gguf = hub.tree(REPO), hub.tree(GGUF)
    assert {"config.json", "model.safetensors", "tokenizer.json", "onnx/model_fp16.onnx"} <= set(model)
    assert set(gguf) == {".gitattributes", "README.md", "factors.png", "pico-F16.gguf"}
    assert model["model.safetensors"] == (run / "hf" / "model.safetensors").read_bytes()
    config = json.loads(model["config.json"])
    assert config["transformers.js_config"]["use_external_data_format"] == {"model_fp16.onnx": 1}
    assert GGUF in model["README.md"].decode()
    assert f"base_model: {REPO}" in gguf["README.md"].decode()
    assert "base_model_relation: quantized" in gguf["README.md"].decode()
    assert list(hub.collections.values()) == [[REPO, GGUF]]


def test_a_round_trip_passes_validation(hub: LocalHub, room: Path, tmp_path: Path) -> None:
    """Publish, download everything, and validate each format as it came."""
    from huggingface_hub import HfApi, snapshot_download

    assert publish(room / "run").code == 0
    model = Path(snapshot_download(REPO, local_dir=tmp_path / "model"))
    verified = HfApi().verify_repo_checksums(REPO, local_dir=model)
    assert (verified.mismatches, verified.missing_paths) == ([], [])
    gguf = Path(snapshot_download(GGUF, local_dir=tmp_path / "gguf")) / "pico-F16.gguf"
    for artifact in (model, model / "onnx", gguf):
        options = ("--reference", room / "model", "--text", room / "texts", "--windows-per-length", 1, "--threads", 1)
        factors = ("--factors", room / "run" / "factors.json")
        outcome = run_cli("validate", artifact, *options, *factors)
        assert outcome.code == 0, (artifact, outcome.out)


def test_what_a_person_wrote_stays(hub: LocalHub, run: Path, tmp_path: Path) -> None:
    hub.make(REPO, THEIRS)
    plan = planned(run / "hf", tmp_path, "--update")["repositories"][0]
    assert "notes.bin" in plan["left_alone"]
    assert any("license stays 'apache-2.0'" in note for note in plan["notes"])
    assert publish(run / "hf", "--update").code == 0
    text = hub.tree(REPO)["README.md"].decode()
    assert "My words – untouched." in text
    assert "license: apache-2.0" in text
    assert "- mine" in text
    assert "- longrope" in text
    assert hub.tree(REPO)["notes.bin"] == b"mine"
    # A later edit outside our section stays, too; only the section is ours.
    edited = text.replace("My words", "My new words").replace("## Limits", "## Nonsense")
    hub.repositories[REPO].add("main", {**hub.repositories[REPO].commits[hub.repositories[REPO].refs["main"]]})
    hub.make(REPO, {**hub.tree(REPO), "README.md": edited.encode()})
    hub.received.clear()
    assert publish(run / "hf").code == 0
    assert list(hub.received[REPO]) == ["README.md"]
    text = hub.tree(REPO)["README.md"].decode()
    assert "My new words" in text
    assert "## Limits" in text
    assert "## Nonsense" not in text


# -- what may not be published


def test_an_artifact_that_changed_after_its_validation_is_refused(hub: LocalHub, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("journal"))
    weights = tmp_path / "run" / "hf" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    outcome = publish(tmp_path / "run")
    assert outcome.code == 1
    assert "changed after its validation (model.safetensors)" in outcome.err
    assert hub.repositories == {}
    assert publish(tmp_path / "run", "--unverified").code == 0
    assert "Not verified" in hub.tree(REPO)["README.md"].decode()
    assert "Not verified" not in hub.tree(GGUF)["README.md"].decode()


def test_an_artifact_without_or_with_a_failed_validation_is_refused(hub: LocalHub, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "hf", tmp_path / "hf")
    outcome = publish(tmp_path / "hf")
    assert outcome.code == 1
    assert "--unverified" in outcome.err
    validation = json.loads((run / "validation.json").read_text())
    validation["artifacts"][0]["passed"] = False
    (tmp_path / "validation.json").write_text(json.dumps(validation))
    outcome = publish(tmp_path / "hf")
    assert outcome.code == 1
    assert "validation failed" in outcome.err


def test_a_policy_that_lets_everything_pass_is_no_proof(hub: LocalHub, run: Path, tmp_path: Path) -> None:
    """A fault that was found counts, whatever it was made to count."""
    shutil.copytree(run / "hf", tmp_path / "hf")
    validation = json.loads((run / "validation.json").read_text())
    (entry,) = (each for each in validation["artifacts"] if each["format"] == "hf")
    entry["policy"] = "lax.yaml"
    next(check for check in entry["checks"] if check["id"] == "hf.weights").update(status="skip", found="fail")
    (tmp_path / "validation.json").write_text(json.dumps(validation))
    outcome = publish(tmp_path / "hf")
    assert outcome.code == 1
    assert "validation failed (hf.weights)" in outcome.err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("longrope.json", '{"model": "/home/jane/models/llama"}', "/home/jane/models/llama"),
        ("generation_config.json", '{"_from": "C:\\\\Users\\\\jane\\\\llama\\\\x"}', "C:"),
        ("special_tokens_map.json", '{"by": "box-4711x"}', "box-4711x"),
        ("LICENSE", "made by jdoe4711", "jdoe4711"),
    ],
)
def test_what_gives_away_a_machine_is_refused(
    name: str, text: str, said: str, hub: LocalHub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box-4711x")
    monkeypatch.setenv("LOGNAME", "jdoe4711")
    shutil.copytree(run / "hf", tmp_path / "hf")
    (tmp_path / "hf" / name).write_text(text)
    outcome = publish(tmp_path / "hf", "--unverified")
    assert outcome.code == 2
    assert said in outcome.err
    assert hub.repositories == {}


def test_only_what_belongs_to_a_model_is_sent(hub: LocalHub, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "hf", tmp_path / "hf")
    for name in (".gitattributes", "optimizer.pt", "trainer_state.json", "pytorch_model.bin", ".cache"):
        (tmp_path / "hf" / name).write_text("x")
    (tmp_path / "hf" / "LICENSE").write_text("Free.")
    assert publish(tmp_path / "hf", "--unverified").code == 0
    assert "LICENSE" in hub.received[REPO]
    assert not {".gitattributes", "optimizer.pt", "trainer_state.json", "pytorch_model.bin"} & set(hub.received[REPO])


def test_somebody_elses_repository_is_not_touched(hub: LocalHub, run: Path) -> None:
    hub.make(REPO, THEIRS)
    outcome = publish(run / "hf")
    assert outcome.code == 2
    assert "--update" in outcome.err
    hub.make(REPO, {}, private=False)
    outcome = publish(run / "hf")
    assert outcome.code == 2
    assert "--public" in outcome.err
    assert hub.received == {}


# -- faults: (what the Hub does, exit code, a word of the line)


def _concurrent(hub: LocalHub) -> None:
    repository = hub.repositories[REPO]
    repository.add("main", dict(repository.commits[repository.refs["main"]]))


def _wrong_bytes(hub: LocalHub) -> None:
    """What was committed is damaged before it is verified."""
    from tests.hub import Blob

    repository = hub.repositories[REPO]
    tree = repository.commits[repository.refs["main"]]
    tree["model.safetensors"] = Blob(b"other", True)


Arrange = Callable[[LocalHub], None]
QUOTA = {"error": "Private repository storage limit reached, quota exceeded"}


def _fault(kind: str, status: int, **more: Any) -> Arrange:
    return lambda hub: hub.fault(kind, status, **more)


FAULTS: dict[str, tuple[Arrange, int, str]] = {
    "expired token": (_fault("whoami", 401), 3, "hf auth login"),
    "busy at the first call": (_fault("whoami", 429, headers={"Retry-After": "7"}), 3, "in 7 seconds"),
    "broken at the first call": (_fault("whoami", 500), 3, "fault of its own"),
    "cut at the first call": (_fault("whoami", 0, cut=True), 3, "cannot be reached"),
    "may not look": (_fault("info", 403), 3, "write access"),
    "unavailable": (_fault("info", 503), 3, "fault of its own"),
    "may not create": (_fault("create", 403), 3, "write access"),
    "made meanwhile": (_fault("create", 409), 3, "plans anew"),
    "storage is full": (_fault("create", 402), 3, "storage or plan"),
    "create breaks": (_fault("create", 502), 3, "fault of its own"),
    "create is cut": (_fault("create", 0, cut=True), 3, "cannot be reached"),
    "may not preupload": (_fault("preupload", 403), 3, "write access"),
    "gone before preupload": (_fault("preupload", 404), 3, "no such repository"),
    "may not store": (_fault("batch", 403), 3, "write access"),
    "quota": (_fault("batch", 403, body=QUOTA), 3, "storage or plan"),
    "too large": (_fault("batch", 413), 3, "of this size"),
    "upload is refused": (_fault("upload", 403), 3, "write access"),
    "upload is damaged": (_fault("upload", 400), 2, "HTTP 400"),
    "second upload is refused": (_fault("upload", 403, after=1), 3, "write access"),
    "upload is not there": (_fault("verify", 404), 3, "no such repository"),
    "metadata": (_fault("yaml", 400, body={"errors": [{"message": "license is odd"}]}), 2, "license is odd"),
    "commit without right": (_fault("commit", 401), 3, "hf auth login"),
    "commit forbidden": (_fault("commit", 403), 3, "write access"),
    "commit to nothing": (_fault("commit", 404), 3, "no such repository"),
    "commit conflicts": (_fault("commit", 409), 3, "plans anew"),
    "commit is late": (_fault("commit", 412), 3, "came in between"),
    "commit too often": (_fault("commit", 429, headers={"Retry-After": "30"}), 3, "in 30 seconds"),
    "commit breaks": (_fault("commit", 500), 3, "fault of its own"),
    "commit is cut": (_fault("commit", 0, cut=True), 3, "cannot be reached"),
    "somebody commits": (lambda hub: hub.fault("commit", 0, action=lambda: _concurrent(hub)), 3, "came in between"),
    "bytes are damaged": (
        lambda hub: hub.fault("tree", 0, action=lambda: _wrong_bytes(hub)),
        3,
        "other bytes than were sent",
    ),
    "cannot verify": (_fault("tree", 403), 3, "write access"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_the_same_command_finishes(name: str, hub: LocalHub, run: Path) -> None:
    arrange, code, word = FAULTS[name]
    arrange(hub)
    outcome = publish(run / "hf")
    error = [line for line in outcome.lines if line.startswith("Error:")]
    assert (outcome.code, len(error)) == (code, 1), outcome.err
    assert word in error[0]
    assert "published" not in outcome.err
    assert "Traceback" not in outcome.err
    assert TOKEN not in outcome.err + outcome.out
    if hub.seen[-1] != "tree" and REPO in hub.repositories:
        assert set(hub.tree(REPO)) == {".gitattributes"}, "half-published"
    outcome = publish(run / "hf")
    assert outcome.code == 0, outcome.err
    assert hub.tree(REPO)["model.safetensors"] == (run / "hf" / "model.safetensors").read_bytes()
    assert all(count == 1 for count in hub.uploads.values())


@pytest.mark.parametrize("kind", ["preupload", "batch", "upload"])
def test_a_passing_fault_of_the_hub_is_tried_again(kind: str, hub: LocalHub, run: Path) -> None:
    hub.fault(kind, 503)
    assert publish(run / "hf").code == 0


def test_a_slow_hub_is_waited_for(hub: LocalHub, run: Path) -> None:
    hub.fault("commit", 0, delay=0.5)
    assert publish(run / "hf").code == 0


def test_a_second_repository_that_fails_is_finished_by_the_same_command(hub: LocalHub, run: Path) -> None:
    hub.fault("commit", 500, after=1)
    outcome = publish(run)
    assert outcome.code == 3
    assert "published" not in outcome.err
    hub.received.clear()
    assert publish(run).code == 0
    assert set(hub.received) == {GGUF}
    assert all(count == 1 for count in hub.uploads.values())


def test_nothing_is_said_of_a_machine_without_network_token_or_licence(
    hub: LocalHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.gated.add("org/base")
    hub.make("org/base", {})
    outcome = publish(run / "hf", facts=("--base-model", "org/base"))
    assert (outcome.code, "gated" in outcome.err) == (3, True), outcome.err
    hub.gated.clear()
    hub.make("org/base", {"README.md": b"---\nlicense: llama3\nlicense_name: odd\n---\n"})
    assert publish(run / "hf", facts=("--base-model", "org/base")).code == 0
    assert "license: llama3" in hub.tree(REPO)["README.md"].decode()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    outcome = publish(run / "hf")
    assert (outcome.code, "hf auth login" in outcome.err, "hf_wrong" in outcome.err) == (3, True, False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    outcome = publish(run / "hf")
    assert (outcome.code, "cannot be reached" in outcome.err) == (3, True), outcome.err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    outcome = publish(run / "hf")
    assert (outcome.code, "HF_HUB_OFFLINE" in outcome.err) == (3, True), outcome.err


def test_a_job_that_proves_what_it_is_needs_no_token(hub: LocalHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted publishing, which huggingface_hub does by itself."""
    pytest.importorskip("huggingface_hub._oidc")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_OIDC_RESOURCE", REPO)
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", "somebody else's")
    outcome = publish(run / "hf")
    assert (outcome.code, outcome.err.count("Error:"), "HF_OIDC_RESOURCE" in outcome.err) == (3, 1, True), outcome.err
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", ID_TOKEN)
    outcome = publish(run / "hf")
    assert outcome.code == 0, outcome.err
    assert ID_TOKEN not in outcome.out + outcome.err
    assert TOKEN not in outcome.out + outcome.err


@pytest.mark.parametrize("repo_id", ["pico", "a/b/c", "some one/pico", "someone/-pico", "someone/a..b"])
def test_a_wrong_name_is_wrong_usage(repo_id: str, hub: LocalHub, run: Path) -> None:
    assert run_cli("publish", run, "--repo-id", repo_id).code == 2
    assert hub.seen == []


# -- kill -9


KILLED = [
    "whoami",
    "info",
    "create",
    "preupload",
    "batch",
    "upload",
    "upload 2",
    "verify",
    "yaml",
    "commit",
    "commit 2",
    "tree",
]


def upload(path: Path) -> Any:
    """The publishing of a path as a process of its own, to be killed."""
    from huggingface_hub.utils import close_session

    close_session()
    return multiprocessing.get_context("fork").Process(target=publish, args=(path,))


def finish(hub: LocalHub, run: Path, path: Path) -> None:
    """The same command again: everything is there, and no blob came twice."""
    assert publish(path).code == 0
    assert hub.tree(REPO)["model.safetensors"] == (run / "hf" / "model.safetensors").read_bytes()
    assert path != run or hub.tree(GGUF)["pico-F16.gguf"] == (run / "gguf" / "model-f16.gguf").read_bytes()
    assert all(count == 1 for count in hub.uploads.values())


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_upload_is_finished_by_the_same_command(moment: str, hub: LocalHub, run: Path) -> None:
    kind, _, number = moment.partition(" ")
    path = run if moment == "commit 2" else run / "hf"
    process = upload(path)

    def kill() -> None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)

    hub.fault(kind, 0, action=kill, after=int(number or 1) - 1)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    finish(hub, run, path)


@pytest.mark.parametrize("moments", [2, pytest.param(24, marks=pytest.mark.slow)])
def test_an_upload_killed_at_any_moment_is_finished_by_the_same_command(moments: int, hub: LocalHub, run: Path) -> None:
    """A whole run, at a pace at which most moments lie within the body of a request."""
    hub.pace = 0.002
    undisturbed = upload(run)
    start = time.perf_counter()
    undisturbed.start()
    undisturbed.join(120)
    seconds = time.perf_counter() - start
    whole = {repo: set(hub.tree(repo)) for repo in (REPO, GGUF)}
    for moment in np.random.default_rng(20).uniform(0.02, 0.98, moments):
        for each in (hub.repositories, hub.objects, hub.uploads, hub.received):
            each.clear()
        process = upload(run)
        process.start()
        process.join(moment * seconds)
        process.kill()
        process.join(60)
        for repo in hub.repositories:
            assert set(hub.tree(repo)) in ({".gitattributes"}, whole[repo]), "half-published"
        finish(hub, run, run)


# -- cards and factors


def test_the_card_of_a_run(run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    outcome = run_cli("card", run, "--repo-id", REPO, *FACTS)
    assert outcome.code == 0, outcome.err
    card = ModelCard(outcome.out)
    assert card.data.license == "mit"
    assert card.data.base_model == "org/base"
    assert {result.metric_type for result in card.data.eval_results or ()} == {"perplexity"}
    for words in ("vllm serve someone/pico --max-model-len 256", "llama-cli -hf someone/pico:F16 -c 256", "searched"):
        assert words in outcome.out
    assert not re.search(r"\|\n\n\|", outcome.out), "a table in pieces"
    assert "\n\n\n\n" not in outcome.out
    assert run_cli("card", run, "-o", tmp_path / "README.md").code == 0
    assert run_cli("card", run, "-o", tmp_path / "README.md").code == 2
    assert str(run.parent) not in outcome.out


@pytest.mark.parametrize("kind", ["config", "gguf", "csv"])
def test_exported_factors_are_imported_again(kind: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / {"config": "config.json", "gguf": "factors.gguf", "csv": "factors.csv"}[kind]
    assert run_cli("factors", "export", run / "factors.json", "--to", kind, "-o", out).code == 0
    assert run_cli("factors", "import", out, "-o", tmp_path / "again.json").code == 0
    factors, again = RescaleFactors.load(run / "factors.json"), RescaleFactors.load(tmp_path / "again.json")
    assert again.long_factor == pytest.approx(factors.long_factor, rel=1e-7)
    if kind != "csv":
        assert again.short_factor == pytest.approx(factors.short_factor, rel=1e-7)
        assert again.target_length == factors.target_length


def test_factors_that_leave_facts_open_are_exported_as_csv_only(tmp_path: Path) -> None:
    RescaleFactors((1.0, 2.0), (1.0, 4.0)).save(tmp_path / "f.json")
    outcome = run_cli("factors", "export", tmp_path / "f.json", "--to", "config", "-o", tmp_path / "config.json")
    assert outcome.code == 2
    assert "rope_theta" in outcome.err
    outcome = run_cli(
        "factors", "export", tmp_path / "f.json", "--to", "csv", "--set", "short", "-o", tmp_path / "f.csv"
    )
    assert outcome.code == 0
    assert (tmp_path / "f.csv").read_text() == "1.0,2.0\n"


# -- factors of a repository


PHI3 = {
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "su", "short_factor": [1.0, 1.05, 1.1], "long_factor": [1.0, 4.0, 31.5]},
}
MINICPM = {
    "model_type": "minicpm3",
    "max_position_embeddings": 32768,
    "rope_scaling": {
        "type": "longrope",
        "original_max_position_embeddings": 32768,
        "short_factor": [1.0, 1.01],
        "long_factor": [1.5, 9.25],
    },
}


@pytest.mark.parametrize("config", [PHI3, MINICPM], ids=["Phi-3", "MiniCPM"])
def test_factors_of_published_configurations(config: dict[str, Any], hub: LocalHub, tmp_path: Path) -> None:
    hub.make("org/theirs", {"config.json": json.dumps(config).encode(), "model.safetensors": b"weights"})
    assert run_cli("factors", "import", "org/theirs", "-o", tmp_path / "f.json").code == 0
    factors = RescaleFactors.load(tmp_path / "f.json")
    assert list(factors.long_factor) == config["rope_scaling"]["long_factor"]
    assert factors.original_max_position_embeddings == config.get("original_max_position_embeddings", 32768)
    assert hub.resolved == {"config.json"}, "weights were downloaded"


@pytest.mark.parametrize("part", ["hf", "gguf/model-f16.gguf", "onnx", "factors.json"])
def test_factors_of_a_published_run_need_no_weights(part: str, hub: LocalHub, run: Path, tmp_path: Path) -> None:
    assert publish(run / part).code == 0
    hub.resolved.clear()
    for more in (("import", REPO, "-o", tmp_path / "f.json"), ("show", REPO, "--json", tmp_path / "show.json")):
        outcome = run_cli("factors", *more)
        assert outcome.code == 0, outcome.err
    factors, mine = RescaleFactors.load(tmp_path / "f.json"), RescaleFactors.load(run / "factors.json")
    assert factors.long_factor == pytest.approx(mine.long_factor, rel=1e-7)
    assert factors.short_factor == pytest.approx(mine.short_factor, rel=1e-7)
    assert not any(name.endswith((".safetensors", "_data")) for name in hub.resolved)


def test_a_gguf_file_is_read_by_its_head_and_its_factors(hub: LocalHub, run: Path) -> None:
    from converters.gguf import remote
    from converters.gguf.container import GgufFile

    file = run / "gguf" / "model-f16.gguf"
    asked: list[tuple[int, int]] = []

    class Source:
        size = file.stat().st_size

        def read(self, start: int, stop: int) -> bytes:
            asked.append((start, stop))
            return file.read_bytes()[start:stop]

    for first in (100, 1 << 20):
        asked.clear()
        copy = run / "copy.gguf"
        remote.hollow_copy(Source(), copy, first=first)
        with GgufFile(copy) as mine, GgufFile(file) as theirs:
            assert mine.parts[0].values == theirs.parts[0].values
            assert all((mine.raw(name) == theirs.raw(name)).all() for name in ("rope_factors_long.weight",))
        copy.unlink()
        assert first > 100 or sum(stop - start for start, stop in asked) < Source.size


def test_factors_of_the_hub_for_convert_and_offline(
    hub: LocalHub, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert publish(room / "run" / "factors.json").code == 0
    options = ("convert", room / "model", "--to", "hf", "--factors", REPO, "--factor-sets", "dual")
    assert run_cli(*options, "-o", tmp_path / "out").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_scaling"]["long_factor"] == list(RescaleFactors.load(room / "run" / "factors.json").long_factor)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run_cli("factors", "show", REPO).code == 0, "it is in the cache"
    outcome = run_cli("factors", "show", "org/unknown")
    assert (outcome.code, outcome.err.count("Error:")) == (3, 1), outcome.err


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b'{"model_type": "llama"}'}, "no rescale factors"),
        ({"notes.txt": b"x"}, "found none"),
        ({"model.gguf": b"GGUF but not really" * 9}, "GGUF"),
    ],
)
def test_a_repository_without_factors_is_one_line(files: dict[str, bytes], said: str, hub: LocalHub) -> None:
    hub.make("org/theirs", files)
    outcome = run_cli("factors", "show", "org/theirs")
    assert (outcome.code, said in outcome.err, outcome.err.count("Error:")) == (2, True, 1), outcome.err
    assert run_cli("factors", "show", "org/nowhere").code == 2
