"""Asks a Redis what the cluster's figures need, without a client library.

    redis.py ring HOST:PORT NODE…   announces a ring of these nodes, equally weighted, where nodes look for it at start
    redis.py calls HOST:PORT        prints how often each command has been called, scripts' own calls included, as JSON
"""

import json
import socket
import sys
import time

ANSWER_WAIT_SECONDS = 5


def main():
    verb, address, *nodes = sys.argv[1:]
    if verb == "ring":
        answer = ask(address, "SET", "{rtc}:ring-version", json.dumps(ring(nodes)))
        if answer != "OK":
            sys.exit(f"redis answered SET with {answer}")
    elif verb == "calls":
        print(json.dumps(calls(ask(address, "INFO", "commandstats"))))
    else:
        sys.exit(__doc__)


def ring(nodes):
    """By hand: the hash is not the balancer's, which is worth a warning to whoever compares it."""
    now_ms = time.time_ns() // 1_000_000
    version = {"version": 1, "issuedAt": now_ms, "versionHash": "by-hand"}
    return {"version": version, "nodeWeights": dict.fromkeys(nodes, 100), "reason": "bench", "ts": now_ms}


def calls(info):
    found = {}
    for line in info.splitlines():
        if line.startswith("cmdstat_"):
            name, figures = line.removeprefix("cmdstat_").split(":", 1)
            found[name] = int(dict(figure.split("=", 1) for figure in figures.split(","))["calls"])
    return found


def ask(address, *words):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), ANSWER_WAIT_SECONDS) as connection:
        request = b"*%d\r\n" % len(words)
        for word in map(str.encode, words):
            request += b"$%d\r\n%s\r\n" % (len(word), word)
        connection.sendall(request)
        answers = connection.makefile("rb")
        first = answers.readline().decode().rstrip()
        if not first.startswith("$"):
            return first.removeprefix("+")
        return answers.read(int(first[1:])).decode()


main()
