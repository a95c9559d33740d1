"""Turns the runs of bench-echo.sh into Markdown tables. Usage: echo.py RESULTS_JSONL."""

import json
import sys
from statistics import median

CASES = ["depth 1, 500 connections", "depth 16, 100 connections"]


def main():
    with open(sys.argv[1]) as results:
        runs = [json.loads(line) for line in results]
    for case in CASES:
        rounds = by_contender(runs, case)
        if rounds:
            print_echo(case, rounds)
    idle = by_contender(runs, "idle")
    if idle:
        print_idle(idle)


def by_contender(runs, case):
    """Reports by contender and round; ours first."""
    found = {}
    for run in sorted(runs, key=lambda run: (run["contender"] != "ours", run["contender"])):
        if run["case"] == case:
            found.setdefault(run["contender"], {})[run["round"]] = run["report"]
    return found


def print_echo(case, rounds):
    """A server with time to spare waited for the generator: its rate is then only a lower bound, its CPU still counts."""
    print(f"\nEcho, 16 B, {case}, one core:\n")
    print("| server | messages/s | cores in use: server + generator | server CPU, µs a message | rate: ours / it | CPU: it / ours |")
    print("|---|---|---|---|---|---|")
    for contender, reports in rounds.items():
        rate = median(report["rate"]["achieved"] for report in reports.values())
        cores = median(report["server"]["cpu_cores"] for report in reports.values())
        cpu = median(report["server"]["cpu_us_per_message"] for report in reports.values())
        generator = median(report["generator"]["cpu_share"] for report in reports.values())
        cells = [contender, f"{rate:,.0f}", f"{cores:.2f} + {generator:.2f}", f"{cpu:.2f}"]
        if contender == "ours":
            cells += ["", ""]
        else:
            ours = rounds["ours"]
            pairs = [(ours[number], report) for number, report in reports.items()]
            cells.append(spread([one["rate"]["achieved"] / it["rate"]["achieved"] for one, it in pairs]))
            cells.append(
                spread([it["server"]["cpu_us_per_message"] / one["server"]["cpu_us_per_message"] for one, it in pairs])
            )
        print("| " + " | ".join(cells) + " |")


def spread(ratios):
    return f"{median(ratios):.2f}× ({min(ratios):.2f} … {max(ratios):.2f})"


def print_idle(idle):
    connections = next(iter(idle["ours"].values()))["connections"]
    print(f"\nIdle, {connections:,} bare connections:\n")
    print("| server | resident bytes a connection |")
    print("|---|---|")
    for contender, reports in idle.items():
        for report in reports.values():
            server = report["server"]
            grown = server["rss_end_bytes"] - server["rss_before_bytes"]
            print(f"| {contender} | {grown / connections:,.0f} |")


main()
