"""`make audit`: what pip-audit found, in a line, with an exit code that tells a clean bill from a database out of reach.

pip-audit --format json … | python .ci/audit.py
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """1 when a package has a known vulnerability; 0 otherwise, with a line that says so when nothing could be asked."""
    try:
        packages = json.load(sys.stdin)["dependencies"]
    except (ValueError, KeyError):
        packages = []
    audited = [package for package in packages if "skip_reason" not in package]
    known = [(package, found) for package in audited for found in package["vulns"]]
    for package, found in known:
        fixed = ", ".join(found["fix_versions"]) or "no version yet"
        sys.stdout.write(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}\n")
    if not audited:
        sys.stdout.write("audit skipped: pip-audit cannot reach its database from here\n")
    else:
        rest = f", {len(packages) - len(audited)} could not be asked about" if len(audited) < len(packages) else ""
        sys.stdout.write(f"{len(audited)} packages audited{rest}: {len(known)} known vulnerabilities\n")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
