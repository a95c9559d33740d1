#!/usr/bin/env bash
# Everything that must hold before a change is kept; the last line is `N passed, N failed`.
#
# Needs rustup (or cargo) and a C compiler, for the tests with a real Kafka also Java 17 and Maven; fetches the rest
# itself. A step that cannot run here is SKIPPED by name.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/processes.sh
# shellcheck source=/dev/null
[[ -f $HOME/.cargo/env ]] && source "$HOME/.cargo/env"

TARGET_DIR=${CARGO_TARGET_DIR:-target}
# Exit code of rtc-loadtest when the generator itself fell short: the run says nothing about the server.
LOADTEST_VOID=3
# A machine that stands still for a tenth of a second voids a run of ten.
LOAD_TEST_ATTEMPTS=10
# Exit code of services.sh when this machine lacks what a server needs, which it then named.
SERVICES_UNAVAILABLE=3

passed=0
failed=0
skipped=()
# Whether the step under way has said itself what passed and failed.
counted=no
# Whether the servers are ours to end.
services_ours=no
trap 'status=$?; services_down; end_all "$status"' EXIT

# step NAME COMMAND…  Runs the command as one step; it counts as one test unless it counts its own.
# `set -e` does not reach into a command called in a condition: each ends at its first failure by itself.
step() {
    local name=$1 started=$SECONDS failed_before=$failed
    shift
    counted=no
    printf '\n== %s\n' "$name"
    if "$@"; then
        [[ $counted == yes ]] || passed=$((passed + 1))
        echo "== $name: done in $((SECONDS - started)) s"
    else
        # A command that failed without a failed test did not get as far as testing.
        ((failed > failed_before)) || failed=$((failed + 1))
        echo "== $name: FAILED after $((SECONDS - started)) s"
    fi
}

skip() {
    counted=yes
    skipped+=("$1")
    printf '\nSKIPPED: %s\n' "$1"
}

# count FILE  Adds up what the test results in a log say: cargo's lines, or one `N passed, N failed`.
count() {
    local sums
    counted=yes
    sums=$(awk '{ for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed[;,]/) p += $i; if ($(i + 1) ~ /^failed[;,]?$/) f += $i } }
        END { print p + 0, f + 0 }' < <(grep -E '^test result: |^[0-9]+ passed, [0-9]+ failed$' "$1"))
    passed=$((passed + ${sums% *}))
    failed=$((failed + ${sums#* }))
}

# has_component NAME COMPONENT  Whether `cargo NAME` runs here, after asking rustup for it.
has_component() {
    cargo "$1" --version >/dev/null 2>&1 || { rustup component add "$2" && cargo "$1" --version; } >/dev/null 2>&1
}

format() {
    cargo fmt --all --check && cargo fmt --check --manifest-path benches/peers/Cargo.toml
}

lint() {
    cargo clippy --locked --workspace --all-targets -- -D warnings
}

# Real Redis and Kafka for the tests that need them, which find them by RTC_REDIS and RTC_KAFKA.
# What cannot be had is skipped here, and in CI failed: there a test left out is a test that does not exist.
services() {
    local status=0 reasons reason line
    # What was up before stays up.
    scripts/services.sh status >/dev/null || services_ours=yes
    scripts/services.sh up >"$SCRATCH/services.out" 2>"$SCRATCH/services.err" || status=$?
    cat "$SCRATCH/services.out"
    grep -v '^SKIPPED: ' "$SCRATCH/services.err" || true
    ((status == 0 || status == SERVICES_UNAVAILABLE)) || return 1
    while read -r line; do
        export "${line?}"
    done <"$SCRATCH/services.out"
    mapfile -t reasons < <(sed -n 's/^SKIPPED: //p' "$SCRATCH/services.err")
    for reason in "${reasons[@]}"; do
        if [[ ${CI:-} == true ]]; then
            echo "failed in CI: $reason"
        else
            skip "$reason"
        fi
    done
    [[ ${CI:-} != true ]] || ((status == 0))
}

# The program alone: the test that needs one starts it itself and finds it by RTC_PROMETHEUS.
find_prometheus() {
    local status=0
    scripts/services.sh prometheus >"$SCRATCH/prometheus.out" 2>"$SCRATCH/prometheus.err" || status=$?
    if ((status == SERVICES_UNAVAILABLE)) && [[ ${CI:-} != true ]]; then
        skip "$(sed -n 's/^SKIPPED: //p' "$SCRATCH/prometheus.err")"
        return
    fi
    ((status == 0)) || { cat "$SCRATCH/prometheus.err" && return 1; }
    cat "$SCRATCH/prometheus.out"
    export "$(<"$SCRATCH/prometheus.out")"
}

services_down() {
    [[ $services_ours == no ]] || scripts/services.sh down || true
}

unit_tests() {
    local status=0
    cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$SCRATCH/tests.log" || status=1
    count "$SCRATCH/tests.log"
    return $status
}

build_release() {
    cargo build --locked --release --package rtc-server --package rtc-loadtest
}

# Ten seconds of pairs of clients; the ledger is the only judge, so a slow machine passes and a lost message does not.
load_test() {
    local attempt status
    for ((attempt = 1; attempt <= LOAD_TEST_ATTEMPTS; attempt++)); do
        start rtc-server "$TARGET_DIR/release/rtc-server" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 || return 1
        status=0
        "$TARGET_DIR/release/rtc-loadtest" p2p --url "ws://$(ready_field listen)" --connections 100 --rate 500 \
            --duration 10s --warm-up 1s --drain 60s --connect-timeout 60s --sender-acks --receiver-acks || status=$?
        kill -0 "$READY_PID" || { echo "the server did not survive" && cat "$SCRATCH/rtc-server.err" && return 1; }
        stop "$READY_PID"
        ((status == LOADTEST_VOID)) || return $status
        echo "void: the generator fell short (attempt $attempt of $LOAD_TEST_ATTEMPTS)"
    done
    return 1
}

compile_benches() {
    cargo bench --locked --package rtc-benches --no-run && cargo check --locked --manifest-path benches/peers/Cargo.toml
}

autobahn() {
    local status=0
    scripts/autobahn.sh 2>&1 | tee "$SCRATCH/autobahn.log" || status=1
    if grep -q '^SKIPPED: ' "$SCRATCH/autobahn.log"; then
        skip "$(sed -n 's/^SKIPPED: //p' "$SCRATCH/autobahn.log")"
    else
        count "$SCRATCH/autobahn.log"
    fi
    return $status
}

# Names and syntax of what operators are given: dashboard, alerts, units.
check_deploy() {
    local status=0 reason
    python3 scripts/check-deploy.py | tee "$SCRATCH/deploy.log" || status=1
    while read -r reason; do
        skip "$reason"
    done < <(sed -n 's/^SKIPPED: //p' "$SCRATCH/deploy.log")
    count "$SCRATCH/deploy.log"
    return $status
}

# A machine with rustup and no toolchain yet.
cargo --version >/dev/null 2>&1 || rustup toolchain install stable

if has_component fmt rustfmt; then step "cargo fmt" format; else skip "cargo fmt: no rustfmt component"; fi
if has_component clippy clippy; then step "cargo clippy" lint; else skip "cargo clippy: no clippy component"; fi
if command -v python3 >/dev/null; then step "deploy" check_deploy; else skip "deploy: no python3"; fi
step "redis and kafka" services
step "prometheus" find_prometheus
step "cargo test" unit_tests
step "release build" build_release
step "p2p load test, 500 msg/s" load_test
step "benches compile" compile_benches
step "autobahn" autobahn

printf '\n'
for reason in "${skipped[@]}"; do
    echo "SKIPPED: $reason"
done
echo "total time $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "$passed passed, $failed failed"
((failed == 0))
