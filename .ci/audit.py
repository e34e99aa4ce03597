"""`make audit`: what pip-audit found, in a line, with an exit code that tells a clean bill from a database out of reach.

pip-audit --format json … | python .ci/audit.py
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """1 when a package has a known hole; 0 otherwise, with a word when nothing could be asked."""
    try:
        packages = json.load(sys.stdin)["dependencies"]
    except (ValueError, KeyError):
        packages = []
    audited = [package for package in packages if "skip_reason" not in package]
    holes = [(package, hole) for package in audited for hole in package["vulns"]]
    for package, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version yet"
        sys.stdout.write(f"{package['name']} {package['version']}: {hole['id']}, mended in {fixed}\n")
    if not audited:
        sys.stdout.write("audit skipped: pip-audit cannot reach its database from here\n")
    else:
        rest = f", {len(packages) - len(audited)} could not be asked about" if len(audited) < len(packages) else ""
        sys.stdout.write(f"{len(audited)} packages audited{rest}: {len(holes)} known holes\n")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
