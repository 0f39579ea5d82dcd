"""What libnybble.so shows, needs and weighs.

    library_test.py LIBRARY INCLUDE_DIR
"""
import pathlib
import re
import subprocess
import sys
import unittest

# The C and C++ runtime; libpthread, libdl and librt are parts of libc that older ones keep apart.
MAY_NEED = re.compile(r"(libstdc\+\+|libm|libgcc_s|libc|ld-linux[\w-]*|libpthread|libdl|librt)\.so\.\d+")
MAX_BYTES = 30_000_000
CLASS_DATA = re.compile(r"^(typeinfo|typeinfo name|vtable) for ")


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def code_of(header):
    """A header's text without comments."""
    return re.sub(r"//.*|/\*.*?\*/", "", header.read_text())


def declared_functions(code):
    """Functions that stand at the left margin and have no body in the header."""
    for start in re.finditer(r"^(?!inline|constexpr|using|typedef|#)[\w:][\w:<>&*, \[\]]*?[\s*&](\w+)\(", code, re.M):
        if code[code.index(")", start.end()):].split(";")[0].count("{") == 0:
            yield start[1]


class Library(unittest.TestCase):
    library, include = None, None

    @classmethod
    def setUpClass(cls):
        cls.dynamic = output_of("readelf", "--dynamic", "--wide", cls.library)
        lines = output_of("nm", "--dynamic", "--defined-only", "--demangle", cls.library).splitlines()
        cls.shown = [line.split(" ", 2)[2] for line in lines]
        cls.c_code = code_of(cls.include / "nybble.h")
        cls.cxx_code = "".join(map(code_of, sorted((cls.include / "nybble").glob("*.h"))))

    def test_shows_only_what_public_headers_declare(self):
        words = set(re.findall(r"\w+", self.cxx_code))
        for symbol in self.shown:
            if symbol.startswith("nybble_"):
                self.assertRegex(self.c_code, rf"\b{re.escape(symbol)}\(", "not in nybble.h")
                continue
            name = CLASS_DATA.sub("", symbol)
            self.assertTrue(name.startswith("nybble::"), f"shows {symbol}")
            for inner in re.findall(r"\bnybble::(?:\(anonymous namespace\)|~?\w+)", symbol):
                self.assertIn(inner.removeprefix("nybble::"), words, f"no public header declares a part of {symbol}")

    def test_shows_every_function_of_the_headers(self):
        c_functions = set(declared_functions(self.c_code))
        self.assertGreater(len(c_functions), 20)
        self.assertEqual(c_functions - set(self.shown), set())
        shown = {match[1] for symbol in self.shown if (match := re.match(r"nybble::(\w+)(?:\[abi:cxx11\])?\(", symbol))}
        functions = set(declared_functions(self.cxx_code))
        self.assertGreater(len(functions), 20)
        self.assertEqual(functions - shown, set())

    def test_needs_only_the_c_and_cxx_runtime(self):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", self.dynamic)
        self.assertIn("libstdc++.so.6", needed)
        self.assertEqual([name for name in needed if not MAY_NEED.fullmatch(name)], [])

    def test_can_be_found_and_moved(self):
        self.assertRegex(re.search(r"\(SONAME\).*\[(.*)\]", self.dynamic)[1], r"^libnybble\.so\.\d+\.\d+$")
        self.assertNotRegex(self.dynamic, r"\((RPATH|RUNPATH|TEXTREL)\)")

    def test_weight(self):
        sections = re.findall(r"\] (\.\S+)\s+\S+\s+[0-9a-f]+ [0-9a-f]+ ([0-9a-f]+)",
                              output_of("readelf", "--sections", "--wide", self.library))
        host_debug = sum(int(size, 16) for name, size in sections if name.startswith(".debug"))
        self.assertLessEqual(self.library.stat().st_size - host_debug, MAX_BYTES)


if __name__ == "__main__":
    Library.library, Library.include = map(pathlib.Path, sys.argv[1:3])
    unittest.main(argv=sys.argv[:1])
