#!/usr/bin/env bash
# Runs what needs a Hopper GPU, with programs that were built here or elsewhere; needs neither compiler nor network.
#   scripts/gpu_check.sh BUILD_DIR [PART...]      PART: check exact sanitize bench (check and exact when none is given)
#
#   check     every test program test_gpu_*, without the two long suites that `exact` runs; tests/gpu_cli where nybble is there
#   exact     exact-integer products and truth tables: every row of the registry at every edge
#   sanitize  compute-sanitizer over a reduced list (NYBBLE_TEST_REDUCED=1)
#   bench     nybble bench over the shapes of the README, against dense cuBLAS
#
# Every test runs in a process of its own, so that one that hangs or loses the device spoils no other. Logs and
# summary.json go to ${OUT:-out}. Settings: TEST_TIMEOUT (seconds a test, 300), GTEST_FILTER (check, exact, sanitize: only
# tests that match), SANITIZER (the program), SANITIZER_TOOLS ("memcheck"; also initcheck synccheck racecheck),
# BENCH_ARGS (instead of the usual shapes).
# Exit code: 0 all passed; 1 something failed, or nothing ran; 2 the request was wrong.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() { sed -n '2,17s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 1 ]] || usage
build="$1"
shift
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(check exact)
for part in "${parts[@]}"; do [[ $part =~ ^(check|exact|sanitize|bench)$ ]] || { say "no part is called '$part'"; usage; }; done
[[ -d $build ]] || { say "$build is no folder"; exit 2; }

out="${OUT:-out}"
mkdir -p "$out"
timeout_s="${TEST_TIMEOUT:-300}"
long_suites='ExactGemm.*:TruthTable.*'
mapfile -t programs < <(find "$build" -maxdepth 3 -type f -name 'test_gpu_*' -perm -u+x | sort)
results=()
passed=0 failed=0 skipped=0

json_text() {
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "${text//[$'\n\r\t']/ }"
}

# record PART NAME STATUS SECONDS LOG
record() {
  printf '%-8s %-8s %6s s  %s\n' "$3" "$1" "$4" "$2"
  results+=("{\"part\":\"$1\",\"name\":$(json_text "$2"),\"status\":\"$3\",\"seconds\":$4,\"log\":$(json_text "$5")}")
  case "$3" in passed) passed=$((passed + 1)) ;; skipped) skipped=$((skipped + 1)) ;; *) failed=$((failed + 1)) ;; esac
}

# run PART NAME COMMAND...: one process with a time limit; its output goes to a log, the end of it to the terminal on failure.
run() {
  local part="$1" name="$2" log start status=0 verdict=passed
  shift 2
  log="$out/$part-${name//[^A-Za-z0-9_.-]/_}.log"
  start=$(date +%s)
  timeout --kill-after=20 "$timeout_s" "$@" > "$log" 2>&1 || status=$?
  if [[ $status -eq 124 || $status -eq 137 ]]; then
    verdict=timeout
  elif [[ $status -eq 77 ]]; then
    verdict=skipped
  elif [[ $status -ne 0 ]]; then
    verdict=failed
  elif grep -q '^\[  SKIPPED \]' "$log"; then
    verdict=skipped
  fi
  record "$part" "$name" "$verdict" "$(($(date +%s) - start))" "$(basename "$log")"
  if [[ $verdict == failed || $verdict == timeout ]]; then
    tail -n 40 "$log" | sed 's/^/    /'
  elif [[ $verdict == skipped ]]; then
    grep -A1 -m1 ': Skipped$' "$log" | tail -1 | sed 's/^/    /'
  fi
}

# tests PROGRAM FILTER: names, one a line
tests() {
  "$1" --gtest_list_tests --gtest_filter="$2" | awk '/^[^ ]/ { suite = $1; next } NF { print suite $1 }'
}

run_tests() {  # PART PROGRAM FILTER PREFIX_COMMAND...
  local part="$1" program="$2" filter="$3" test
  shift 3
  while read -r test; do
    [[ -n $test ]] && run "$part" "$(basename "$program")/$test" "$@" "$program" --gtest_filter="$test"
  done < <(tests "$program" "$filter")
}

nybble_command() { find "$build" -maxdepth 2 -type f -name nybble -perm -u+x | head -1; }

need_programs() {
  [[ ${#programs[@]} -gt 0 ]] || { say "$build holds no test_gpu_* program; build them, or copy them there"; exit 2; }
}

part_check() {
  need_programs
  local program
  for program in "${programs[@]}"; do
    run_tests check "$program" "${GTEST_FILTER:-*}-$long_suites:RepeatCase.*"
  done
  local test command
  command="$(nybble_command)"
  [[ -n $command ]] || return 0
  for test in tests/gpu_cli/*_test.py; do
    NYBBLE="$(realpath "$command")" NYBBLE_SOURCE_DIR="$PWD" run check "gpu_cli/$(basename "$test" .py)" python3 -B "$test"
  done
}

kernel_tests() {
  local program
  for program in "${programs[@]}"; do [[ $(basename "$program") == test_gpu_kernels ]] && printf '%s\n' "$program" && return; done
  say "$build holds no test_gpu_kernels"
  exit 2
}

part_exact() {
  local program
  program="$(kernel_tests)"
  run_tests exact "$program" "${GTEST_FILTER:-$long_suites}"
}

part_sanitize() {
  local program sanitizer tool candidate
  program="$(kernel_tests)"
  sanitizer="${SANITIZER:-$(command -v compute-sanitizer || true)}"
  for candidate in "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer \
                   "${CUDA_HOME:-/usr/local/cuda}"/compute-sanitizer/compute-sanitizer; do
    [[ -n $sanitizer || ! -x $candidate ]] || sanitizer="$candidate"
  done
  [[ -n $sanitizer ]] || { say "compute-sanitizer is not here; name it with SANITIZER="; exit 2; }
  for tool in ${SANITIZER_TOOLS:-memcheck}; do
    NYBBLE_TEST_REDUCED=1 run_tests "sanitize" "$program" \
      "${GTEST_FILTER:-ExactGemm.EveryRow*:RandomData.StaysWithinTheEnvelope:Repeatability.SecondRun*:Repeatability.GraphReplay*:Arguments.*}" \
      "$sanitizer" --tool "$tool" --error-exitcode 9
  done
}

part_bench() {
  local program
  program="$(nybble_command)"
  [[ -n $program ]] || { say "$build holds no nybble"; exit 2; }
  # shellcheck disable=SC2086  # BENCH_ARGS is a list of words
  run bench nybble_bench "$program" bench ${BENCH_ARGS:---shape 28672x4096,8192x8192,8192x28672 --m 1,16,256,4096} --json "$out/bench.json"
}

gpu="$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader -i 0 2> /dev/null || echo "none, none")"
echo "GPU: $gpu"
for part in "${parts[@]}"; do "part_$part"; done

{
  printf '{"schema":1,"gpu":%s,"driver":%s,"date":"%s","parts":%s,"passed":%d,"failed":%d,"skipped":%d,"results":[\n' \
    "$(json_text "${gpu%%,*}")" "$(json_text "${gpu##*, }")" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(json_text "${parts[*]}")" \
    "$passed" "$failed" "$skipped"
  for i in "${!results[@]}"; do
    printf '  %s%s\n' "${results[$i]}" "$([[ $i -lt $((${#results[@]} - 1)) ]] && echo ,)"
  done
  echo ']}'
} > "$out/summary.json"
echo "$passed passed, $failed failed, $skipped skipped; logs and summary.json in $out"
[[ $failed -eq 0 && $passed -gt 0 ]]
