"""Add up the JUnit reports of a test run; fail when too few tests ran or any was skipped."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

EXPECTED = int(Path(__file__).with_name("expected-tests").read_text())


def main(folder: Path) -> int:
    """Print the closing line; 1 where the run cannot count as green."""
    ran = failed = 0
    skipped: list[str] = []
    for report in folder.glob("*.xml"):
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            if "skipped" in kinds:
                skipped.append(f"{case.get('classname')}::{case.get('name')}")
                continue
            ran += 1
            failed += bool(kinds & {"failure", "error"})
    for name in skipped:
        print(f"skipped: {name}")
    print(f"{ran - failed} passed, {failed} failed, {len(skipped)} skipped")
    if ran < EXPECTED:
        print(f"only {ran} tests ran, at least {EXPECTED} are expected")
    return int(bool(failed or skipped or ran < EXPECTED))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
