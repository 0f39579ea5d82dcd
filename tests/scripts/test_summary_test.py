"""scripts/test_summary.py: what counts as passed, failed and skipped in ctest's JUnit report, and the reason of a skip."""
import pathlib
import sys
import unittest
import xml.etree.ElementTree as xml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import test_summary

SKIPPED = """<testcase name="gpu/A.B" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/><system-out>
[ RUN      ] A.B
/src/tests/gpu/a_test.cu:4: Skipped
{}[  SKIPPED ] A.B (0 ms)
</system-out></testcase>"""


class TestSummary(unittest.TestCase):
    def test_states(self):
        for text, state in (
            ('<testcase status="run"/>', "passed"),
            ('<testcase status="fail"><failure message=""/></testcase>', "failed"),
            ('<testcase status="notrun"><skipped message="Unable to find executable"/></testcase>', "failed"),
            ('<testcase status="disabled"><system-out>Disabled</system-out></testcase>', "skipped"),
            (SKIPPED.format(""), "skipped"),
        ):
            self.assertEqual(test_summary.state(xml.fromstring(text)), state, text)

    def test_reasons(self):
        self.assertEqual(test_summary.skip_reason(xml.fromstring(SKIPPED.format("no CUDA device\n"))), "no CUDA device")
        self.assertEqual(test_summary.skip_reason(xml.fromstring(SKIPPED.format(""))), "no reason given")


if __name__ == "__main__":
    unittest.main()
