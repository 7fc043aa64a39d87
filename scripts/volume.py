#!/usr/bin/env python3
"""How long pages and the queue take when the database is large.

    python3 scripts/volume.py RESULT.json [--database sqlite|postgres] [--completions 10000000] [--judgments 1000000]
    (INSTRUCTD_BIN: default target/release/instructd)

Starts the binary on an empty database, measures each request several times, fills the database with rows of the sizes
that use makes (one prompt for ten completions, three completions in a set, two judgments of a set), and measures again.
"""

import argparse
import json
import pathlib
import sqlite3
import sys
import tempfile
import time
import urllib.error

from local_postgres import Postgres
from scale import Server, ask, judge

PEOPLE = 50
OPEN_SETS = 5000


def statements(database, prompts, completions, sets, judgments, version, now):
    """SQL that fills the tables; `n` numbers the rows from 0. Ids are 26 characters and ascend, as those of the program."""
    lite = database == "sqlite"

    def id(kind, number):
        return f"'01{kind}' || printf('%023d', {number})" if lite else f"'01{kind}' || lpad(({number})::text, 23, '0')"

    def rows(count):
        if lite:
            return f"(WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n + 1 < {count}) SELECT n FROM c)"
        return f"(SELECT generate_series(0, {count} - 1) AS n) AS c"

    blob = "zeroblob(128)" if lite else "decode(repeat('00', 128), 'hex')"
    true = "1" if lite else "TRUE"
    text = "'answer ' || n || '. ' || " + ("hex(randomblob(75))" if lite else "repeat(md5(n::text), 5)")
    at = f"{now} - 30000000000000 + n * 100" if completions > 100_000 else f"{now} - 1000000 + n"
    message = """'[{"role": "user", "content": "Question ' || n || ' about something that people ask"}]'"""
    sampling = """'{"temperature": 1.0, "top_p": 1.0, "max_tokens": 32}'"""
    json_cast = "" if lite else "::jsonb"
    yield "labelers", f"""INSERT INTO labelers (id, name, role, active, created)
        SELECT {id('L', 'n')}, 'person ' || n, 'labeler', {true}, {now} FROM {rows(PEOPLE)}"""
    yield "prompts", f"""INSERT INTO prompts (id, messages, source, content_hash, split, tags, created)
        SELECT {id('P', 'n')}, ({message}){json_cast}, 'chat', 'volume-' || n,
               CASE WHEN n % 10 = 0 THEN 'heldout' ELSE 'train' END, '[]', {at} FROM {rows(prompts)}"""
    yield "completions", f"""INSERT INTO completions (id, prompt_id, model_version_id, origin, text, token_ids, logprobs,
            sampling, seed, finish_reason, created, served)
        SELECT {id('C', 'n')}, {id('P', f'n % {prompts}')}, '{version}', 'model', {text}, {blob}, {blob},
               ({sampling}){json_cast}, n, 'stop', {at}, 'chat' FROM {rows(completions)}"""
    yield "sets", f"""INSERT INTO comparison_sets (id, prompt_id, kind, target_overlap, selection_policy, status, created)
        SELECT {id('S', 'n')}, {id('P', 'n')}, 'normal', 2, 'uniform',
               CASE WHEN n < {sets - OPEN_SETS} THEN 'done' ELSE 'open' END, {at} FROM {rows(sets)}"""
    for position in range(3):
        yield "items of sets", f"""INSERT INTO set_items (set_id, completion_id, position)
            SELECT {id('S', 'n')}, {id('C', f'n + {position * prompts}')}, {position} FROM {rows(sets)}"""
    # Two people for each set, neighbours in the list of people; the last sets are open and have no judgment yet.
    person = id("L", f"(n / 2 + n % 2) % {PEOPLE}")
    judged = min(judgments, 2 * (sets - OPEN_SETS))
    yield "assignments", f"""INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at, order_seed, leased,
            renewed)
        SELECT {id('A', 'n')}, {id('S', 'n / 2')}, {person}, 'submitted', 'x', 0, n, {at}, {at} FROM {rows(judged)}"""
    yield "judgments", f"""INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, outcome, active_ms, wall_ms,
            idempotency_key, created)
        SELECT {id('J', 'n')}, {id('A', 'n')}, {id('S', 'n / 2')}, {person}, 1, 'ranked', 20000, 25000, 'volume-' || n, {at}
        FROM {rows(judged)}"""
    for position in range(3):
        yield "items of judgments", f"""INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position)
            SELECT {id('J', 'n')}, {id('C', f'n / 2 + {position * prompts}')}, (n + {position}) % 3, {position}
            FROM {rows(judged)}"""


def fill(database, postgres, path, numbers, version):
    now = int(time.time() * 1e6)
    connection = None
    if postgres is None:
        connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("foreign_keys = OFF", "synchronous = OFF", "cache_size = -1000000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
    for what, sql in statements(database, *numbers, version, now):
        begun = time.monotonic()
        if postgres is None:
            connection.execute("BEGIN")
            connection.execute(sql)
            connection.execute("COMMIT")
        else:
            # References hold by construction; checking each would take most of the time.
            postgres.rows(f"SET session_replication_role = replica; SET synchronous_commit = off; {sql}")
        print(f"{what}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if postgres is None:
        connection.execute("ANALYZE")
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
    ("overview", "/admin/api/overview"),
    ("throughput", "/admin/api/throughput"),
    ("judgments, first page", "/admin/api/judgments"),
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


def supply(server, n):
    for i in range(n):
        body = {"messages": [{"role": "user", "content": f"question {i} {time.monotonic()}"}], "overlap": 2,
                "completions": [f"t5 t{i + 3}", "t6 t7 t8", f"t9 t{i + 4}"]}
        ask(server.url, "POST", "/v1/comparison-sets", body)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--completions", type=int, default=10_000_000)
    parser.add_argument("--judgments", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--slow", type=int, help="PostgreSQL: print statements that take longer than so many ms")
    options = parser.parse_args()
    sets = options.judgments // 2 + OPEN_SETS
    prompts = max(sets, options.completions // 10)
    numbers = (prompts, max(options.completions, 3 * prompts), sets, options.judgments)
    with tempfile.TemporaryDirectory(prefix="volume-", dir="/tmp") as directory:
        directory = pathlib.Path(directory)
        directory.chmod(0o755)
        postgres = None
        if options.database == "postgres":
            (directory / "pg").mkdir()
            slow = [f"log_min_duration_statement={options.slow}"] if options.slow else []
            postgres = Postgres(directory / "pg", slow)
            postgres.start()
        try:
            (directory / "one").mkdir()
            server = Server(directory / "one", postgres.url if postgres else None, None)
            try:
                key = ask(server.url, "POST", "/admin/keys", {"name": "measuring", "scopes": ["feedback"]})["key"]
                version = next(m["id"] for m in ask(server.url, path="/admin/models")["data"] if m["state"] == "active")
                supply(server, options.rounds + 1)
                before = latencies(server, key, options.rounds)
            finally:
                server.stop()
            path = directory / "one/data/instructd.db"
            begun = time.monotonic()
            fill(options.database, postgres, path, numbers, version)
            filled = time.monotonic() - begun
            size = int(postgres.rows("SELECT pg_database_size('postgres')")[0][0]) if postgres else path.stat().st_size
            # A second server on the same data: nothing is in its memory.
            begun = time.monotonic()
            again = Server(directory / "one", postgres.url if postgres else None, directory / "one/tiny")
            ready = time.monotonic() - begun
            try:
                after = latencies(again, key, options.rounds)
                status = pathlib.Path(f"/proc/{again.process.pid}/status").read_text()
                peak = next(int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM"))
            finally:
                again.stop()
                if options.slow and postgres:
                    print((directory / "pg/log").read_text().rpartition("VACUUM ANALYZE")[2], file=sys.stderr)
        finally:
            if postgres:
                postgres.kill()
    result = {"database": options.database, "prompts": numbers[0], "completions": numbers[1], "sets": sets,
              "judgments": min(options.judgments, 2 * (sets - OPEN_SETS)), "bytes": size, "fill_seconds": round(filled),
              "ready_seconds": round(ready, 1), "server_peak_mib": peak, "before_ms": before, "after_ms": after}
    pathlib.Path(options.file).write_text(json.dumps(result, indent=1) + "\n")
    print("| request | empty: median | full: first | full: median |\n|---|---|---|---|")

    def shown(row, key):
        return f"{row[key]:.0f} ms" if key in row else str(row.get("message", "")) or str(row.get("status"))

    for name, _ in REQUESTS:
        print(f"| {name} | {shown(before[name], 'p50')} | {shown(after[name], 'first')} | {shown(after[name], 'p50')} |")


if __name__ == "__main__":
    main()
