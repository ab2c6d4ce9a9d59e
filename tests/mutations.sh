#!/bin/sh
# The mutation check: does the simulation notice when the code breaks a promise on purpose?
#
# Each file of tests/mutations/ is a patch with one deliberate bug. One after the other is applied to a scratch copy of
# the source, the simulation is built from it and run, and must fail within SEEDS seeds. A bug that it does not notice
# is a hole in the simulation: the check prints which, and ends with status 1. Status 2 says that the check itself could
# not be done, as when a patch does not fit the source any more.
#
#   tests/mutations.sh             all bugs
#   tests/mutations.sh NAME...     these only
#
# The source as it is must pass first, or noticing would mean nothing.
#
# Settings: SEEDS (default 2000), MUTATIONS_TARGET (where to build; default target/mutations), BASELINE=no (to leave out
# the source as it is, when that has been tested already).
set -u
cd "$(dirname "$0")/.." || exit 2
root=$(pwd)
seeds=${SEEDS:-2000}
target=${MUTATIONS_TARGET:-$root/target/mutations}
copy=$(mktemp -d) || exit 2
trap 'rm -rf "$copy"' EXIT
trap 'exit 2' INT TERM

if [ $# -eq 0 ]; then
  for patch in tests/mutations/*.patch; do set -- "$@" "$(basename "$patch" .patch)"; done
fi

# The same place each time, so that what does not change is not built again.
source=$target/source
mkdir -p "$source" || exit 2
fresh() {
  for part in src tests benches examples; do
    rm -rf "${source:?}/$part"
    cp -R "$root/$part" "$source/" || exit 2
  done
  for part in "$root"/*.toml "$root/Cargo.lock" "$root/README.md"; do
    if [ -e "$part" ]; then cp "$part" "$source/" || exit 2; fi
  done
  # cargo looks at times, and a patched file must be newer than what was built from it last.
  find "$source/src" -name '*.rs' -exec touch {} +
}

build() {
  (cd "$source" && CARGO_TARGET_DIR="$target" cargo test --quiet --test sim --no-run) > "$copy/log" 2>&1
}

simulate() {
  (cd "$source" && CARGO_TARGET_DIR="$target" JANEBOT_SIM_SEEDS=$seeds \
    cargo test --quiet --test sim every_promise_holds_whatever_fails) > "$copy/log" 2>&1
}

if [ "${BASELINE:-yes}" != no ]; then
  fresh
  if ! build || ! simulate; then
    echo "the source as it is does not pass $seeds seeds:" >&2
    grep -A 3 'breaks a promise' "$copy/log" >&2 || tail -n 30 "$copy/log" >&2
    exit 2
  fi
fi

printf '%-34s %-10s %s\n' 'deliberate bug' 'noticed' 'first seed, and what it broke'
survived=0
for name; do
  patch=$root/tests/mutations/$name.patch
  fresh
  if ! patch -d "$source" -p1 -s < "$patch" > "$copy/log" 2>&1; then
    echo "the patch $name does not fit the source:" >&2
    cat "$copy/log" >&2
    exit 2
  fi
  if ! build; then
    echo "the source with the bug $name can't be built:" >&2
    tail -n 30 "$copy/log" >&2
    exit 2
  fi
  if simulate; then
    printf '%-34s %-10s %s\n' "$name" 'NO' "not within $seeds seeds"
    survived=$((survived + 1))
  else
    seed=$(sed -n 's/^seed \([0-9]*\) breaks a promise.*/\1/p' "$copy/log" | sort -n | head -n 1)
    what=$(sed -n '/breaks a promise/{n;p;q;}' "$copy/log" | cut -c 1-110)
    [ -n "$seed" ] || what=$(grep -m 1 -A 1 panicked "$copy/log" | tail -n 1 | cut -c 1-110)
    printf '%-34s %-10s %s\n' "$name" 'yes' "${seed:--}: $what"
  fi
done
if [ "$survived" -gt 0 ]; then
  echo "$survived not noticed" >&2
  exit 1
fi
