"""The pages hold together: links lead somewhere, commands have the options they are shown with, words are the field's."""

from __future__ import annotations

import importlib
import re
import tempfile
from pathlib import Path

import click
import pytest

from converters import convert
from converters.check_table import SECTIONS, row_of, table_text
from converters.runtimes import RUNTIMES
from docs.site import GENERATED, api_page, public_names, runtime_pages
from docs.site import SECTIONS as SITE
from longrope.checkpoint import Checkpoint
from longrope.factors import RescaleFactors
from longrope_export.cli import cli
from tests.common import REPOSITORY
from tests.markdown import LINKED, PAGES, Block, anchors, blocks, links, own_commands, prose

SHELL = [block for page in PAGES for block in blocks(page) if block.language == "sh"]
# What cannot run in a test: installers, other people's programs, several processes, models on the Hub.
NOT_RUN = {"pip", "make", "llama-cli", "vllm", "torchrun", "lm_eval"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LANGUAGES = {"sh", "python", "json", "toml", "yaml"}
# Words that readers of this field do not use in the senses they had here.
NOT_OUR_WORDS = re.compile(
    r"\bno number\b|\bpass key(?!\?| is)|\bpurse\b|\bdecoys?\b|\bflops use\b|\b(is|are|was|were) told\b|\bturn(s|ed) by\b",
    re.I,
)


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_every_page_is_reached_from_an_index(page: Path) -> None:
    indices = (REPOSITORY / "README.md", REPOSITORY / "docs" / "index.md", REPOSITORY / "benchmarks" / "README.md")
    reached = {(index.parent / link.partition("#")[0]).resolve() for index in indices for link in links(index)}
    assert page == indices[0] or page in reached


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_in_fenced_blocks_of_known_languages(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert not re.findall(r"^(?: {4}|\$ )longrope-export.*$", prose(page), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_words_are_those_of_the_field(page: Path) -> None:
    assert [found[0] for found in NOT_OUR_WORDS.finditer(prose(page))] == []


def test_few_blocks_are_not_run_and_for_a_reason() -> None:
    skipped = [block for block in SHELL if not block.runs]
    assert len(skipped) <= len(SHELL) / 4
    for block in skipped:
        for words in block.commands:
            needs = words[0] in NOT_RUN or "--lm-eval" in words or any(map(HUB_ID.fullmatch, words[1:3]))
            assert needs, f"{name(block.page)}:{block.line}: {' '.join(words)}"


@pytest.mark.parametrize(
    ("block", "arguments"),
    [pytest.param(block, words, id=f"{name(block.page)}:{block.line}") for block, words in own_commands(SHELL)],
)
def test_every_option_on_the_pages_exists(block: Block, arguments: list[str]) -> None:
    command: click.Command | None = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        command = command.get_command(context, arguments[0])
        assert command is not None, f"{block.page}:{block.line}: no command {arguments[0]}"
        arguments = arguments[1:]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
    assert used <= known


def test_every_command_is_on_a_page() -> None:
    shown = {words[0] for _, words in own_commands(SHELL)}
    assert set(cli.list_commands(click.Context(cli))) <= shown


def test_the_page_of_checks_is_made_of_their_table() -> None:
    assert (REPOSITORY / "docs" / "checks.md").read_text(encoding="utf-8") == table_text(), "run make schema"


@pytest.mark.parametrize("format_name", ["hf", "gguf", "onnx"])
def test_every_static_check_has_a_row(format_name: str, pico: Checkpoint, dual: RescaleFactors) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = convert(pico, Path(folder) / f"artifact.{format_name}", to=format_name, factors=dual)
    ids = {check.id for check in written.checks}
    assert ids
    assert [id for id in sorted(ids) if row_of(id) is None] == []


def test_rows_say_what_and_why_and_catch_their_own_ids_first() -> None:
    rows = [row for section in SECTIONS.values() for row in section]
    assert all(row.ids and row.compares and row.catches for row in rows)
    for row in rows:
        for id in row.ids:
            assert row_of(id) is row, id
    assert row_of("gguf.nobodys") is None
    assert row_of("gguf.vocab.token_ids").catches != row_of("gguf.vocab.pre").catches  # type: ignore[union-attr]


def test_the_site_holds_every_page() -> None:
    """Each page stands in one section, each section names pages that are there, and each runtime has a page."""
    listed = [page for pages in SITE.values() for page in pages if not page.startswith(GENERATED)]
    assert len(set(listed)) == len(listed)
    docs = {page.stem for page in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    benchmarks = {f"../benchmarks/{page.stem}" for page in (REPOSITORY / "benchmarks").glob("*.md")}
    root = {f"../{page.stem}" for page in REPOSITORY.glob("*.md")} - {"../README"}
    assert set(listed) == docs | benchmarks | root
    assert {name for name, _ in runtime_pages()} == {runtime.name for runtime in RUNTIMES}


@pytest.mark.parametrize(("runtime", "words"), [
    ("transformers", ("**Not safe** while a sequence grows past L", "generate_across", "drops the cache", "ORG/NAME")),
    ("llama.cpp", ("contexts (-c, rounded up", "A sequence may grow past L", "llama-cli -hf ORG/NAME")),
    ("TGI", ("right at every length", "nobody has looked")),
    ("CTranslate2", ("refuses these models",)),
])  # fmt: skip
def test_the_page_of_a_runtime(runtime: str, words: tuple[str, ...]) -> None:
    page = dict(runtime_pages())[runtime]
    for each in words:
        assert each in page
    assert "$original" not in page
    assert "$target" not in page


@pytest.mark.parametrize("package", ["longrope", "converters"])
def test_the_api_pages_name_what_can_be_imported(package: str) -> None:
    names = public_names(package)
    module = importlib.import_module(package)
    assert names
    assert all(hasattr(module, each) for each in names)
    assert all(f":: {package}.{each}\n" in api_page(package) for each in names)


def test_pictures_are_small_and_say_nothing_of_who_drew_them() -> None:
    for picture in (REPOSITORY / "docs" / "pictures").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert len(text) < 40_000
        assert "<script" not in text


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = ("longrope", "converters", "longrope_export", "tests", "benchmarks", "docs")
    named = re.findall(rf"`((?:{'|'.join(folders)})/[\w/.-]+)`", prose(page))
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
