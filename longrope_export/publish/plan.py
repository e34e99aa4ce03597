"""The plan as a value: built once, printed by --dry-run, executed exactly. Nothing is sent that is not in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longrope.errors import LongRopeError
from longrope_export.publish.card import card, is_ours
from longrope_export.publish.content import Content
from longrope_export.publish.hub import CARD, MAIN, Hub, Remote, RemoteFile
from longrope_export.publish.layout import Draft
from longrope_export.publish.scan import findings

SCHEMA_VERSION = 1
CONFIG = "config.json"
# Files that the Hub itself puts into a repository.
OF_THE_HUB = (".gitattributes",)

Change = Literal["new", "changed", "unchanged"]


class BlockedError(LongRopeError):
    """The plan may not be executed."""

    def __init__(self, blocker: Blocker) -> None:
        super().__init__(blocker.message, option=blocker.option)
        self.exit_code = blocker.exit_code


@dataclass(frozen=True)
class Blocker:
    """Why a plan may not be executed: a line, the option that lifts it, and the exit code."""

    message: str
    option: str = ""
    exit_code: int = 2


@dataclass(frozen=True)
class FileChange:
    """A file of a repository and what happens to it."""

    content: Content
    change: Change

    def to_json(self) -> dict[str, Any]:
        content = self.content
        return {"path": content.place, "size": content.size, "sha256": content.sha256, "change": self.change}


@dataclass(frozen=True)
class RepositoryPlan:
    """One repository: what is there, what is sent.

    Args:
        repo_id: ORG/NAME.
        revision: branch that the commit goes to.
        create_pr: open a pull request instead of committing to it.
        private: what the repository is, or is made.
        parent: commit that the plan was made against; None for a repository that is yet to be made.
        new_branch: whether the branch is yet to be made.
        files: everything that is to be there, by place.
        left_alone: files there that this plan says nothing about.
        diffs: of texts that change, by place.
        notes: what a person should know.
    """

    repo_id: str
    revision: str
    create_pr: bool
    private: bool
    parent: str | None
    new_branch: bool
    files: Sequence[FileChange]
    left_alone: Sequence[str] = ()
    diffs: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def action(self) -> str:
        if self.parent is None:
            return "create"
        return "update" if self.sent else "nothing to do"

    @property
    def sent(self) -> list[Content]:
        """What the commit holds."""
        return [file.content for file in self.files if file.change != "unchanged"]

    def to_json(self) -> dict[str, Any]:
        return {
            "repo_id": self.repo_id,
            "action": self.action,
            "visibility": "private" if self.private else "public",
            "revision": self.revision,
            "create_pr": self.create_pr,
            "new_branch": self.new_branch,
            "parent_commit": self.parent,
            "files": [file.to_json() for file in self.files],
            "left_alone": list(self.left_alone),
            "diffs": dict(self.diffs),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Plan:
    """All that publishing does.

    Args:
        repositories: in the order in which they are committed to.
        message: of the commits.
        collection: title of the collection that they are put into; empty for none.
        blockers: why it may not be executed.
    """

    repositories: Sequence[RepositoryPlan]
    message: str
    collection: str = ""
    blockers: Sequence[Blocker] = ()

    def check(self) -> None:
        """Raise BlockedError for the first blocker."""
        if self.blockers:
            raise BlockedError(self.blockers[0])

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "message": self.message,
            "repositories": [repository.to_json() for repository in self.repositories],
            "collection": self.collection or None,
            "blockers": [blocker.message for blocker in self.blockers],
        }


@dataclass(frozen=True)
class Wishes:
    """What the caller chose.

    Args:
        revision: branch to commit to.
        create_pr: open pull requests instead.
        public: repositories that are made are public.
        unverified: publish without a proof, and say so in the card.
        update: write to repositories that this program did not make, too.
        collection: put the repositories into a collection.
    """

    revision: str = MAIN
    create_pr: bool = False
    public: bool = False
    unverified: bool = False
    update: bool = False
    collection: bool = False


def make_plan(drafts: Sequence[Draft], wishes: Wishes, hub: Hub) -> Plan:
    """Look at what is there and work out what has to be sent; nothing is changed.

    Raises:
        InputError: a name that the Hub does not take, or a card there that cannot be merged.
        MissingRequirementError: the Hub cannot be reached or refuses the token.
    """
    hub.authenticate()
    repositories, blockers = [], []
    for draft in drafts:
        repo_id = draft.page.repo_id
        remote = hub.look(repo_id, wishes.revision, (CARD, CONFIG))
        if remote.exists and not wishes.create_pr:
            hub.may_write(repo_id)
        plan, contents = _repository(draft, wishes, remote)
        repositories.append(plan)
        blockers += [*_gate(draft, wishes), *_guards(draft, wishes, remote)]
        blockers += [Blocker(f"{repo_id}: {line}; it is not uploaded") for line in findings(contents, draft.strings)]
    title = f"{drafts[0].page.repo_id.split('/')[-1]} (LongRoPE)" if wishes.collection else ""
    message = f"Publish {drafts[0].page.repo_id.split('/')[-1]} with longrope-export"
    return Plan(repositories, message, title, blockers)


def _repository(draft: Draft, wishes: Wishes, remote: Remote) -> tuple[RepositoryPlan, list[Content]]:
    old = remote.texts.get(CARD, "")
    text, conflicts = card(draft.page, old)
    contents = sorted([*draft.contents, Content(CARD, text.encode())], key=lambda content: content.place)
    places = {content.place for content in contents}
    plan = RepositoryPlan(
        draft.page.repo_id,
        wishes.revision,
        wishes.create_pr,
        not wishes.public if remote.private is None else remote.private,
        remote.commit,
        not remote.has_revision or (not remote.exists and wishes.revision != MAIN),
        [FileChange(content, change_of(content, remote.files)) for content in contents],
        sorted(set(remote.files) - places - {*OF_THE_HUB}),
        dict(_diffs(contents, remote.texts)),
        [*draft.notes, *conflicts],
    )
    return plan, contents


def change_of(content: Content, files: Mapping[str, RemoteFile]) -> Change:
    """Whether a file is there, and with these bytes."""
    there = files.get(content.place)
    if there is None:
        return "new"
    return "unchanged" if there.equals(content) else "changed"


def _diffs(contents: Sequence[Content], texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for content in contents:
        if content.place in texts:
            new = content.read().decode("utf-8")
            lines = difflib.unified_diff(
                texts[content.place].splitlines(), new.splitlines(), "there", "new", lineterm="", n=1
            )
            if diff := "\n".join(lines):
                yield content.place, diff


def _gate(draft: Draft, wishes: Wishes) -> Iterator[Blocker]:
    """Nothing without a proof of these very bytes."""
    for each in draft.page.exported:
        if each.fault and not (wishes.unverified and each.factors is not None):
            yield Blocker(each.fault, "unverified publishes all the same and says so in the card", 1)


def _guards(draft: Draft, wishes: Wishes, remote: Remote) -> Iterator[Blocker]:
    """What protects a repository that is there, and the person's wish for privacy."""
    repo_id = draft.page.repo_id
    if not remote.exists:
        if wishes.create_pr:
            yield Blocker(f"{repo_id}: there is no such repository to open a pull request in; leave out --create-pr")
        return
    ours = is_ours(remote.texts.get(CARD, "")) or set(remote.files) <= {*OF_THE_HUB}
    if not ours and not (wishes.update or wishes.create_pr):
        yield Blocker(f"{repo_id} exists and was not made by this program; its files would be replaced", "update")
    if remote.private is False and not wishes.public:
        yield Blocker(f"{repo_id} exists and is public: what is sent can be seen by everybody", "public")
    if not remote.has_revision and wishes.create_pr:
        yield Blocker(f"{repo_id}: pull requests go to main; leave out --revision")
