"""Environments of their own for other people's runtimes, made once in the user's cache.

Making one needs the package registries; nothing else here does.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "longrope-export" / "engines"
# Prints what a package requires here, without its extras and without some packages: {package} and {without} are filled in.
_REQUIRED = """
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires({package!r}) or ():
    each = Requirement(line)
    if (each.marker is None or each.marker.evaluate({{"extra": ""}})) and each.name not in {without!r}:
        each.marker = None
        print(each)
"""


class UnavailableError(Exception):
    """An environment cannot be made here: no registry, no Node."""


@dataclass(frozen=True)
class Environment:
    """What a runtime runs in.

    Args:
        name: of its folder.
        packages: that it holds, of PyPI, or of npm for Node.
        bare: packages of PyPI installed after them without what they require, the first one's requirements but `without`.
        without: of those requirements, what is left out.
        node: packages are Node's.
        sees_ours: Python also finds the packages of the running interpreter, after its own.
    """

    name: str
    packages: Sequence[str]
    bare: Sequence[str] = ()
    without: Sequence[str] = ()
    node: bool = False
    sees_ours: bool = False

    @property
    def folder(self) -> Path:
        return CACHE / self.name

    def command(self, script: Path) -> list[str]:
        """The command that runs a script in the environment, which is made if need be.

        Raises:
            UnavailableError: it cannot be made.
        """
        if not self.node:
            return [str(self.python()), str(script)]
        self._once(self._make_node)
        copy = self.folder / script.name
        copy.write_text(script.read_text())  # modules are looked up from where a script lies
        return ["node", str(copy)]

    def python(self) -> Path:
        """The interpreter of the environment, which is made if need be."""
        self._once(self._make_python)
        if self.sees_ours:
            self._see_ours()
        return self._python

    @property
    def _python(self) -> Path:
        return self.folder / "bin" / "python"

    def _once(self, make: Callable[[], None]) -> None:
        if not (self.folder / ".complete").is_file():
            make()
            (self.folder / ".complete").touch()

    def _make_python(self) -> None:
        run([sys.executable, "-m", "venv", str(self.folder)], UnavailableError)
        if self.sees_ours:
            self._see_ours()
        install = [str(self._python), "-m", "pip", "install", "-q"]
        run([*install, *self.packages], UnavailableError)
        if self.bare:
            run([*install, "--no-deps", *self.bare], UnavailableError)
            package = self.bare[0].partition("==")[0]
            code = _REQUIRED.format(package=package, without=tuple(self.without))
            run([*install, *run([str(self._python), "-c", code], UnavailableError).split("\n")], UnavailableError)

    def _make_node(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "package.json").write_text("{}")
        # The packages hold their CPU binaries; install scripts would only fetch GPU ones.
        run(["npm", "install", "--ignore-scripts", "--no-audit", *self.packages], UnavailableError, self.folder)

    def _see_ours(self) -> None:
        """Let Python see the packages of the running interpreter, whichever it was made by."""
        own = next(self.folder.glob("lib/python*/site-packages"))
        (own / "parent.pth").write_text("\n".join(site.getsitepackages()))


def ask(command: Sequence[str], artifact: Path, request: Mapping[str, Any], **variables: str) -> Any:
    """What a runner answers to a request about an artifact: it is given three paths and writes to the last one.

    Args:
        command: that starts the runner.
        artifact: file or folder.
        request: as JSON.
        variables: of the process.

    Raises:
        RuntimeError: it failed; the message ends with what it printed.
        UnavailableError: there is no such program.
    """
    with tempfile.TemporaryDirectory() as room:
        asked, answer = Path(room) / "request.json", Path(room) / "answer.json"
        asked.write_text(json.dumps(request))
        run([*command, str(artifact.resolve()), str(asked), str(answer)], RuntimeError, **variables)
        return json.loads(answer.read_text())


def run(command: Sequence[str], error: type[Exception], folder: Path | None = None, **variables: str) -> str:
    """Standard output of a command without network at run time; what it printed last is in the error.

    Raises:
        error: it failed.
        UnavailableError: there is no such program.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnavailableError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise error(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout.strip()
