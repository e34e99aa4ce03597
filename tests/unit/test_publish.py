"""The parts of publishing that need no Hub: hashes, merging of cards, the scan, what each answer of the Hub means."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from longrope.errors import InputError, MissingRequirementError
from longrope_export.publish.card import BEGIN, END, Page, card
from longrope_export.publish.content import Content
from longrope_export.publish.errors import explain
from longrope_export.publish.hub import RemoteFile
from longrope_export.publish.scan import findings
from longrope_export.publish.subject import Base, Subject
from tests.common import REPOSITORY, pico_factors


def page(**base: Any) -> Page:
    subject = Subject(Path("factors.json"), pico_factors(), (), Base("org/base", base))
    return Page("org/name", subject, (), ["factors.json"], {}, "org/base")


def test_the_hashes_are_gits_and_the_hubs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"some bytes\n")
    said = subprocess.run(["git", "hash-object", file], capture_output=True, text=True, check=True).stdout.strip()
    here, bytes_ = Content("a.txt", file), Content("a.txt", b"some bytes\n")
    assert here.git_sha1 == bytes_.git_sha1 == said
    assert here.sha256 == bytes_.sha256
    assert RemoteFile(11, said).equals(here)
    assert RemoteFile(11, "the pointer's", here.sha256).equals(bytes_)
    assert not RemoteFile(11, said, "0" * 64).equals(here)
    assert not RemoteFile(12, said).equals(here)


def test_a_card_keeps_what_people_wrote_and_is_stable() -> None:
    theirs = "---\nlicense: mit\ncustom: [1, 2]\n---\n\nBefore.\n"
    first, conflicts = card(page(license="apache-2.0"), theirs)
    assert conflicts == ["card: license stays 'mit'; this run would say 'apache-2.0'"]
    assert "custom:" in first
    assert first.index("Before.") < first.index(BEGIN) < first.index(END)
    again, _ = card(page(license="apache-2.0"), first)
    assert again == first
    after, _ = card(page(license="apache-2.0"), first + "\nAfter.\n")
    assert after.endswith("\nAfter.\n")


@pytest.mark.parametrize(
    ("existing", "said"),
    [
        ("---\n: [\n---\n", "not a readable YAML"),
        ("---\n- a\n---\n", "no mapping"),
        (f"{BEGIN}\ntext", "in this order"),
        (f"{END}\n{BEGIN}\n", "in this order"),
    ],
)
def test_a_card_that_cannot_be_merged_is_refused(existing: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        card(page(), existing)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/jane/x", True),
        ('{"a": "/tmp/abc"}', True),
        ("D:\\\\models\\\\jane\\\\x", True),
        ("/Users/jane/m", True),
        ("https://example.org/home/page", False),
        ("either/or, and/home", False),
        ("the home of /api/models", False),
    ],
)
def test_paths_of_machines_are_found_and_addresses_are_not(text: str, found: bool) -> None:
    assert bool(findings([Content("longrope.json", text.encode())], {})) is found
    assert bool(findings([], {"model.gguf: key": text})) is found


def test_vocabularies_and_binary_files_are_not_read_as_texts() -> None:
    data = b"/home/jane/x"
    assert findings([Content(place, data) for place in ("tokenizer.json", "merges.txt", "model.safetensors")], {}) == []


def test_errors_that_are_nobodys_stay_what_they_are() -> None:
    assert explain(ZeroDivisionError("x"), "org/name") is None
    full = explain(ValueError("LFS batch API returned errors:\nOID x: `quota exceeded"), "org/name")
    assert isinstance(full, MissingRequirementError)
    assert "storage" in str(full)


EXAMPLES = sorted((REPOSITORY / "docs" / "cards").glob("*/README.md"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_example_cards_are_what_the_hub_takes(path: Path) -> None:
    """As far as huggingface_hub checks it offline: metadata, and `model-index` there and back."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    text = path.read_text(encoding="utf-8")
    card = ModelCard(text)  # raises for metadata or a model-index that are none
    assert card.data.eval_results
    assert card.data.model_name is not None
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    assert model_index_to_eval_results(index) == (card.data.model_name, card.data.eval_results)
    assert yaml.safe_load(text.split("---\n")[1])["model-index"] == index
    assert card.data.pipeline_tag == "text-generation"
    assert findings([Content("README.md", text.encode())], {}) == []
    assert (path.parent / "factors.png").read_bytes().startswith(b"\x89PNG")
    for words in ("## Perplexity", "Inside the original window", "## Parity", "vllm serve", "llama-cli", "## Citation"):
        assert words in text
