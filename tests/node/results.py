"""Results of a pytest that ran on a node, from its JUnit report: the console is all that leaves a node."""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import dataclass
from xml.etree import ElementTree

_LINE = re.compile(r"node: results ([A-Za-z0-9+/=]+)")
_PACK = "import base64, sys, zlib; print(base64.b64encode(zlib.compress(sys.stdin.buffer.read())).decode())"
#: what is run on the node after the tests: one line of the console; takes the path of the report
SEND = f"echo node: results $(python3 -c '{_PACK}' < {{report}})"


@dataclass(frozen=True, slots=True)
class Result:
    """One test: "passed", "failed", "error" or "skipped", and the text that pytest has for it."""

    file: str
    name: str
    outcome: str
    seconds: float
    text: str = ""


def parse(console: str) -> list[Result]:
    """The results in what a node has written; ValueError when there are none."""
    match = _LINE.search(console)
    if match is None:
        raise ValueError("the node ended without results:\n" + console[-4000:])
    report = ElementTree.fromstring(zlib.decompress(base64.b64decode(match[1])))
    return [_result(case) for case in report.iter("testcase")]


def _result(case: ElementTree.Element) -> Result:
    outcome, text = "passed", ""
    for kind, name in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            outcome, text = name, f"{found.get('message', '')}\n{found.text or ''}"
            break
    file = case.get("classname", "").replace(".", "/") + ".py"
    return Result(file, case.get("name", ""), outcome, float(case.get("time", 0)), text)
