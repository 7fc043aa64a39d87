#!/usr/bin/env python3
"""How long pages, the queue, exports and retention take when the database is large, and how much memory they need.

    python3 scripts/volume.py fill DIRECTORY [--database sqlite|postgres] [--completions 10000000] [--judgments 1000000]
    python3 scripts/volume.py measure DIRECTORY RESULT.json [--rounds 20] [--no-exports]
    python3 scripts/volume.py expire DIRECTORY RESULT.json [--seconds 60]
    (INSTRUCTD_BIN: default target/release/instructd)

`fill` starts the binary on an empty database, measures each request several times, and fills the database with rows of
the sizes that use makes (one prompt for ten completions, three completions in a set, two judgments of a set).
`measure` measures the same requests on the full database and the peak memory of exports; it may be repeated with
another binary. `expire` lets retention run and counts what it removes: what it has removed is gone.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error

from local_postgres import Postgres
from scale import BINARY, KEY, Server, ask, judge

PEOPLE = 50
OPEN_SETS = 5000
# Rows of one transaction.
CHUNK = 500_000
# Microseconds over which the rows of each table are spread.
PERIOD = 30_000_000_000_000


def statements(database, prompts, completions, sets, judgments, version, now):
    """(table, number of rows, SQL for the rows `{first}` to `{last}`): `n` numbers the rows of a table from 0. Ids are 26
    characters and ascend, as those of the program; the rows of each table are spread over 347 days."""
    lite = database == "sqlite"

    def id(kind, number):
        return f"'01{kind}' || printf('%023d', {number})" if lite else f"'01{kind}' || lpad(({number})::text, 23, '0')"

    def at(count):
        return f"{now} - {PERIOD} + n * {PERIOD // count}"

    if lite:
        rows = "(WITH RECURSIVE c(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM c WHERE n < {last}) SELECT n FROM c)"
    else:
        rows = "(SELECT generate_series({first}::bigint, {last}) AS n) AS c"
    blob = "zeroblob(64)" if lite else "decode(repeat('00', 64), 'hex')"
    true = "1" if lite else "TRUE"
    text = "'answer ' || n || '. ' || " + ("hex(randomblob(32))" if lite else "repeat(md5(n::text), 2)")
    message = """'[{{"role": "user", "content": "Question ' || n || ' about something that people ask"}}]'"""
    sampling = """'{{"temperature": 1.0, "top_p": 1.0, "max_tokens": 16}}'"""
    json_cast = "" if lite else "::jsonb"
    yield "labelers", PEOPLE, f"""INSERT INTO labelers (id, name, role, active, created)
        SELECT {id('L', 'n')}, 'person ' || n, 'labeler', {true}, {now} FROM {rows}"""
    yield "prompts", prompts, f"""INSERT INTO prompts (id, messages, source, content_hash, split, tags, created)
        SELECT {id('P', 'n')}, ({message}){json_cast}, 'chat', 'volume-' || n,
               CASE WHEN n % 10 = 0 THEN 'heldout' ELSE 'train' END, '[]', {at(prompts)} FROM {rows}"""
    yield "completions", completions, f"""INSERT INTO completions (id, prompt_id, model_version_id, origin, text, token_ids,
            logprobs, sampling, seed, finish_reason, created, served)
        SELECT {id('C', 'n')}, {id('P', f'n % {prompts}')}, '{version}', 'model', {text}, {blob}, {blob},
               ({sampling}){json_cast}, n, 'stop', {at(completions)}, 'chat' FROM {rows}"""
    yield "sets", sets, f"""INSERT INTO comparison_sets (id, prompt_id, kind, target_overlap, selection_policy, status,
            created)
        SELECT {id('S', 'n')}, {id('P', 'n')}, 'normal', 2, 'uniform',
               CASE WHEN n < {sets - OPEN_SETS} THEN 'done' ELSE 'open' END, {at(sets)} FROM {rows}"""
    for position in range(3):
        yield "items of sets", sets, f"""INSERT INTO set_items (set_id, completion_id, position)
            SELECT {id('S', 'n')}, {id('C', f'n + {position * prompts}')}, {position} FROM {rows}"""
    # Two people for each set, neighbours in the list of people; the last sets are open and have no judgment yet.
    person = id("L", f"(n / 2 + n % 2) % {PEOPLE}")
    judged = min(judgments, 2 * (sets - OPEN_SETS))
    yield "assignments", judged, f"""INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at,
            order_seed, leased, renewed)
        SELECT {id('A', 'n')}, {id('S', 'n / 2')}, {person}, 'submitted', 'x', 0, n, {at(judged)}, {at(judged)} FROM {rows}"""
    yield "judgments", judged, f"""INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, outcome, active_ms,
            wall_ms, idempotency_key, created)
        SELECT {id('J', 'n')}, {id('A', 'n')}, {id('S', 'n / 2')}, {person}, 1, 'ranked', 20000, 25000, 'volume-' || n,
               {at(judged)} FROM {rows}"""
    for position in range(3):
        yield "items of judgments", judged, f"""INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position)
            SELECT {id('J', 'n')}, {id('C', f'n / 2 + {position * prompts}')}, (n + {position}) % 3, {position} FROM {rows}"""
    # Feedback and demonstrations are on the newest completions, which are in no set.
    events, shown = max(completions // 50, 1), max(prompts // 10, 1)
    yield "feedback", events, f"""INSERT INTO feedback_events (id, completion_id, prompt_id, kind, value, actor_hash,
            idempotency_key, created)
        SELECT {id('F', 'n')}, {id('C', f'{completions} - 1 - n * 10')},
               {id('P', f'({completions} - 1 - n * 10) % {prompts}')}, 'thumb', CASE n % 3 WHEN 0 THEN '"down"' ELSE '"up"'
               END{json_cast}, 'actor ' || n % 1000, 'volume-' || n, {at(events)} FROM {rows}"""
    yield "demonstrations", shown, f"""INSERT INTO demonstrations (prompt_id, completion_id, labeler_id, created)
        SELECT {id('P', f'({completions} - 1 - n * 10) % {prompts}')}, {id('C', f'{completions} - 1 - n * 10')},
               {id('L', f'n % {PEOPLE}')}, {at(shown)} FROM {rows}"""


def fill(database, postgres, path, numbers, version):
    now = int(time.time() * 1e6)
    connection = None
    if postgres is None:
        connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("foreign_keys = OFF", "synchronous = OFF", "cache_size = -1000000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
    for what, count, sql in statements(database, *numbers, version, now):
        begun = time.monotonic()
        for first in range(0, count, CHUNK):
            part = sql.format(first=first, last=min(first + CHUNK, count) - 1)
            if postgres is None:
                connection.execute("BEGIN")
                connection.execute(part)
                connection.execute("COMMIT")
            else:
                # References hold by construction; checking each would take most of the time.
                postgres.rows(f"SET session_replication_role = replica; SET synchronous_commit = off; {part}")
        print(f"{what}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if postgres is None:
        # Statistics for the planner are the program's own task.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    else:
        # As the autovacuum does, which is behind so much at once.
        postgres.rows("VACUUM ANALYZE")


REQUESTS = [
    ("queue: next set and judgment", None),
    ("sets, first page", "/admin/sets"),
    ("sets, done", "/admin/sets?status=done"),
    ("sets that contain a word", "/admin/sets?q=Question%2077"),
    ("sets that contain a rare word", "/admin/sets?q=nowhere"),
    ("sets that people rank differently", "/admin/sets?disputed=true"),
    ("overview", "/admin/api/overview"),
    ("throughput", "/admin/api/throughput"),
    ("judgments, first page", "/admin/api/judgments"),
    ("judgments that contain a rare word", "/admin/api/judgments?q=nowhere"),
    ("quality figures", "/admin/api/quality"),
    ("people", "/admin/labelers"),
    ("models", "/admin/models"),
    ("usage of versions", "/admin/usage"),
    ("prompts, first page", "/v1/prompts"),
    ("retention", "/admin/retention"),
    ("audit", "/admin/audit"),
    ("a completion, stored", "complete"),
]


def latencies(server, key, rounds):
    """Milliseconds of each request: median, most, and the first, which finds nothing in memory."""
    found = {}
    for name, path in REQUESTS:
        times = []
        for i in range(rounds):
            begun = time.monotonic()
            try:
                if path is None:
                    judge(server, key)
                elif path == "complete":
                    ask(server.url, "POST", "/v1/completions", {"prompt": f"t1 t2 t{i}", "max_tokens": 8})
                else:
                    ask(server.url, path=path)
            except urllib.error.HTTPError as error:
                found[name] = {"status": error.code, "message": error.read().decode()[:200]}
                break
            except TimeoutError:
                found[name] = {"message": "no answer within 60 s"}
                break
            times.append((time.monotonic() - begun) * 1e3)
            if sum(times) > 20_000:
                break
        if times and name not in found:
            ordered = sorted(times)
            found[name] = {"first": round(times[0], 1), "p50": round(ordered[len(ordered) // 2], 1), "max": round(ordered[-1], 1)}
        print(f"  {name}: {found.get(name)}", file=sys.stderr)
    return found


def timed(body):
    """Milliseconds of a call, or what the server said instead."""
    begun = time.monotonic()
    try:
        body()
    except urllib.error.HTTPError as error:
        return {"status": error.code, "message": error.read().decode()[:200]}
    except TimeoutError:
        return {"message": "no answer within 60 s"}
    ms = round((time.monotonic() - begun) * 1e3, 1)
    return {"first": ms, "p50": ms, "max": ms}


def until_counted(server):
    """Waits for the amounts of retention's page, which may be computed in the background."""
    end = time.monotonic() + 300
    while ask(server.url, path="/admin/retention")["outlook"] is None and time.monotonic() < end:
        time.sleep(0.2)


def queue_during(server, key, path, rounds):
    """The queue's latencies while four clients request `path` again and again."""
    stop = threading.Event()

    def load():
        while not stop.is_set():
            with contextlib.suppress(urllib.error.HTTPError, TimeoutError):
                ask(server.url, path=path)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        times = [timed(lambda: judge(server, key)).get("first", 60_000) for _ in range(rounds)]
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    return {"first": times[0], "p50": sorted(times)[len(times) // 2], "max": max(times)}


def supply(server, n):
    for i in range(n):
        body = {"messages": [{"role": "user", "content": f"question {i} {time.monotonic()}"}], "overlap": 2,
                "completions": [f"t5 t{i + 3}", "t6 t7 t8", f"t9 t{i + 4}"]}
        ask(server.url, "POST", "/v1/comparison-sets", body)


class Place:
    """The directory with a database, a server's data, and what is known of both."""

    def __init__(self, directory, database=None):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        known = self.directory / "volume.json"
        self.facts = json.loads(known.read_text()) if known.exists() else {"database": database}
        self.postgres = None
        self.data = self.directory / "one"
        self.data.mkdir(exist_ok=True)

    def __enter__(self):
        if self.facts["database"] == "postgres":
            (self.directory / "pg").mkdir(exist_ok=True)
            self.postgres = Postgres(self.directory / "pg")
            self.postgres.start()
        return self

    def __exit__(self, *_):
        if self.postgres:
            # A server that is killed recovers at its next start.
            self.postgres.stop()

    def keep(self, **facts):
        self.facts |= facts
        (self.directory / "volume.json").write_text(json.dumps(self.facts, indent=1) + "\n")

    @property
    def url(self):
        return self.postgres.url if self.postgres else f"sqlite://{self.data}/data/instructd.db"

    def server(self):
        tiny = self.data / "tiny"
        return Server(self.data, self.postgres.url if self.postgres else None, tiny if tiny.exists() else None)

    def bytes(self):
        if self.postgres:
            return int(self.postgres.rows("SELECT pg_database_size('postgres')")[0][0])
        return (self.data / "data/instructd.db").stat().st_size

    def completions(self):
        sql = "SELECT COUNT(*) FROM completions"
        if self.postgres:
            return int(self.postgres.rows(sql)[0][0])
        with sqlite3.connect(f"file:{self.data}/data/instructd.db?mode=ro", uri=True) as connection:
            return connection.execute(sql).fetchone()[0]

    def command(self, *words):
        """Runs the binary; returns seconds and the peak of its memory in MiB."""
        place = ["--data-dir", str(self.data / "data"), "--database-url", self.url, "--config", str(self.data / "config.toml")]
        begun = time.monotonic()
        with (self.directory / "log").open("a") as log:
            process = subprocess.Popen([BINARY, *words, *place], stdout=log, stderr=log,
                                       env={k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")} |
                                       {"INSTRUCTD_ADMIN_KEY": KEY})
            _, status, used = os.wait4(process.pid, 0)
        assert status == 0, (self.directory / "log").read_text()[-2000:]
        return {"seconds": round(time.monotonic() - begun, 1), "peak_mib": used.ru_maxrss >> 10}


def measure(place, rounds):
    begun = time.monotonic()
    server = place.server()
    ready = time.monotonic() - begun
    try:
        started = timed(lambda: ask(server.url, path="/admin/api/overview"))
        key = ask(server.url, "POST", "/admin/keys", {"name": "measuring", "scopes": ["feedback"]})["key"]
        supply(server, 2 * rounds + 1)
        found = {"overview, after the start": started}
        found["retention, until it is counted"] = timed(lambda: until_counted(server))
        found |= latencies(server, key, rounds)
        found["queue, during searches"] = queue_during(server, key, "/admin/sets?q=nowhere", rounds)
        print(f"  {found}", file=sys.stderr)
        log = sum(f.stat().st_size for f in (place.data / "data").glob("instructd.db-wal"))
        status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM"))
    finally:
        server.stop()
    return {"ready_seconds": round(ready, 1), "server_peak_mib": peak, "log_bytes": log, "ms": found}


def fill_place(options):
    sets = options.judgments // 2 + OPEN_SETS
    prompts = max(sets, options.completions // 10)
    numbers = (prompts, max(options.completions, 3 * prompts), sets, options.judgments)
    with Place(options.directory, options.database) as place:
        empty = measure(place, options.rounds)
        server = place.server()
        version = next(m["id"] for m in ask(server.url, path="/admin/models")["data"] if m["state"] == "active")
        server.stop()
        begun = time.monotonic()
        fill(options.database, place.postgres, place.data / "data/instructd.db", numbers, version)
        place.keep(prompts=numbers[0], completions=numbers[1], sets=sets, judgments=min(options.judgments, 2 * (sets - OPEN_SETS)),
                   bytes=place.bytes(), fill_seconds=round(time.monotonic() - begun), empty_ms=empty["ms"])


EXPORTS = [(name, "export", "--format", name, "--out", "/dev/null") for name in ("comparisons", "trl", "demonstrations")]


def measure_place(options):
    with Place(options.directory) as place:
        result = place.facts | measure(place, options.rounds)
        result["exports"] = {}
        for name, *words in [] if options.no_exports else EXPORTS:
            result["exports"][name] = place.command(*words)
            print(f"  export of {name}: {result['exports'][name]}", file=sys.stderr)
    pathlib.Path(options.file).write_text(json.dumps(result, indent=1) + "\n")
    print("| request | empty: median | full: first | full: median |\n|---|---|---|---|")

    def shown(row, key):
        return f"{row[key]:.0f} ms" if key in row else str(row.get("message", "")) or str(row.get("status"))

    for name, _ in REQUESTS:
        empty = result.get("empty_ms", {}).get(name, {})
        print(f"| {name} | {shown(empty, 'p50')} | {shown(result['ms'][name], 'first')} | {shown(result['ms'][name], 'p50')} |")


def expire_place(options):
    """Retention with a limit that about a tenth of the completions are past."""
    with Place(options.directory) as place:
        before = place.completions()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTRUCTD_")}
        words = [BINARY, "retention", "--data-dir", str(place.data / "data"), "--database-url", place.url,
                 "--config", str(place.data / "config.toml")]
        begun = time.monotonic()
        with (place.directory / "log").open("a") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment | {"INSTRUCTD_RETENTION__REQUEST_DAYS": "310"})
            try:
                ended = process.wait(options.seconds) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ended = False
        seconds = time.monotonic() - begun
        removed = before - place.completions()
    result = {"database": place.facts["database"], "completions": before, "seconds": round(seconds, 1), "ended": ended,
              "removed": removed, "per_second": round(removed / seconds, 1)}
    pathlib.Path(options.file).write_text(json.dumps(result, indent=1) + "\n")
    print(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["fill", "measure", "expire"])
    parser.add_argument("directory")
    parser.add_argument("file", nargs="?")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--completions", type=int, default=10_000_000)
    parser.add_argument("--judgments", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--no-exports", action="store_true")
    options = parser.parse_args()
    {"fill": fill_place, "measure": measure_place, "expire": expire_place}[options.action](options)


if __name__ == "__main__":
    main()
