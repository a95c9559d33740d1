"""Turns the runs of bench-node.sh into one Markdown table. Usage: node.py RESULTS_JSONL SYSCALLS_JSONL."""

import json
import sys
from statistics import median


def main():
    runs, syscalls = (read_lines(path) for path in sys.argv[1:3])
    reports = {}
    for run in runs:
        reports.setdefault(run["case"], []).append(run["report"])

    print("| what | median | spread |")
    print("|---|---|---|")
    for depth in (1, 16):
        echo, p2p = reports[f"echo at depth {depth}"], reports[f"p2p at depth {depth}"]
        row(f"echo, 200 B, depth {depth}, 100 connections", [achieved(report) for report in echo], ",.0f", "/s")
        row(f"p2p, 200 B, depth {depth}, 100 connections", [achieved(report) for report in p2p], ",.0f", "/s")
        shares = [achieved(one) / achieved(other) for one, other in zip(p2p, echo)]
        row(f"… share of the echo rate, depth {depth}", shares, ".0%")
        shares = [cpu_us(other) / cpu_us(one) for one, other in zip(p2p, echo)]
        row(f"… the same by server CPU a message, depth {depth}", shares, ".0%")
    for counted in syscalls:
        # Echoed messages of the whole run, as the calls are: there is no warm-up.
        messages = reports[counted["case"]][0]["received"]
        what = f"system calls an echoed message, {counted['case'].removeprefix('syscalls ')}, 100 connections"
        row(f"{what} (by {counted['counter']})", [counted["calls"] / messages], ".3f")
    storm = reports["storm"]
    row("accepts with handshake", [report["connects"]["per_second"] for report in storm], ",.0f", "/s")
    per_core = [report["connects"]["per_second"] / report["server"]["cpu_cores"] for report in storm]
    row("… per core of server CPU", per_core, ",.0f", "/s")
    idle = reports["idle"][0]
    grown = idle["server"]["rss_end_bytes"] - idle["server"]["rss_before_bytes"]
    row(f"bytes an idle session, {idle['connections']:,} sessions", [grown / idle["connections"]], ",.0f")


def read_lines(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def achieved(report):
    return report["rate"]["achieved"]


def cpu_us(report):
    return report["server"]["cpu_us_per_message"]


def row(what, values, form, unit=""):
    spread = f"{min(values):{form}} … {max(values):{form}}" if len(values) > 1 else ""
    print(f"| {what} | {median(values):{form}}{unit} | {spread} |")


main()
