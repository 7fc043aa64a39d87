#!/usr/bin/env python3
"""JSON schemas against the real binary, answers checked by `jsonschema_rs`, which shares no code with the server: seeded
random schemas, and every schema of a checkout of JSON-Schema-Test-Suite. Each answer must be of its schema or end by its
length; each schema that is not supported must be refused by name. Also how a schema changes throughput.

    pip install -r tests/clients/requirements.txt
    python3 tests/clients/schema_suite.py [--random 500] [--seed 1] [--suite CHECKOUT] [--speed]
    (INSTRUCTD_BIN: default target/debug/instructd; INSTRUCTD_TEST_MODEL: another model than the tiny one, for --speed)
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import statistics
import tempfile
import time

import jsonschema_rs
import openai
import server as instructd
import tiny_model

AT_ONCE = 8
DRAFT = "https://json-schema.org/draft/2020-12/schema"
USER = [{"role": "user", "content": "x"}]
# The served version: the active one.
MODEL = "active"


def random_schema(dice, depth=3):
    """Schemas whose shortest values are short, of the keywords that clients use."""
    kind = dice.randrange(13 if depth else 8)
    if kind == 0:
        return {"type": dice.choice(["boolean", "null"])}
    if kind == 1:
        low = dice.randrange(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + dice.randrange(500)}
    if kind == 2:
        low = dice.randrange(-50, 50)
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + 1 + dice.randrange(9)}
    if kind == 3:
        return {"type": "string", "minLength": dice.randrange(4), "maxLength": 4 + dice.randrange(6)}
    if kind == 4:
        return {"enum": dice.sample(['a"b', 3, None, "中", -2.5, True, [1], {"k": "v"}], 1 + dice.randrange(4))}
    if kind == 5:
        return {"type": "string", "pattern": dice.choice(["^[a-c]{2,4}-[0-9]$", "^(yes|no)$", "^\\d{3}$", "^x?y+z$"])}
    if kind == 6:
        return {"const": dice.choice([{"k": [1, "x"]}, "é", 0, [], None])}
    if kind == 7:
        return {"type": "string", "format": dice.choice(["date", "uuid", "ipv4"])}
    if kind == 8:
        return {"type": "array", "items": random_schema(dice, depth - 1), "minItems": dice.randrange(2), "maxItems": 3}
    if kind == 9:
        return {"anyOf": [random_schema(dice, depth - 1) for _ in range(2)]}
    if kind == 10:
        items = [random_schema(dice, depth - 1) for _ in range(1 + dice.randrange(2))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if kind == 11:
        return {"$defs": {"d": random_schema(dice, 0)}, "type": "array", "items": {"$ref": "#/$defs/d"},
                "minItems": 1, "maxItems": 2} if depth == 3 else random_schema(dice, depth - 1)
    names = dice.sample(["a", "name with space", "é", "id", "$x", "日"], 1 + dice.randrange(4))
    return {"type": "object", "properties": {n: random_schema(dice, depth - 1) for n in names},
            "required": [n for n in names if dice.random() < 0.6], "additionalProperties": False}


def finite(number):
    """A JSON number may be larger than any that Python has; it is a number all the same."""
    return max(min(float(number), 1.7e308), -1.7e308)


class Checked:
    """Asks for texts of schemas and counts what came."""

    def __init__(self, client, max_tokens):
        self.client, self.max_tokens = client, max_tokens
        self.counts = collections.Counter()
        self.refused, self.wrong = collections.Counter(), []

    def ask(self, schema, seed):
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
        options = dict(temperature=0) if seed % 4 == 0 else dict(temperature=1, extra_body={"top_k": 4} if seed % 4 == 1 else {})
        return self.client.chat.completions.create(model="tiny", messages=USER, max_tokens=self.max_tokens, seed=seed,
                                                   response_format=form, **options)

    def one(self, schema, seed):
        try:
            choice = self.ask(schema, seed).choices[0]
        except openai.BadRequestError as e:
            assert e.param == "response_format", e.body
            return "refused", e.body["message"]
        text = choice.message.content
        if choice.finish_reason == "length":
            return "length", None
        assert choice.finish_reason == "stop", choice
        try:
            value = json.loads(text, parse_float=finite)
        except ValueError as e:
            return "wrong", f"{schema}: {e}: {text!r}"
        if jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value):
            return "valid", None
        return "wrong", f"{json.dumps(schema)}: {text!r}"

    def all(self, schemas):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for kind, what in pool.map(lambda pair: self.one(*pair), schemas):
                self.counts[kind] += 1
                if kind == "refused":
                    self.refused[re.sub(r"[\"'`].*", "", what.removeprefix("it cannot be followed: "))[:60]] += 1
                if kind == "wrong":
                    self.wrong.append(what)


def suite_schemas(checkout):
    """The schemas of draft 2020-12 that stay inside themselves, with the names of their groups."""
    folder = pathlib.Path(checkout) / "tests" / "draft2020-12"
    files = sorted(folder.glob("*.json"))
    assert files, f"no tests in {folder}"
    for path in files:
        for group in json.loads(path.read_text()):
            schema = group["schema"]
            own = {k: v for k, v in schema.items() if k != "$schema"} if isinstance(schema, dict) else None
            # Other vocabularies and other documents are not at hand.
            if own is not None and schema.get("$schema", DRAFT) == DRAFT and "http" not in json.dumps(own):
                yield path.stem, schema


def first_token(client, dice, rounds=30):
    """Milliseconds to the first token: without a schema, with one that the server has not seen, and with the same one
    again, in turns."""
    def ask(extra):
        began = time.perf_counter()
        with client.chat.completions.create(model=MODEL, messages=USER, max_tokens=4, stream=True, **extra) as stream:
            next(iter(stream))
            return (time.perf_counter() - began) * 1e3

    def form(seed):
        schema = {"type": "object", "additionalProperties": False, "properties": {}}
        for i in range(8):
            schema["properties"][f"field_{seed}_{i}"] = random_schema(dice, 0)
        schema["required"] = list(schema["properties"])
        return dict(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})

    ask({}), ask(form("warm"))
    rows = []
    for seed in range(rounds):
        new = form(seed)
        rows.append((ask({}), ask(new), ask(new)))
    plain, new, again = (statistics.median(row[i] for row in rows) for i in range(3))
    worst = max(row[1] for row in rows)
    print(f"first token of {rounds} schemas of 8 fields: {plain:.1f} ms without, {new:.1f} with a new schema "
          f"(at most {worst:.1f}), {again:.1f} with the same one again", flush=True)


def speed(client, streams, tokens, rounds=5):
    """Tokens a second with a schema and without, in turns: pairs see the same machine."""
    schema = {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"},
              "n": {"type": "integer"}}, "required": ["name", "n"], "additionalProperties": False}, "minItems": 500}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    def run(extra):
        def ask(seed):
            return client.chat.completions.create(model=MODEL, messages=USER, max_tokens=tokens, seed=seed,
                                                  extra_body={"ignore_eos": True}, **extra).usage.completion_tokens
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            done = sum(pool.map(ask, range(streams * 2)))
        return done / (time.perf_counter() - began)

    run(dict(response_format=form))
    pairs = [(run({}), run(dict(response_format=form))) for _ in range(rounds)]
    ratios = [formed / plain for plain, formed in pairs]
    plain, formed = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    print(f"{streams} streams: {plain:.0f} tokens/s without, {formed:.0f} with a schema; "
          f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--random", type=int, default=500)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--suite")
    options.add_argument("--speed", action="store_true")
    options.add_argument("--tokens", type=int, default=256)
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="instructd-schemas-") as directory:
        if "INSTRUCTD_TEST_MODEL" not in os.environ:
            os.environ["INSTRUCTD_TEST_MODEL"] = str(tiny_model.write(pathlib.Path(directory) / "tiny"))
        with instructd.running() as server:
            client = openai.OpenAI(base_url=server.url + "/v1", api_key=instructd.ADMIN_KEY, max_retries=3)
            dice = random.Random(options.seed)
            checked = Checked(client, 300)
            checked.all([(random_schema(dice), i) for i in range(options.random)])
            print("random schemas:", dict(checked.counts), flush=True)
            assert not checked.wrong, checked.wrong[:5]
            assert not checked.refused, checked.refused
            assert options.random == 0 or checked.counts["valid"] > options.random / 2, checked.counts
            if options.suite:
                checked = Checked(client, 120)
                checked.all([(schema, i) for i, (_, schema) in enumerate(suite_schemas(options.suite))])
                print("JSON-Schema-Test-Suite:", dict(checked.counts), flush=True)
                for message, count in checked.refused.most_common():
                    print(f"  refused {count}: {message}")
                assert not checked.wrong, checked.wrong[:5]
            if options.speed:
                first_token(client, dice)
                for streams in (1, 32):
                    speed(client, streams, options.tokens)
            assert server.alive()


if __name__ == "__main__":
    main()
