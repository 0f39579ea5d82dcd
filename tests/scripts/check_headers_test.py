"""scripts/check_headers.sh on small trees: headers that lean on another one, repeat themselves or are no C."""
import pathlib
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_headers.sh"


def check(headers):
    with tempfile.TemporaryDirectory() as root:
        include = pathlib.Path(root, "include")
        (include / "nybble").mkdir(parents=True)
        for name, text in headers.items():
            (include / name).write_text(text)
        done = subprocess.run([SCRIPT, root], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


class CheckHeaders(unittest.TestCase):
    def test_good_headers(self):
        code, output = check({"nybble/types.h": "#pragma once\n#include <string>\ninline std::string name() { return {}; }\n",
                              "nybble.h": "#ifndef N\n#define N\ntypedef struct plan plan;\n#endif\n"})
        self.assertEqual(code, 0, output)
        self.assertIn("2 compile alone", output)

    def test_bad_headers(self):
        for name, text, language in (
            ("nybble/types.h", "#pragma once\ninline std::string name() { return {}; }\n", "c++"),  # leans on <string>
            ("nybble/types.h", "struct Twice {};\n", "c++"),                                         # no guard
            ("nybble/types.h", "#pragma once\ninline int f(int unused) { return 0; }\n", "c++"),     # a warning
            ("nybble.h", "#pragma once\n#include <cstdint>\n", "c"),                          # C++ in the C header
        ):
            code, output = check({name: text})
            self.assertEqual(code, 1, text)
            self.assertIn(f"include/{name} does not compile alone as {language}", output)

    def test_no_header_is_no_success(self):
        self.assertEqual(check({})[0], 1)


if __name__ == "__main__":
    unittest.main()
