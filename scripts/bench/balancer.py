"""What the balancer decides and what a decision costs, as Markdown rows.

Usage: balancer.py RTC_BALANCER THOUSAND_LOG, where THOUSAND_LOG is what the test `thousand` has printed.

The simulated rows are read from `rtc-balancer simulate`. The cost is measured from outside: `rtc-balancer replay -` is
driven with lines of 1000 heartbeats, and the clock runs from a line's first byte written to its answer read. That
includes reading the line, a quarter of a megabyte of JSON, which a balancer that is fed by Redis does in other hands.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

NODES = 1000
WARM_UP_LINES = 10
LINES = 60
# Beyond the cooldown, so that every line may be answered with a ring.
LINE_INTERVAL_MS = 200_000
DECISION_MS_MAX = 30
RSS_MIB_MAX = 40
# How long replay may take to end once its input has.
END_WAIT_SECONDS = 60


def main():
    binary, thousand_log = sys.argv[1], Path(sys.argv[2]).read_text()
    print("| what | feedback | proportional | wanted |")
    print("|---|---|---|---|")
    simulated = subprocess.run([binary, "simulate"], check=True, capture_output=True, text=True).stdout
    steady, mixed = fleet(simulated, "steady"), fleet(simulated, "mixed")
    row("steady fleet, 5 % noise: ring updates in an hour", steady["ring updates"], "0")
    for name, target in [
        ("time to peak/mean < 1.10, for good", "≤ 8 min"),
        ("peak/mean in the second half", "≤ 1.06"),
        ("ring updates", "≤ 10"),
        ("keys moved in all", "≤ 25 %"),
        ("keys moved by one update", "≤ 10 %"),
        ("node-seconds over 80 %", ""),
    ]:
        row(f"mixed fleet: {name}", mixed[name], target)
    ours, theirs = (float(cell) for cell in mixed["node-seconds over 80 %"])
    row("… of `proportional`'s", [f"{ours / theirs:.3f}", ""], "≤ 0.1")

    answers, rss_mib, peak_mib = drive(binary)
    print()
    print("| 1000 nodes | median | worst | wanted |")
    print("|---|---|---|---|")
    core = re.search(r"rebalance median ([\d.]+)ms worst ([\d.]+)ms", thousand_log)
    if not core:
        raise SystemExit(f"the test of a thousand nodes has not shown its times:\n{thousand_log}")
    print(f"| decision with a new ring, core alone | {core[1]} ms | {core[2]} ms | ≤ {DECISION_MS_MAX} ms |")
    spread = f"{statistics.median(answers):.1f} ms | {max(answers):.1f} ms"
    print(f"| the same, line of `replay` to answer, {len(answers)} rings | {spread} | ≤ {DECISION_MS_MAX} ms |")
    resident = f"{rss_mib:.1f} MiB | {peak_mib:.1f} MiB"
    print(f"| resident memory of that process, at the end and at its peak | {resident} | ≤ {RSS_MIB_MAX} MiB |")


def row(what, cells, target):
    print(f"| {what} | {' | '.join(cells)} | {target} |")


def fleet(text, name):
    """The rows of one fleet by their names: a cell for each policy."""
    block = text.split(f"fleet {name}:")[1].split("\n\n")[0]
    lines = (re.split(r"\s{2,}", line.strip()) for line in block.splitlines()[2:])
    return {cells[0]: cells[1:] for cells in lines}


def line(number):
    """The fleet's heartbeats at one moment. One node of a thousand is away in every other line, so that each line is a
    leave or a join; the loads of the others move as well."""
    names = range(NODES - number % 2)
    beats = [beat(node, number) for node in names]
    return json.dumps({"ts": (number + 1) * LINE_INTERVAL_MS, "heartbeats": beats}).encode() + b"\n"


def beat(node, number):
    use = 0.4 + 0.35 * ((node * 7 + number * 13) % 100) / 100
    return {
        "nodeId": f"node-{node:04}",
        "activeConn": 1000,
        "mps": 500.0,
        "p95LatencyMs": 20.0,
        "kafkaTopicLagLatencyMs": 5.0,
        "cpu": use,
        "mem": use,
        "timestampMs": (number + 1) * LINE_INTERVAL_MS,
    }


def drive(binary):
    """Milliseconds of each answer that holds a ring, after the warm-up; then MiB resident, now and at the peak."""
    process = subprocess.Popen([binary, "replay", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        answers = []
        for number in range(WARM_UP_LINES + LINES):
            text = line(number)
            begun = time.perf_counter()
            process.stdin.write(text)
            process.stdin.flush()
            answer = process.stdout.readline()
            took_ms = (time.perf_counter() - begun) * 1000
            answer = json.loads(answer)
            if "error" in answer:
                raise SystemExit(f"line {number} was answered {answer}")
            if number >= WARM_UP_LINES and answer["ringUpdate"]:
                answers.append(took_ms)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.stdin.close()
        if process.wait(END_WAIT_SECONDS) != 0:
            raise SystemExit(f"replay ended with {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
    if len(answers) < LINES // 2:
        raise SystemExit(f"only {len(answers)} of {LINES} lines were answered with a ring")
    kib = {key: int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) for key in ("VmRSS", "VmHWM")}
    return answers, kib["VmRSS"] / 1024, kib["VmHWM"] / 1024


main()
