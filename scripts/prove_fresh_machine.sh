#!/usr/bin/env bash
# Proves that this checkout works on a fresh Debian 12 machine without CUDA: makes such a root with debootstrap, copies the
# checkout into it, checks that no CUDA is to be found there, runs scripts/setup.sh (which must fetch the toolkit from
# PyPI's wheels), builds a sample with it through CMake, and then runs what is asked for. Needs root; not part of CI.
#   scripts/prove_fresh_machine.sh [--root DIR] [--limit SECONDS] [COMMAND...]
#     --root DIR       use the root in DIR, made there if it is not there yet, and keep it (default: a temporary one)
#     --limit SECONDS  stop everything after this long (default: 5400)
#     COMMAND          what to run in the checkout at last (default: make demo; `true` for the toolkit alone)
# Packages come from where this machine gets its own. All mounts live in a mount namespace of the run and end with it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

root='' limit=5400
while [[ "${1:-}" == --* ]]; do
  case "$1" in
    --root) root="${2:?--root needs a folder}" ;;
    --limit) limit="${2:?--limit needs seconds}" ;;
    *) say "unknown option $1"; exit 2 ;;
  esac
  shift 2
done
command=("$@")
[[ ${#command[@]} -gt 0 ]] || command=(make demo)

[[ $EUID -eq 0 ]] || die "making a root needs root"
command -v debootstrap > /dev/null || die "debootstrap is missing: apt-get install debootstrap"

# Lines "URI SUITE" of the Debian 12 archives that this machine uses.
mapfile -t archives < <(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)' \
  'Identifier: Packages' | sed -nE 's/^Debian bookworm[a-z-]* (.*) main$/\1/p' | sort -u)
mirror=''
for archive in "${archives[@]}"; do [[ "$archive" != *' bookworm' ]] || mirror="${archive% *}"; done
[[ -n "$mirror" ]] || die "this machine's apt knows no Debian 12 archive (or apt-get update never ran)"

inside='' temporary=''
leave() {
  if [[ -n "$inside" ]]; then kill "$inside" 2> /dev/null && wait "$inside" || true; fi
  if [[ -n "$temporary" ]]; then rm -rf --one-file-system "$temporary" "$temporary.log"; fi
}
trap leave EXIT
trap 'exit 130' INT TERM HUP

if [[ -z "$root" ]]; then
  temporary="$(mktemp -d "${TMPDIR:-/tmp}/nybble-fresh.XXXXXX")"
  root="$temporary"
fi
mkdir -p "$root"
root="$(cd "$root" && pwd)"
[[ "$root" != / ]] || die "the root of this machine is not fresh"

if [[ ! -e "$root/made" ]]; then
  say "making a Debian 12 root (minbase) in $root"
  # /dev comes with the run; device nodes are made only where that is allowed.
  debootstrap --variant=minbase bookworm "$root" "$mirror" > "$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; die "debootstrap failed"; }
  rm -f "$root.log"
  rm -f "$root"/etc/apt/sources.list
  printf 'deb %s main\n' "${archives[@]}" > "$root/etc/apt/sources.list"
  apt-config dump | grep '^Acquire::' > "$root/etc/apt/apt.conf.d/90machine" || true
  touch "$root/made"
fi
cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2> /dev/null || true
passed=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8)
if [[ -f /etc/ssl/certs/ca-certificates.crt ]]; then  # this machine may trust an authority of its own
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/machine-ca.crt"
  passed+=(PIP_CERT=/etc/machine-ca.crt)
fi
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_DEFAULT_TIMEOUT http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY \
  NO_PROXY; do
  [[ -z "${!name:-}" ]] || passed+=("$name=${!name}")
done

say "copying the checkout"
mkdir -p "$root/nybble"
find "$root/nybble" -mindepth 1 -maxdepth 1 ! -name build ! -name .deps -exec rm -rf {} +
(cd "$ROOT" && git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do [[ ! -e "$file" ]] || printf '%s\0' "$file"; done |
  tar -c --null -T -) | tar -x -C "$root/nybble"

cat > "$root/prove" <<'INSIDE'
set -euo pipefail
cd /nybble
# -xdev keeps out /proc; .deps is where an earlier run in a kept root put the wheels.
cuda_files() { find / -xdev \( -path /nybble/.deps -o -path /nybble/build \) -prune -o \
  \( -name nvcc -o -name ptxas -o -name 'libcudart*' -o -name cuda_runtime.h -o -name 'libcuda.so*' \) -print; }
[[ -z "$(cuda_files)" ]] || { echo "CUDA is here already:"; cuda_files; exit 1; }
echo "== setup"
time bash scripts/setup.sh
echo "== setup again must do and say nothing"
said="$(bash scripts/setup.sh 2>&1)"
[[ -z "$said" ]] || { echo "it said: $said"; exit 1; }
[[ -z "$(cuda_files)" ]] || { echo "CUDA came from elsewhere:"; cuda_files; exit 1; }
source .deps/env.sh
"$CUDACXX" --version | tail -n 2
du -sh .deps/cuda
echo "== sample through CMake"
cmake -G Ninja -S scripts/toolkit_sample -B /tmp/sample > /tmp/sample.log 2>&1 &&
  cmake --build /tmp/sample >> /tmp/sample.log 2>&1 || { cat /tmp/sample.log; exit 1; }
/tmp/sample/sample
if ldd /tmp/sample/sample | grep -E 'cuda|not found'; then echo "the sample needs CUDA at run time"; exit 1; fi
echo "== $*"
time "$@"
INSIDE

say "entering the root"
status=0
timeout --kill-after=10 "$limit" unshare --mount --pid --fork --kill-child bash -c '
  set -e
  root="$1"; shift
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  ln -s /proc/self/fd "$root/dev/fd"
  mkdir -m 1777 "$root/dev/shm"
  for node in null zero full random urandom; do touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
  exec chroot "$root" "$@"
' enter "$root" env -i "${passed[@]}" bash /prove "${command[@]}" < /dev/null &
inside=$!
wait "$inside" || status=$?
inside=''
[[ $status -eq 0 ]] || die "failed with exit code $status (124: over the limit of $limit s)"
say "proven: setup with CUDA from the wheels, the sample, and: ${command[*]}"
