"""Turns the runs of bench-cluster.sh into one Markdown table, or tells the last of them in a line.

Usage: cluster.py table|line RESULTS_JSONL.
"""

import json
import sys
from statistics import median

FAULTS = {
    "kill-node": "`kill -9` of one of three nodes, back after 5 s",
    "kill-kafka": "`kill -9` of Kafka, started again at once",
    "stop-kafka": "Kafka stopped for 10 s",
    "kill-redis": "`kill -9` of Redis, started again at once",
    "stop-redis": "Redis stopped for 10 s",
}
# Not of messages.
SCHEDULED_COMMANDS = {"info", "ping", "client", "command", "hello"}


def main():
    verb, path = sys.argv[1:]
    with open(path) as lines:
        results = [json.loads(line) for line in lines]
    if verb == "line":
        report = next(result["report"] for result in reversed(results) if "report" in result)
        print("    " + ", ".join([counts(report), latency(report), state(report)]), flush=True)
        for disorder in (report.get("roaming") or {}).get("disorders", []):
            print(f"    {disorder}", flush=True)
    else:
        table(results)


def table(results):
    reports, notes = {}, {}
    for result in results:
        kept = reports if "report" in result else notes
        kept.setdefault(result["row"], []).append(result)
    print("| what | measured |")
    print("|---|---|")
    for result in reports.get("p2p", []):
        row("cross-node p2p, 2 nodes, 200 B", result, cpu(result))
    for result in reports.get("churn", []):
        row("the same, clients hop every 5 s, 1 % silent recipients, one node stopped for 10 s", result, recovery(result))
    added_latency(reports.get("latency local", []), reports.get("latency cross", []))
    for name, what in FAULTS.items():
        for result, served in zip(reports.get(name, []), notes.get(name, [None] * len(reports.get(name, [])))):
            row(what, result, recovery(result, served and served["note"]["ready_s"]))
    for result in notes.get("claims", []):
        print(f"| session claims, pipelined, without sockets | {result['note']['per_s']:,}/s |")
    for result in notes.get("overhead", []):
        overhead(result["note"])
    commands(notes.get("live quiet", []), notes.get("live busy", []), reports.get("live busy", []))


def row(what, result, more):
    report = result["report"]
    what = f"{what}, {report['rate']['intended']:,.0f}/s for {report['duration_s']:.0f} s"
    print(f"| {what} | {counts(report)}; {latency(report)}; {more}; {state(report)} |")


def counts(report):
    said = (
        f"{report['sent']:,} sent: lost / duplicated / reordered **{report['lost']:,} / {report['duplicated']:,}"
        f" / {report['reordered']:,}**"
    )
    if report.get("accepted") is not None:
        said += f" ({report['accepted']:,} accepted, {report['refused']:,} refused, {report['unconfirmed']:,} unconfirmed)"
    pairs = report.get("pairs")
    return said + (f", {pairs['crossing']} of {pairs['total']} pairs crossing" if pairs else "")


def latency(report):
    took = report["latency_us"]
    return f"p50 {took['p50'] / 1000:,.1f} ms, p99 {took['p99'] / 1000:,.1f} ms"


def state(report):
    """The verdict, and what led to it."""
    reasons = report["void_reasons"] + report["failures"]
    reasons += [f"{count} × {cause}" for cause, count in report["errors"].items()]
    return report["verdict"] + (f" ({'; '.join(reasons)})" if reasons else "")


def cpu(result):
    """Over the whole run, its opening and end included: messages dwarf them."""
    received = max(result["report"]["received"], 1)
    used = {name: spent / received for name, spent in result["cpu_us"].items()}
    return (
        f"CPU a message: {used['nodes']:.1f} µs of the nodes, {used['kafka']:.1f} µs of Kafka, "
        f"{used['redis']:.2f} µs of Redis"
    )


def recovery(result, ready_s=None):
    """Until no message was overdue any more; with `ready_s` also counted from the moment when the server was back."""
    fault = result["report"]["faults"][0]
    if fault["recovery_s"] is None:
        return "**not recovered** by the end"
    said = f"recovered {fault['recovery_s']:.1f} s after the fault"
    if ready_s is not None:
        said += f", {max(fault['recovery_s'] - ready_s, 0):.1f} s after the server was back ({ready_s:.1f} s)"
    return said


def added_latency(local, cross):
    if not local or not cross:
        return
    for quantile in ("p50", "p99"):
        here, there = (
            median(result["report"]["latency_us"][quantile] / 1000 for result in results) for results in (local, cross)
        )
        rate = local[0]["report"]["rate"]["intended"]
        print(
            f"| latency added by a crossing, {quantile}, {rate:,.0f}/s, {len(cross)} rounds "
            f"| **{there - here:.1f} ms** ({there:.1f} ms crossing, {here:.1f} ms local) |"
        )


def overhead(note):
    share = note["cpu_us"] / 1e6 / note["seconds"]
    print(
        f"| CPU of a node with {note['sessions']:,} silent sessions, pinged after {note['ping_interval']}: heartbeats, "
        f"leases, claims renewed, metrics read every 5 s | **{share:.2%}** of one processor over {note['seconds']} s |"
    )


def commands(quiet, busy, reports):
    """Commands while messages flow, less those of a quiet time of the same length."""
    for idle, loaded, run in zip(quiet, busy, reports):
        base, calls = (difference(result["note"]) for result in (idle, loaded))
        messages = run["report"]["rate"]["achieved"] * loaded["note"]["seconds"]
        more = sum(calls.values()) - sum(base.values())
        listed = ", ".join(f"{name} {calls[name]:,} ({base.get(name, 0):,})" for name in sorted(calls) if calls[name])
        print(
            f"| Redis commands a message delivered live, nobody logging in | **{more / messages:.5f}**: over "
            f"{messages:,.0f} messages, and in brackets over a quiet time as long: {listed} |"
        )


def difference(note):
    before, after = note["before"], note["after"]
    found = {name: calls - before.get(name, 0) for name, calls in after.items()}
    return {name: calls for name, calls in found.items() if name not in SCHEDULED_COMMANDS}


main()
