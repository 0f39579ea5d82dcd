#!/usr/bin/env bash
# Installs what building nybble needs and is missing: Debian packages, and a CUDA toolkit where there is none.
# Run again at any time: with nothing missing it changes nothing and says nothing.
#   scripts/setup.sh            use an installed CUDA toolkit >= 12.8, else fetch one from PyPI's wheels
#   scripts/setup.sh --wheels   use the wheels even where a toolkit is installed
# Writes .deps/env.sh (CUDACXX for CMake), which the Makefile reads.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly CUDA_MIN_MAJOR=12 CUDA_MIN_MINOR=8
readonly CUDA_WHEEL_VERSION='13.0.*'
readonly CUDA_WHEELS=(nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl)

# A tool may come from anywhere, so it is looked for by its command; a library is looked for as a Debian package.
readonly TOOLS=(g++:g++ cmake:cmake ninja:ninja-build make:make python3:python3 clang-format:clang-format
  clang++:clang pkg-config:pkg-config)
readonly LIBRARIES=(libfmt-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev libbenchmark-dev
  libeigen3-dev libxxhash-dev libpcre2-dev libclang-rt-14-dev)

force_wheels=no
case "${1:-}" in
  '') ;;
  --wheels) force_wheels=yes ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) say "unknown option $1 (there is only --wheels)"; exit 2 ;;
esac

missing_packages() {
  local entry package
  for entry in "${TOOLS[@]}"; do
    command -v "${entry%%:*}" > /dev/null || echo "${entry#*:}"
  done
  python_with_pip > /dev/null || echo python3-pip
  for package in "${LIBRARIES[@]}"; do
    [[ "$(dpkg-query -W -f '${Status}' "$package" 2> /dev/null)" == 'install ok installed' ]] || echo "$package"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  [[ ${#missing[@]} -gt 0 ]] || return 0
  command -v apt-get > /dev/null ||
    die "this script installs on Debian and its children only; install by hand what these packages hold: ${missing[*]}"
  if [[ $EUID -ne 0 ]]; then
    say "not root, and these packages are missing: ${missing[*]}"
    die "run this once, then repeat:  sudo apt-get update && sudo apt-get install -y ${missing[*]}"
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  local log
  log="$(mktemp)"
  if ! { apt-get update -q &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    > "$log" 2>&1 < /dev/null; then
    tail -n 25 "$log" >&2
    die "apt-get failed; the whole output is in $log"
  fi
  rm -f "$log"
  mapfile -t missing < <(missing_packages)
  [[ ${#missing[@]} -eq 0 ]] || die "still missing after apt-get: ${missing[*]}"
}

# 0 when the compiler $1 is nvcc of the wanted age.
nvcc_is_recent() {
  local release
  release="$("$1" --version 2> /dev/null | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')" || return 1
  [[ -n "$release" ]] || return 1
  local major="${release% *}" minor="${release#* }"
  ((major > CUDA_MIN_MAJOR || (major == CUDA_MIN_MAJOR && minor >= CUDA_MIN_MINOR)))
}

installed_nvcc() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    [[ -n "$nvcc" && -x "$nvcc" && "$nvcc" != "$DEPS"/* ]] || continue
    if nvcc_is_recent "$nvcc"; then
      echo "$nvcc"
      return 0
    fi
    say "passing over $nvcc: older than CUDA $CUDA_MIN_MAJOR.$CUDA_MIN_MINOR"
  done
  return 1
}

# Compiles and links the sample for Hopper: shows that compiler, headers, device library and static runtime are all there.
toolkit_works() {
  local out
  out="$(mktemp -d)"
  local status=0
  "$1" -std=c++20 -gencode arch=compute_90a,code=sm_90a -cudart static -o "$out/sample" \
    "$ROOT/scripts/toolkit_sample/sample.cu" && "$out/sample" > /dev/null || status=$?
  rm -rf "$out"
  return "$status"
}

# Lays the wheels out as one toolkit root, the way nvcc and CMake look for it.
wheel_toolkit() {
  local root="$DEPS/cuda"
  if [[ -x "$root/bin/nvcc" ]]; then
    echo "$root/bin/nvcc"
    return 0
  fi
  local python wheels=() name
  python="$(python_with_pip)" || die "no python3 with pip found to fetch the CUDA wheels with"
  for name in "${CUDA_WHEELS[@]}"; do wheels+=("$name==$CUDA_WHEEL_VERSION"); done
  say "no CUDA toolkit >= $CUDA_MIN_MAJOR.$CUDA_MIN_MINOR in use: fetching $CUDA_WHEEL_VERSION from PyPI (about 100 MB, 280 MB unpacked)"
  local part="$DEPS/cuda.part"
  rm -rf "$part"
  mkdir -p "$part"
  # --target: a folder of our own, so that a python managed by the system lets pip work, and nothing of it is touched.
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
    --only-binary :all: --target "$part" "${wheels[@]}" >&2 < /dev/null ||
    die "pip could not fetch the CUDA wheels: ${wheels[*]}"
  local tree="$part/nvidia/cu13"
  [[ -x "$tree/bin/nvcc" && -f "$tree/lib/libcudart_static.a" && -x "$tree/nvvm/bin/cicc" ]] ||
    die "the CUDA wheels are not laid out as expected (nvidia/cu13 with nvcc, cicc and libcudart_static.a): see $part"
  ln -sfn lib "$tree/lib64"
  ln -sfn libcudart.so.13 "$tree/lib/libcudart.so"
  toolkit_works "$tree/bin/nvcc" || die "the CUDA toolkit from the wheels cannot build the sample: see $part"
  rm -rf "$root"
  mv "$tree" "$root"
  rm -rf "$part"
  say "CUDA toolkit ready in .deps/cuda"
  echo "$root/bin/nvcc"
}

install_packages
mkdir -p "$DEPS"
nvcc=''
if [[ $force_wheels == no ]]; then
  # The compiler chosen before stays, so that a build folder never meets a second one; remove .deps to choose anew.
  if [[ -f "$DEPS/env.sh" ]]; then nvcc="$(source "$DEPS/env.sh" && echo "$CUDACXX")"; fi
  nvcc_is_recent "${nvcc:-none}" || nvcc="$(installed_nvcc)" || nvcc=''
fi
[[ -n "$nvcc" ]] || nvcc="$(wheel_toolkit)"

env_file="$(printf '# Written by scripts/setup.sh; source it before calling cmake by hand.\nexport CUDACXX=%q\n' "$nvcc")"
if [[ "$(cat "$DEPS/env.sh" 2> /dev/null)" != "$env_file" ]]; then
  printf '%s\n' "$env_file" > "$DEPS/env.sh"
  say "CUDA compiler: $nvcc"
fi
