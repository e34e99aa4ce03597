"""`longrope-export publish`: a run, an artifact or a file of factors to repositories on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from longrope.errors import InputError
from longrope.options import option
from longrope_export import options

if TYPE_CHECKING:
    from longrope.progress import Progress
    from longrope_export.publish.execute import Published
    from longrope_export.publish.hub import Hub
    from longrope_export.publish.plan import Plan, RepositoryPlan
    from longrope_export.publish.subject import Base, Subject

UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class PublishRequest:
    """The options of `publish`."""

    path: Path = option(argument=True, help="Folder of a finished run, an artifact, or a factors.json.")
    validation: Path | None = option(
        None,
        section="Input",
        unset="the run's, or beside the artifact",
        help="Result of validate --json of these files.",
    )
    repo_id: str = option(
        section="Output", metavar="ORG/NAME", help="Repository to publish to; GGUF goes to ORG/NAME-GGUF."
    )
    dry_run: bool = option(False, section="Output", once=True, help="Print exactly what would be done, and stop.")
    layout: Literal["separate", "single"] = option(
        "separate", section="Output", help="One repository for each kind of weights, or a single one."
    )
    public: bool = option(False, section="Output", help="Make public repositories; they are private otherwise.")
    create_pr: bool = option(False, section="Output", help="Open a pull request instead of committing.")
    revision: str = option("main", section="Output", metavar="BRANCH", help="Branch to commit to.")
    collection: bool = option(False, section="Output", help="Put the repositories into a collection.")
    base_model: str | None = option(
        None,
        section="Output",
        metavar="ORG/NAME",
        unset="the run's",
        help="Model on the Hub that was extended, for the card.",
    )
    license: str | None = option(
        None,
        section="Output",
        metavar="NAME",
        unset="the base's",
        help="Licence that the card states, as the Hub calls it.",
    )
    unverified: bool = option(
        False, section="Output", help="Publish without a passing validation of these files; the card says so."
    )
    update: bool = option(False, section="Output", help="Write to repositories that this program did not make, too.")
    json_path: str | None = options.json_file()


@options.command(PublishRequest)
def command(request: PublishRequest) -> int:
    """Publish PATH on the Hub: proven files only, private unless --public, exactly what --dry-run shows.

    The Hub's checksums are compared with those of the files here before anything is called published. Interrupted, the same
    command goes on; what is there is not sent again.
    """
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.publish.execute import execute
    from longrope_export.publish.hub import Hub

    progress, hub = ConsoleProgress(), Hub()
    plan = plan_of(request, hub, progress)
    if request.json_path != "-":
        print_plan(plan)
    if request.dry_run:
        write_json(plan.to_json(), request.json_path)
        return plan.blockers[0].exit_code if plan.blockers else 0
    published = execute(plan, hub, progress)
    write_json({**plan.to_json(), "published": [vars(each) for each in published]}, request.json_path)
    print_published(published, progress)
    return 0


def plan_of(request: PublishRequest, hub: Hub, progress: Progress) -> Plan:
    """The plan of a request. Raises LongRopeError for what cannot be planned."""
    from longrope_export.publish.layout import drafts
    from longrope_export.publish.plan import Wishes, make_plan
    from longrope_export.publish.subject import open_subject

    _check_name(request.repo_id)
    if request.create_pr and request.revision != "main":
        raise InputError("pull requests go to main: expected --create-pr or --revision, got both")
    subject = open_subject(
        request.path, validation=request.validation, base=base_of(request.base_model, request.license)
    )
    if subject.base.id and not subject.base.metadata.get("license"):
        subject = _with_licence(subject, hub)
    wishes = Wishes(
        request.revision, request.create_pr, request.public, request.unverified, request.update, request.collection
    )
    with progress.task("plan", 1) as task:
        plan = make_plan(drafts(subject, request.repo_id, request.layout), wishes, hub)
        task.advance()
    return plan


def base_of(id: str | None, license: str | None) -> Base:
    """What options say of the base model."""
    from longrope_export.publish.subject import Base

    return Base(id, {"license": license} if license else {})


def print_plan(plan: Plan) -> None:
    """Repositories, files, diffs, notes and what blocks, for a person."""
    for repository in plan.repositories:
        _print_repository(repository)
    if plan.collection:
        click.echo(f"collection: {plan.collection}")
    for blocker in plan.blockers:
        option = f" (--{blocker.option})" if blocker.option else ""
        click.echo(f"blocked: {blocker.message}{option}")


def _print_repository(repository: RepositoryPlan) -> None:
    from longrope_export.console import print_table

    where = "a pull request" if repository.create_pr else repository.revision
    visibility = "private" if repository.private else "public"
    click.echo(f"{repository.repo_id}: {repository.action}, {visibility}, {where}")
    rows = [[file.content.place, _size(file.content.size), file.change] for file in repository.files]
    rows += [[place, "", "left alone"] for place in repository.left_alone]
    print_table("", ("file", "size", "change"), rows)
    for place, diff in repository.diffs.items():
        click.echo(f"{place}:\n{diff}")
    for note in repository.notes:
        click.echo(f"note: {note}")


def print_published(published: Sequence[Published], progress: Progress) -> None:
    """One line a repository, after its checksums were compared."""
    for each in published:
        at = f"pull request {each.pull_request}" if each.pull_request else f"commit {each.commit[:8]}"
        progress.line(f"{each.repo_id}: published, {at}; the Hub's checksums are those of the files here.")


def _check_name(repo_id: str) -> None:
    from longrope_export.publish.errors import hub_errors

    with hub_errors(repo_id):
        from huggingface_hub import hf_hub_url

        hf_hub_url(repo_id, "README.md")  # it checks names
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id}: expected ORG/NAME", option="repo-id")


def _with_licence(subject: Subject, hub: Hub) -> Subject:
    """The subject with what the base's card on the Hub says; a gated base says how to get in."""
    from dataclasses import replace

    from longrope_export.publish.subject import inherited

    known = {**inherited(hub.card_of(subject.base.id or ""), f"the card of {subject.base.id}"), **subject.base.metadata}
    return replace(subject, base=replace(subject.base, metadata=known))


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"
