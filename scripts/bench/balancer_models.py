"""How far the simulated figures hold: the mixed fleet with one thing changed at a time, as Markdown rows.

Usage: balancer_models.py RTC_BALANCER [flags of `simulate`…]

The worst of seeds 1 to 20 of each figure, `feedback`, with `proportional`'s in brackets; the same on every machine.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

MIXED = 'name = "mixed"\ncapacities = [0.5, 0.5, 1, 1, 1, 1, 1, 1.5, 1.5, 2]\n'
MODELS = [
    {},
    {"noise": "0.1"},
    {"noise": "0.05", "noise_memory_ms": "60000"},
    {"heartbeat_ms": "20000"},
    {"drain_ms": "30000"},
    {"drain_ms": "600000"},
    {"drain_ms": "1200000"},
    {"tail": "2.0"},
    {"tail": "1.5"},
    {"flat": "0.5"},
    {"flat": "1.0"},
    {"offered": "0.75"},
    {"offered": "0.9"},
    {
        "offered": "0.7",
        "noise": "0.05",
        "noise_memory_ms": "60000",
        "tail": "2.0",
        "flat": "0.5",
        "drain_ms": "300000",
    },
]


def main():
    binary, flags = sys.argv[1], sys.argv[2:]
    print("| the mixed fleet, and | < 1.10 for good | peak/mean, second half | updates | keys moved in all | by one |")
    print("|---|---|---|---|---|---|")
    for changes in MODELS:
        # A key that is not named keeps its default, which is the built-in fleet's.
        figures = simulated(binary, flags, MIXED + "".join(f"{key} = {value}\n" for key, value in changes.items()))
        name = ", ".join(f"`{key} = {value}`" for key, value in changes.items()) or "nothing else"
        even, peak, updates, moved, by_one = (
            figures[row]
            for row in (
                "time to peak/mean < 1.10, for good",
                "peak/mean in the second half",
                "ring updates",
                "keys moved in all",
                "keys moved by one update",
            )
        )
        print(
            f"| {'all at once: ' if len(changes) > 2 else ''}{name} | {even[0]} | {peak[0]} ({peak[1]}) "
            f"| {updates[0]} ({updates[1]}) | {moved[0]} ({moved[1]}) | {by_one[0]} |",
            flush=True,
        )


def simulated(binary, flags, fleet):
    """The rows of one fleet by their names: a cell for each policy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fleet.toml")
        path.write_text(fleet)
        command = [binary, "simulate", "--fleet", str(path), *flags]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[2:])
    return {cells[0]: cells[1:] for cells in lines}


main()
