#!/usr/bin/env bash
# Runs the tests of one build folder through ctest and closes with what passed, what failed and what was skipped, and why.
#   scripts/run_tests.sh [BUILD_DIR [JOBS]]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

build="${1:-build/full}" jobs="${2:-2}"
[[ -f "$build/CTestTestfile.cmake" ]] || die "$build holds no tests; run: make build"
report="$(cd "$build" && pwd)/junit.xml"
rm -f "$report"
status=0
ctest --test-dir "$build" --parallel "$jobs" --output-on-failure --no-tests=error --output-junit "$report" || status=$?
python3 scripts/test_summary.py "$report" "$build" || status=1
exit "$status"
