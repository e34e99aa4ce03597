"""Executing a plan, in an order that leaves nothing half-published: all large files first, then a commit a repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longrope.errors import MissingRequirementError
from longrope.progress import Progress
from longrope_export.publish.hub import MAIN, Hub
from longrope_export.publish.plan import Plan, RepositoryPlan, change_of


@dataclass(frozen=True)
class Published:
    """What came of one repository: the commit that was verified, and its pull request."""

    repo_id: str
    commit: str
    pull_request: str | None = None


def execute(plan: Plan, hub: Hub, progress: Progress) -> list[Published]:
    """Send exactly what the plan says; the same command goes on where an interrupted one ended.

    Raises:
        BlockedError: the plan may not be executed.
        MissingRequirementError: the Hub refuses something, cannot be reached, or has other bytes than were sent.
    """
    plan.check()
    parents = {each.repo_id: _prepared(each, hub, progress) for each in plan.repositories}
    uploaded = {each.repo_id: _uploaded(each, hub, progress) for each in plan.repositories}
    done = [
        _committed(each, parents[each.repo_id], uploaded[each.repo_id], plan.message, hub) for each in plan.repositories
    ]
    if plan.collection:
        ids = [each.repo_id for each in plan.repositories]
        private = any(each.private for each in plan.repositories)
        slug = hub.collect(plan.collection, ids[0].split("/")[0], ids, private=private)
        progress.line(f"Collection {slug}: {', '.join(ids)}.")
    return done


def _prepared(each: RepositoryPlan, hub: Hub, progress: Progress) -> str:
    """The commit to build on, with the repository and the branch made where the plan says so."""
    parent = each.parent
    if parent is None:
        parent = hub.create(each.repo_id, private=each.private)
        progress.line(f"{each.repo_id}: made, {'private' if each.private else 'public'}.")
    if each.new_branch:
        hub.branch(each.repo_id, each.revision, parent)
    return parent


def _uploaded(each: RepositoryPlan, hub: Hub, progress: Progress) -> Sequence[object]:
    if not each.sent:
        return []
    total = sum(content.size for content in each.sent)
    with progress.task(f"upload {each.repo_id}", total) as task:
        additions = hub.upload(each.repo_id, each.revision, each.sent, create_pr=each.create_pr)
        task.advance(total)
    return additions


def _committed(each: RepositoryPlan, parent: str, additions: Sequence[object], message: str, hub: Hub) -> Published:
    if not each.sent:
        _verify(each, parent, hub)
        return Published(each.repo_id, parent)
    commit, request = hub.commit(
        each.repo_id, each.revision, additions, message, parent=parent, create_pr=each.create_pr
    )
    _verify(each, commit, hub)
    return Published(each.repo_id, commit, request)


def _verify(each: RepositoryPlan, commit: str, hub: Hub) -> None:
    """Compare the checksums of the commit's files with those of the plan."""
    files = hub.files(each.repo_id, commit or MAIN)
    wrong = [file.content.place for file in each.files if change_of(file.content, files) != "unchanged"]
    if wrong:
        raise MissingRequirementError(
            f"{each.repo_id}: the Hub has other bytes than were sent in {', '.join(wrong[:3])} (commit {commit[:8]}); "
            "run the same command again, which replaces them"
        )
