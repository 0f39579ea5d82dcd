#!/usr/bin/env python3
"""Plain text out of unpacked Debian packages: what scripts/fetch_text.sh calls.

    scripts/debian_text.py novels  PACKAGES OUT    heldout.txt and calibration.txt from r-cran-janeaustenr
    scripts/debian_text.py training PACKAGES OUT   training.txt, other novels and documentation
    scripts/debian_text.py list                    the packages that the training text is made of

PACKAGES has a folder for each package, named like it. No line of 20 characters and more stands in the training text
twice, or in it and in the held-out text.
"""
import argparse
import gzip
import html
import pathlib
import re
import struct
import zlib

NOVELS = "r-cran-janeaustenr"
HELD_OUT, CALIBRATION = "Persuasion", "EMMA"  # by their first lines

# What is taken from which package: English prose as far as there is some.
TRAINING = {
    "anarchism": r"/html/.*\.html$",
    "apache2-doc": r"/manual/en/.*\.html",
    "aptitude-doc-en": r"\.html$",
    "bind9-doc": r"\.html$",
    "cmake-doc": r"/_sources/.*\.txt$",
    "debian-faq": r"\.html$",
    "debian-handbook": r"/en-US/.*\.html$",
    "debian-policy": r"/_sources/.*\.txt$",
    "debian-reference-en": r"\.txt\.gz$",
    "developers-reference": r"/_sources/.*\.txt$",
    "dict-foldoc": r"\.dict\.dz$",
    "dict-gcide": r"\.dict\.dz$",
    "dict-wn": r"\.dict\.dz$",
    "fortunes": r"/fortunes/[a-z-]+$",
    "git-doc": r"/git-doc/.*\.txt$",
    "installation-guide-amd64": r"/en/.*\.html$",
    "jargon-text": r"\.txt\.gz$",
    "libreoffice-help-en-us": r"\.html$",
    "linux-doc-6.1": r"/Documentation/(?!translations).*\.(rst|txt)\.gz$",
    "manpages": r"/man/man[0-9]/.*\.gz$",
    "manpages-dev": r"/man/man[0-9]/.*\.gz$",
    "octave-doc": r"\.html$",
    "perl-doc": r"/(pods|perl)/.*\.pod$",
    "postgresql-doc-15": r"\.html$",
    "python-django-doc": r"\.html$",
    "python-sympy-doc": r"/_sources/.*\.txt$",
    "python3.11-doc": r"/_sources/.*\.txt$",
    "sqlite3-doc": r"\.html$",
    "vim-runtime": r"/doc/.*\.txt$",
    "zsh-doc": r"\.html$",
}


def novels(folder):
    """{first line: text} of the character vectors in an R package's data file: a chain of zlib streams, each after its
    length, each one vector in R's serialization (R Internals, "Serialization Formats")."""
    data = (folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    found, at = {}, 0
    while at < len(data):
        stream = zlib.decompressobj()
        vector = stream.decompress(data[at + 4:])
        at = len(data) - len(stream.unused_data)
        (encoding,) = struct.unpack_from(">i", vector, 14)
        (count,) = struct.unpack_from(">i", vector, 22 + encoding)
        lines, place = [], 26 + encoding
        for _ in range(count):
            (length,) = struct.unpack_from(">i", vector, place + 4)
            lines.append(vector[place + 8:place + 8 + max(length, 0)].decode("utf-8"))
            place += 8 + max(length, 0)
        paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
        found[lines[0]] = "\n\n".join(" ".join(text.split()) for text in paragraphs if text.strip()) + "\n"
    return found


def of_html(text):
    text = re.sub(r"(?is)<(script|style|head|nav)\b.*?</\1>|<!--.*?-->", " ", text)
    text = re.sub(r"(?i)</?(p|div|h[1-6]|li|ul|ol|dl|dt|dd|tr|table|br|pre|blockquote|section)\b[^>]*>", "\n\n", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return "\n\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", text))


def of_manual_page(text):
    text = re.sub(r'(?m)^[.\'](?:\\"|[A-Za-z]{1,2}\b(?<!SH)(?<!SS)(?<!B)(?<!I)(?<!BR)(?<!IR)(?<!BI)).*\n', "", text)
    text = re.sub(r"(?m)^\.[A-Za-z]{1,2} *", "", text)
    return re.sub(r"\\f[A-Z]|\\&|\\/", "", text).replace("\\-", "-")


def read(path):
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix in (".gz", ".dz") else data).decode("utf-8", "replace")
    name = str(path)
    return of_html(text) if ".html" in name else of_manual_page(text) if "/man/" in name else text


def training(packages, seen):
    """The documents of the packages, without the lines that were `seen`; those shown are seen from now on."""
    for package, pattern in TRAINING.items():
        folder = packages / package
        paths = sorted(path for path in folder.rglob("*") if re.search(pattern, str(path)) and path.is_file())
        if not paths:
            raise SystemExit(f"debian_text: {folder} holds no file like {pattern}: has the package changed?")
        for path in paths:
            yield without_seen(read(path), seen)


def without_seen(text, seen):
    kept = []
    for line in text.splitlines():
        line = line.rstrip()
        ascii_only = sum(character < "\x7f" for character in line)
        if len(line) >= 20:
            if line in seen or ascii_only < 0.8 * len(line):
                continue
            seen.add(line)
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    for verb in ("novels", "training"):
        sub = verbs.add_parser(verb)
        sub.add_argument("packages", type=pathlib.Path)
        sub.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.verb == "list":
        print("\n".join(TRAINING))
        return
    books = novels(arguments.packages / NOVELS)
    if arguments.verb == "novels":
        (arguments.out / "heldout.txt").write_text(books[HELD_OUT], encoding="utf-8")
        (arguments.out / "calibration.txt").write_text(books[CALIBRATION], encoding="utf-8")
        return
    seen = set(books.pop(HELD_OUT).splitlines())
    with open(arguments.out / "training.txt", "w", encoding="utf-8") as file:
        for document in [without_seen(book, seen) for book in books.values()]:
            file.write(document + "\0")
        for document in training(arguments.packages, seen):
            file.write(document + "\0")


if __name__ == "__main__":
    main()
