"""JUnit XML in the subset that the readers of GitHub, GitLab and Jenkins take.

One flat suite an artifact, one case a check. A class name is never empty, and no two cases share class and name; a case
has one outcome: passed, failed or, for a check that did not run, skipped. A warning is a passed case with its text in
`system-out`; why an artifact fails stands in its suite's. tests/junit.xsd is the subset, which lies within what Jenkins'
xUnit plugin takes (junit-10.xsd).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from longrope_export.ci.suites import Finding, Suite, unique

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(suites: Sequence[Suite]) -> str:
    """The document."""
    counts = _counts(suites)
    del counts["skipped"]  # which only a suite has
    root = ET.Element("testsuites", {"name": "longrope-export validate", **counts})
    names = unique(_name(suite.name, "artifact") for suite in suites)
    formats = [_name(suite.format, "format") for suite in suites]
    # Jenkins takes what stands before the last dot for a package: the artifact's own dots are none.
    class_names = unique(f"{kind}.{name.replace('.', '_')}" for kind, name in zip(formats, names, strict=True))
    root.extend(_suite(*each) for each in zip(suites, names, class_names, strict=True))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(suite: Suite, suite_name: str, class_name: str) -> ET.Element:
    made = ET.Element("testsuite", {"name": suite_name, **_counts([suite])})
    names = unique(_name(finding.name, "check") for finding in suite.findings)
    made.extend(_case(finding, class_name, name) for finding, name in zip(suite.findings, names, strict=True))
    if suite.why:
        ET.SubElement(made, "system-out").text = _legal("\n".join(suite.why))
    return made


def _case(finding: Finding, class_name: str, name: str) -> ET.Element:
    made = ET.Element("testcase", classname=class_name, name=name)
    text = _legal(finding.text)
    if finding.status == "fail":
        ET.SubElement(made, "failure", message=text, type="check").text = text
    elif finding.status == "skip":
        ET.SubElement(made, "skipped", message=text)
    elif finding.status == "warn":
        ET.SubElement(made, "system-out").text = f"Warning: {text}"
    return made


def _counts(suites: Sequence[Suite]) -> dict[str, str]:
    statuses = [finding.status for suite in suites for finding in suite.findings]
    counts = {
        "tests": len(statuses),
        "failures": statuses.count("fail"),
        "errors": 0,
        "skipped": statuses.count("skip"),
    }
    return {name: str(count) for name, count in counts.items()}


def _name(text: str, otherwise: str) -> str:
    """A text on one line as a name, which is never empty."""
    return " ".join(_legal(text).split()) or otherwise


def _legal(text: str) -> str:
    """The text without characters that no XML 1.0 document may hold."""
    return _ILLEGAL.sub("", text)
