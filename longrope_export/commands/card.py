"""`longrope-export card`: the model card of a run, without publishing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from longrope.options import option
from longrope_export import options


@dataclass(frozen=True, kw_only=True)
class CardRequest:
    """The options of `card`."""

    run_dir: Path = option(argument=True, help="Folder of a finished run, an artifact, or a factors.json.")
    repo_id: str = option("ORG/NAME", section="Output", help="Repository that the card is for.")
    base_model: str | None = option(
        None, section="Output", metavar="ORG/NAME", unset="the run's", help="Model on the Hub that was extended."
    )
    license: str | None = option(
        None, section="Output", metavar="NAME", unset="the base's", help="Licence that the card states."
    )
    output: Path | None = option(None, short="o", section="Output", unset="standard output", help="File to write.")
    overwrite: bool = options.overwrite()


@options.command(CardRequest)
def command(request: CardRequest) -> int:
    """Print the model card that `publish` would make of RUN_DIR, all formats in one repository."""
    from longrope.files import refuse_existing, write_atomically

    if request.output is not None:
        refuse_existing(request.output, overwrite=request.overwrite)
    text = card_text(request)
    if request.output is None:
        click.echo(text, nl=False)
    else:
        write_atomically(request.output, text)
    return 0


def card_text(request: CardRequest) -> str:
    """The card as Markdown. Raises InputError when there is no finished run, artifact or file of factors."""
    from longrope_export.commands.publish import base_of
    from longrope_export.publish.card import card
    from longrope_export.publish.layout import drafts
    from longrope_export.publish.subject import open_subject

    subject = open_subject(request.run_dir, base=base_of(request.base_model, request.license))
    (draft,) = drafts(subject, request.repo_id, "single")
    return card(draft.page)[0]
