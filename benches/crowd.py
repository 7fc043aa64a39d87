#!/usr/bin/env python3
"""64 clients that come and go, with streams cut at random, against the real server; in the end nothing may be busy.

    benches/crowd.py [SECONDS [CLIENTS]]

Starts the binary that INSTRUCTD_BIN names (default target/debug/instructd) with the tiny fixture model, or the model
that INSTRUCTD_TEST_MODEL names. Fails unless it ends with 0 running, 0 waiting, 0 cached tokens in use, and with
memory within 10 % (and 16 MiB) of what it was after the first fifth of the time.
"""

import http.client
import json
import pathlib
import random
import socket
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/clients"))
import server as instructd  # noqa: E402

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
CLIENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 64
COUNTS = {"answered": 0, "streamed": 0, "cut": 0, "refused": 0, "unexpected": 0}
LOCK = threading.Lock()


def count(what):
    with LOCK:
        COUNTS[what] += 1


def client(url, seed, end):
    draw = random.Random(seed)
    host = url[7:]
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(host, timeout=120)
        chat = draw.random() < 0.5
        body = {"max_tokens": draw.randrange(1, 24), "n": draw.choice([1, 1, 1, 2, 3]), "seed": draw.randrange(1000),
                "stream": draw.random() < 0.7, "ignore_eos": draw.random() < 0.5}
        words = " ".join(f"t{draw.randrange(3, 96)}" for _ in range(draw.randrange(1, 24)))
        if chat:
            body["messages"] = [{"role": "user", "content": words}]
        else:
            body["prompt"] = words
        path = "/v1/chat/completions" if chat else "/v1/completions"
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            fate = draw.random()
            if fate < 0.15:
                count("cut")  # before the answer
                connection.sock.close()
                continue
            response = connection.getresponse()
            if response.status == 429:
                count("refused")
                response.read()
                time.sleep(draw.random() * 0.5)
            elif response.status != 200:
                count("unexpected")
                print(response.status, response.read()[:300], file=sys.stderr)
            elif body["stream"] and fate < 0.6:
                response.read(draw.randrange(1, 600))
                connection.sock and connection.sock.shutdown(socket.SHUT_RDWR)
                count("cut")
            elif body["stream"]:
                assert response.read().endswith(b"data: [DONE]\n\n")
                count("streamed")
            else:
                json.loads(response.read())
                count("answered")
        except (ConnectionError, http.client.HTTPException, OSError) as error:
            count("unexpected")
            print(repr(error), file=sys.stderr)
        finally:
            connection.close()
        if draw.random() < 0.1:
            time.sleep(draw.random())


def main():
    # Completions are kept out of the database: its cache would grow to its bound and hide what leaks.
    with instructd.running(SERVER__STORE_COMPLETIONS="false") as server:
        began = time.monotonic()
        end = began + SECONDS
        threads = [threading.Thread(target=client, args=(server.url, seed, end)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        memory = []
        while time.monotonic() < end:
            time.sleep(SECONDS / 10)
            memory.append(server.memory_kib() // 1024)
        for thread in threads:
            thread.join()
        names = ["instructd_requests_running", "instructd_requests_waiting", "instructd_kv_tokens_used"]
        for _ in range(300):
            busy = {name: int(server.metric(name)) for name in names}
            if not any(busy.values()):
                break
            time.sleep(0.1)
        print(json.dumps({**COUNTS, **busy, "seconds": SECONDS, "clients": CLIENTS, "memory_mib": memory}))
        warm, last = max(memory[:3]), memory[-1]
        assert not any(busy.values()), busy
        assert COUNTS["unexpected"] == 0 and COUNTS["answered"] + COUNTS["streamed"] > 0
        assert last <= max(warm * 1.1, warm + 16), f"memory grew: {memory}"
        assert "panicked" not in server.log()


if __name__ == "__main__":
    main()
