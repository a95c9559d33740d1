"""Turns rounds of criterion results into Markdown rows.

Usage: micro.py FOLDER ROUNDS RING_BYTES, where FOLDER/round-N is criterion's folder of round N.
"""

import json
import statistics
import sys
from pathlib import Path

# Keys resolved per iteration, by bench group, as in benches/ring.rs.
KEY_SETS = {"look_up": 4096, "look_up_wide": 65_536}
NODE_COUNTS = [3, 10, 100, 1000]
# Frames per buffer by payload size, as in benches/websocket.rs.
FRAMES = {16: 256, 200: 64, 65_536: 1}
# Messages per iteration, as in benches/routing.rs.
MESSAGES = 4096


def main():
    folder, rounds, ring_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    results = [Round(folder / f"round-{number}") for number in range(1, rounds + 1)]

    print("| what | median | worst … best round |")
    print("|---|---|---|")
    for group, keys in KEY_SETS.items():
        ring_1000 = f"{group}/ring/1000"
        row(f"ring look-up, 1000 nodes, {keys:,} keys", results, lambda r: r[ring_1000] / keys, "ns")
        row("… against bare xxh3", results, lambda r: r[ring_1000] / r[f"{group}/xxh3"], "×")
        row("… against 3 nodes", results, lambda r: r[ring_1000] / r[f"{group}/ring/3"], "×")
        for nodes in NODE_COUNTS:
            for peer in ("hashring", "btreemap"):
                faster = lambda r: r[f"{group}/{peer}/{nodes}"] / r[f"{group}/ring/{nodes}"]
                row(f"… faster than {peer}, {nodes} nodes", results, faster, "×", best=max)
    for nodes in (10, 100, 1000):
        row(f"ring build, {nodes} nodes", results, lambda r: r[f"build/{nodes}"] / 1e6, "ms")
    print(f"| ring memory, 1000 nodes | {ring_bytes / 1024:.0f} KiB | |")
    for way in ("reader", "load_full", "rwlock"):
        for company in ("alone", "in_company"):
            row(f"current ring by {way}, {company}", results, lambda r: r[f"reach/{way}/{company}"], "ns")
    for payload_bytes, frames in FRAMES.items():
        for bench in ("decode/text", "decode/binary", "encode/server", "encode/client"):
            per_frame = lambda r: r[f"{bench}/{payload_bytes}"] / frames
            row(f"{bench}, {payload_bytes} B", results, per_frame, "ns a frame")
    for nodes in (3, 10, 1000):
        per_message = lambda r: r[f"routing/crossing/{nodes}"] / MESSAGES
        row(f"routing, 200 B for a client of another node, {nodes} nodes", results, per_message, "ns a message")
    row("routing, 200 B for a client here", results, lambda r: r["routing/here"] / MESSAGES, "ns a message")
    for nodes in (3, 10, 1000):
        row(f"ring update, bytes to ring, {nodes} nodes", results, lambda r: r[f"ring_update/{nodes}"] / 1e6, "ms")
    for posts in (1, 64):
        row(f"mailbox, {posts} posted and drained", results, lambda r: r[f"mailbox/ours/{posts}"] / posts, "ns each")
        row(
            f"… against a channel and an eventfd, {posts}",
            results,
            lambda r: r[f"mailbox/ours/{posts}"] / r[f"mailbox/channel/{posts}"],
            "×",
        )


class Round:
    """Median nanoseconds per iteration, by bench id."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, bench):
        estimates = json.loads((self.folder / bench / "new" / "estimates.json").read_text())
        return estimates["median"]["point_estimate"]


def row(what, results, value_of, unit, best=min):
    values = [value_of(result) for result in results]
    worst = min if best is max else max
    print(f"| {what} | {statistics.median(values):.3g} {unit} | {worst(values):.3g} … {best(values):.3g} |")


main()
