"""The Hub as publishing needs it: what is there, and the few calls that change something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.unfinished import temporary_folder
from longrope_export.publish.content import Content
from longrope_export.publish.errors import hub_errors

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

CARD = "README.md"
MAIN = "main"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: its size and the hash that it is known by there."""

    size: int
    git_sha1: str
    sha256: str | None = None

    def equals(self, content: Content) -> bool:
        """Whether these are the same bytes."""
        if self.size != content.size:
            return False
        return self.sha256 == content.sha256 if self.sha256 else self.git_sha1 == content.git_sha1


@dataclass(frozen=True)
class Remote:
    """A repository as it was when it was looked at.

    Args:
        private: whether it is; None when there is none.
        commit: head of the revision, or of main where the revision is yet to be made; None without a repository.
        has_revision: whether the revision is there.
        files: by place.
        texts: of the files that a plan compares by line.
    """

    private: bool | None = None
    commit: str | None = None
    has_revision: bool = True
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        return self.commit is not None


class Hub:
    """`huggingface_hub.HfApi` with its errors as ours; it finds the token and the endpoint itself."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi, logging
        from huggingface_hub.utils.tqdm import disable_progress_bars

        logging.set_verbosity_error()
        disable_progress_bars()
        self.api: HfApi = HfApi()

    def authenticate(self) -> None:
        """Raise unless there is a token that the Hub takes."""
        with hub_errors("the Hub"):
            self.api.whoami()

    def may_write(self, repo_id: str) -> None:
        """Raise unless the token may write to a repository."""
        with hub_errors(repo_id):
            self.api.auth_check(repo_id, write=True)

    def look(self, repo_id: str, revision: str = MAIN, texts: Iterable[str] = (CARD,)) -> Remote:
        """What is there; a repository that is not is no error."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        with hub_errors(repo_id):
            has_revision = True
            try:
                info = self.api.model_info(repo_id, revision=revision)
            except GatedRepoError:
                raise
            except RevisionNotFoundError:
                has_revision, info = False, self.api.model_info(repo_id)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 401:
                    raise
                return Remote()
            files = self.files(repo_id, info.sha or MAIN)
            known = {name: self._text(repo_id, name, info.sha or MAIN) for name in texts if name in files}
            return Remote(bool(info.private), info.sha, has_revision, files, known)

    def files(self, repo_id: str, revision: str) -> dict[str, RemoteFile]:
        """The whole tree of a revision."""
        from huggingface_hub.hf_api import RepoFile

        with hub_errors(repo_id):
            tree = self.api.list_repo_tree(repo_id, recursive=True, revision=revision)
            return {
                each.path: RemoteFile(each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
                for each in tree
                if isinstance(each, RepoFile)
            }

    def card_of(self, repo_id: str) -> str:
        """The model card of any repository; empty without one."""
        return self.look(repo_id).texts.get(CARD, "")

    def _text(self, repo_id: str, name: str, revision: str) -> str:
        """A small file, fetched anew: a cache would write to the disk, and may be another revision's."""
        with temporary_folder("hub") as room:
            path = self.api.hf_hub_download(repo_id, name, revision=revision, local_dir=room)
            return Path(path).read_text(encoding="utf-8", errors="replace")

    # -- what changes something

    def create(self, repo_id: str, *, private: bool) -> str:
        """Make a repository; returns its first commit. Somebody else's of this name is an error."""
        with hub_errors(repo_id):
            self.api.create_repo(repo_id, private=private, exist_ok=False)
            return str(self.api.model_info(repo_id).sha)

    def branch(self, repo_id: str, revision: str, start: str) -> None:
        """Make a branch that starts at a commit."""
        with hub_errors(repo_id):
            self.api.create_branch(repo_id, branch=revision, revision=start, exist_ok=True)

    def upload(self, repo_id: str, revision: str, contents: Sequence[Content], *, create_pr: bool) -> list[Any]:
        """Send the large files' bytes, those that the Hub has not; no commit refers to them yet."""
        from huggingface_hub import CommitOperationAdd

        with hub_errors(repo_id):
            additions: list[CommitOperationAdd] = [
                CommitOperationAdd(each.place, each.source if isinstance(each.source, bytes) else str(each.source))
                for each in contents
            ]
            for addition, content in zip(additions, contents, strict=True):
                addition.upload_info.sha256 = bytes.fromhex(content.sha256)  # computed for the plan
            self.api.preupload_lfs_files(
                repo_id, additions, revision=revision, create_pr=create_pr, num_threads=2, free_memory=False
            )
            return list(additions)

    def commit(
        self, repo_id: str, revision: str, additions: Sequence[Any], message: str, *, parent: str, create_pr: bool
    ) -> tuple[str, str | None]:
        """One commit of everything, on top of exactly `parent`; returns it and the pull request's address, if any."""
        with hub_errors(repo_id):
            made = self.api.create_commit(
                repo_id,
                list(additions),
                commit_message=message,
                revision=revision,
                parent_commit=parent,
                create_pr=create_pr,
            )
            return str(made.oid), made.pr_url

    def collect(self, title: str, namespace: str, repo_ids: Sequence[str], *, private: bool) -> str:
        """Put repositories into a collection, made where it is missing; returns its slug."""
        with hub_errors(f"collection {title}"):
            found = self.api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
            for repo_id in repo_ids:
                self.api.add_collection_item(found.slug, repo_id, item_type="model", exists_ok=True)
            return str(found.slug)
