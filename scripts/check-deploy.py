#!/usr/bin/env python3
"""Whether what operators are given speaks of what exists: every metric named in deploy/, docs/operations.md and the
balancer's configuration is one that a program serves, docs/admin.md tells of each of a node's, the dashboard is JSON with
a panel for each of its places, Prometheus reads its rules, systemd its units. What a missing tool would check is SKIPPED
by name. The last line is `N passed, N failed`."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
METRIC = re.compile(r"\brtc_[a-z0-9_]+")
# Names of programs in their default filter of logs look like metrics.
NOT_METRICS = {"rtc_server", "rtc_balancer", "rtc_loadtest"}


def program(path):
    """A source file without its tests."""
    return path.read_text().split("#[cfg(test)]")[0]


def sources(package):
    return [path for path in sorted((ROOT / package / "src").rglob("*.rs")) if path.name != "tests.rs"]


def node_metrics():
    """Those of the nodes stand in the sources as they are served: behind their kind, or as the name of a line."""
    served = re.compile(r'(?:\b(?:Counter|Gauge)\s+|\.add\(\s*)"(rtc_[a-z0-9_]+)"')
    histogram = re.compile(r'\.add_histogram\(\s*"(rtc_[a-z0-9_]+)"')
    texts = [program(path) for path in sources("server")]
    series = {name + part for text in texts for name in histogram.findall(text) for part in ("_bucket", "_sum", "_count")}
    return series | {name for text in texts for name in served.findall(text)}


def balancer_metrics():
    """Those of the balancer are registered by name; the library adds `_total` to those that only rise."""
    text = program(ROOT / "balancer/src/metrics.rs")
    registered = re.findall(r'registry\.register\(\s*"(rtc_[a-z0-9_]+)",\s*"[^"]*",\s*(\w+)', text)
    counters = set(re.findall(r"let (\w+) = (?:Family::<\w+, Counter\b|counted\()", text))
    names = {name + "_total" if variable in counters else name for name, variable in registered}
    names |= set(re.findall(r'gauge\(&mut registry, "(rtc_[a-z0-9_]+)"', text))
    return names | {name + "_total" for name in re.findall(r'\(\s*"(rtc_[a-z0-9_]+)",\s*"[^"]*",\s*[^)]', text)
                    if name not in dict(registered) and name not in names}


def every_metric_is_served():
    served = node_metrics() | balancer_metrics()
    # A source that is written differently must not turn this into a test of nothing.
    assert len(served) > 80, f"only {len(served)} metrics found in the sources: {sorted(served)}"
    files = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()] + [
        ROOT / "docs/operations.md", ROOT / "config/balancer.example.toml", ROOT / "balancer/src/config.rs"]
    used = {(path.relative_to(ROOT), name) for path in files for name in METRIC.findall(path.read_text())}
    assert len(used) > 80, f"only {len(used)} uses found"
    unknown = sorted((str(path), name) for path, name in used if name not in served | NOT_METRICS)
    assert not unknown, "nothing serves " + ", ".join(f"{name} ({path})" for path, name in unknown)


def every_metric_of_a_node_is_documented():
    documented = set(METRIC.findall((ROOT / "docs/admin.md").read_text()))
    missing = sorted(node_metrics() - documented)
    assert not missing, "docs/admin.md does not tell of " + ", ".join(missing)


def the_dashboard_is_whole():
    board = json.loads((ROOT / "deploy/grafana/rtc.json").read_text())
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids)), "two panels have one id"
    places = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & places, f"{panel['title']} has no place of its own"
        places |= cells
        assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"]), panel["title"]
    assert [variable["type"] for variable in board["templating"]["list"]][:1] == ["datasource"]


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def prometheus_reads_its_rules():
    run("promtool", "check", "rules", str(ROOT / "deploy/prometheus/alerts.yaml"))
    run("promtool", "check", "config", str(ROOT / "deploy/prometheus/prometheus.yaml"))


def prometheus_reads_the_dashboard():
    """Each expression of the dashboard, as a rule: PromQL that cannot be read would be an empty panel."""
    board = json.loads((ROOT / "deploy/grafana/rtc.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    rules = [{"record": f"panel_{number}", "expr": expression.replace("$__rate_interval", "1m")}
             for number, expression in enumerate(expressions)]
    with tempfile.TemporaryDirectory() as folder:
        # JSON is YAML.
        path = pathlib.Path(folder) / "dashboard.yaml"
        path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        run("promtool", "check", "rules", str(path))


def systemd_reads_its_units():
    """With a program that is there in the place of ours: verify looks for it."""
    with tempfile.TemporaryDirectory() as folder:
        for unit in sorted((ROOT / "deploy/systemd").glob("*.service")):
            text, count = re.subn(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit.read_text())
            assert count == 1, f"{unit.name} has {count} programs"
            copy = pathlib.Path(folder) / unit.name
            copy.write_text(text)
            told = run("systemd-analyze", "verify", "--man=no", str(copy))
            # A key that systemd does not know is told and not an error to it.
            told = [line for line in told.splitlines() if unit.name in line]
            assert not told, "\n".join(told)


TESTS = [(every_metric_is_served, None), (every_metric_of_a_node_is_documented, None), (the_dashboard_is_whole, None),
         (prometheus_reads_its_rules, "promtool"), (prometheus_reads_the_dashboard, "promtool"), (systemd_reads_its_units, "systemd-analyze")]


def main():
    passed = failed = 0
    for test, tool in TESTS:
        name = test.__name__.replace("_", " ")
        if tool and not shutil.which(tool):
            print(f"SKIPPED: {name}: no {tool} here")
            continue
        try:
            test()
        except (AssertionError, KeyError, ValueError, OSError, subprocess.SubprocessError) as error:
            failed += 1
            print(f"FAILED: {name}: {error}")
        else:
            passed += 1
            print(f"ok: {name}")
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
