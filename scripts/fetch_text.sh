#!/usr/bin/env bash
# Puts text out of Debian packages into .deps/text: heldout.txt and calibration.txt, two of Jane Austen's novels (public
# domain).
#   scripts/fetch_text.sh              these two
#   scripts/fetch_text.sh --training   training.txt, too: the other novels and documentation, about 180 MB
# Packages are fetched by apt and unpacked, not installed; needs no root. The novels are checked by SHA-256.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly TEXT_DIR="$DEPS/text"
readonly NOVELS_SHA256='ea05f5bd05c12e0b8a04e80ff9f65cb37920658ac47d07a58f615733f93664d2  heldout.txt
28fdad64b60044071a63ac220af7aca345eea4b497bf471e30961475787497a0  calibration.txt'

training=no
case "${1:-}" in
  '') ;;
  --training) training=yes ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) say "unknown option $1 (there is only --training)"; exit 2 ;;
esac

novels_are_complete() {
  (cd "$1" 2> /dev/null && sha256sum --check --strict --quiet <<< "$NOVELS_SHA256") > /dev/null 2>&1
}

if novels_are_complete "$TEXT_DIR" && [[ $training == no || -f "$TEXT_DIR/training.txt" ]]; then exit 0; fi

command -v apt-get > /dev/null || die "the texts come out of Debian's packages; this machine has no apt-get"
mkdir -p "$DEPS"
part="$(mktemp -d "$DEPS/text.XXXXXX")"
trap 'rm -rf "$part"' EXIT
mkdir "$part/text"

fetch_and_unpack() {
  say "fetching $# Debian packages"
  if ! (cd "$part" && apt-get download -q "$@") > "$part/log" 2>&1 < /dev/null; then
    tail -n 5 "$part/log" >&2
    die "apt-get could not fetch: $*"
  fi
  local package
  for package in "$@"; do
    mkdir -p "$part/packages/$package"
    dpkg-deb -x "$part/${package}"_*.deb "$part/packages/$package"
  done
}

extract() {
  python3 "$ROOT/scripts/debian_text.py" "$1" "$part/packages" "$part/text" || die "no text out of the packages"
}

fetch_and_unpack r-cran-janeaustenr
extract novels
novels_are_complete "$part/text" || die "the novels in r-cran-janeaustenr are not those expected: their SHA-256 differs"
if [[ $training == yes ]]; then
  mapfile -t packages < <(python3 "$ROOT/scripts/debian_text.py" list)
  fetch_and_unpack "${packages[@]}"
  extract training
fi
mkdir -p "$TEXT_DIR"
mv "$part"/text/*.txt "$TEXT_DIR/"
say "text ready in .deps/text"
