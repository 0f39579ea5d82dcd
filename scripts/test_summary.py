#!/usr/bin/env python3
"""Closes a test run: counts from ctest's JUnit report, and for each reason how many tests were skipped for it.

    scripts/test_summary.py JUNIT_XML BUILD_DIR
"""
import collections
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml


def state(case):
    """passed, failed or skipped; what ctest calls "not run" because its program is missing has failed."""
    if case.find("failure") is not None or case.get("status") == "fail":
        return "failed"
    skipped = case.find("skipped")
    if skipped is not None and skipped.get("message", "").startswith("Unable"):
        return "failed"
    return "skipped" if skipped is not None or case.get("status") in ("notrun", "disabled") else "passed"


def skip_reason(case):
    """The text given to GTEST_SKIP(), which stands on the line after "Skipped"."""
    found = re.search(r"^\S+:\d+: Skipped\n(?!\[)(.+)$", case.findtext("system-out") or "", re.M)
    if found:
        return found.group(1).strip()
    return "disabled" if "Disabled" in (case.findtext("system-out") or "") else "no reason given"


def gpu_tests(build):
    listed = subprocess.run(["ctest", "--test-dir", build, "-L", "^gpu$", "--show-only=json-v1"],
                            check=True, capture_output=True, text=True).stdout
    return {test["name"] for test in json.loads(listed)["tests"]}


def main(report, build):
    cases = list(xml.parse(report).getroot().iter("testcase"))
    counts = collections.Counter(map(state, cases))
    skipped = [case for case in cases if state(case) == "skipped"]
    needs_gpu = gpu_tests(build)
    reasons = collections.Counter((case.get("name") in needs_gpu, skip_reason(case)) for case in skipped)
    for (gpu, reason), count in sorted(reasons.items(), reverse=True):
        print(f"skipped {count} {'GPU test' if gpu else 'test'}{'s' if count > 1 else ''}: {reason}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if not counts["passed"] + counts["failed"]:
        print("test_summary: no test ran", file=sys.stderr)
        return 1
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
