"""Reads Autobahn reports and judges them strictly: a case that did not run, or ran NON-STRICT, has failed. Where a case
is in several reports the last one counts.

Usage: verdict.py CASES_EXPECTED INDEX_JSON…  Prints the failed cases, then `N passed, N failed`; exits 1 on any.
       verdict.py --failed CASES_EXPECTED INDEX_JSON…  Prints those that ran and failed, as JSON has a list, without brackets.
"""

import json
import sys

# INFORMATIONAL cases have no right answer in RFC 6455: the suite only records what was done.
PASSING = {"OK", "INFORMATIONAL"}


def main():
    arguments = sys.argv[1:]
    only_failed = arguments[0] == "--failed"
    expected, *index_paths = arguments[only_failed:]
    expected = int(expected)
    cases = {}
    for index_path in index_paths:
        try:
            with open(index_path) as index:
                agents = json.load(index)
        except FileNotFoundError:
            agents = {}
        cases |= {case: result for results in agents.values() for case, result in results.items()}

    failed = {}
    for case, result in cases.items():
        if not {result["behavior"], result["behaviorClose"]} <= PASSING:
            failed[case] = f"{result['behavior']}, closing {result['behaviorClose']}"
    if only_failed:
        print(", ".join(json.dumps(case) for case in failed))
        return
    for case in sorted(failed, key=lambda case: [int(part) for part in case.split(".")]):
        print(f"failed: {case}: {failed[case]}")

    not_run = expected - len(cases)
    if not_run > 0:
        print(f"failed: {not_run} of {expected} cases were not run")
    if not_run < 0:
        print(f"failed: {len(cases)} cases were run, {expected} are known: correct the script's count")
    failures = len(failed) + abs(not_run)
    print(f"{len(cases) - len(failed)} passed, {failures} failed")
    sys.exit(1 if failures else 0)


main()
