#!/usr/bin/env python3
"""Writes the benchmark tables of README.md and docs/ from benches/results/*.json.

A document marks a table by `<!-- bench: NAME -->` and `<!-- /bench -->`; the text between them is replaced.
With --check nothing is written, and the exit status is 1 if a document differs from what would be written.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def source(data):
    return f"Measured on {data['date']} at commit {data['commit']}, {data['machine']}. To repeat: `{data['command']}`"


def serving_ratios(data):
    """Our tokens/s relative to the peer's, one row per weight format."""
    rows = [[r["name"]] + [f"{o / p:.2f}×" for o, p in zip(r["ours"], r["peer"], strict=True)] for r in data["rows"]]
    return table(["weights", *data["columns"]], rows)


def serving(data):
    rows = []
    for r in data["rows"]:
        pairs = zip(r["ours"], r["peer"], strict=True)
        rows.append([r["name"]] + [f"{o / p:.2f}× ({o:g} / {p:g})" for o, p in pairs])
    return table([f"weights: ratio (instructd / {data['peer']})", *data["columns"]], rows) + "\n\n" + source(data)


def mean(values):
    return sum(values) / len(values)


def ppo(data):
    def rows(entries, seconds, gb):
        for r in entries:
            ours = mean(r["seconds"])
            times = ", ".join(f"{s:.1f}" for s in r["seconds"])
            baseline = r.get("baseline")
            yield [
                r["name"],
                times,
                "" if baseline else f"{seconds / ours:.2f}×",
                f"{r['gb']:.1f} GB",
                "" if baseline else f"{r['gb'] / gb:.2f}×",
            ]

    base = next(r for r in data["rows"] if r.get("baseline"))
    earlier = data["earlier"]
    body = list(rows(data["rows"], mean(base["seconds"]), base["gb"]))
    late = [[r[0] + " ¹", *r[1:]] for r in rows(earlier["rows"], earlier["baseline_seconds"], earlier["baseline_gb"])]
    head = ["one iteration", "seconds, by run", f"speed relative to {data['peer']}", "peak memory", "relative memory"]
    note = f"¹ Measured in an earlier session (commit {earlier['commit']}) beside a {data['peer']} run of {earlier['baseline_seconds']} s."
    return table(head, body + late) + "\n\n" + note + "\n\n" + source(data)


def learning(data):
    rows = [["start policy", "", f"{data['start']:.2f}", "0", "1.00"]]
    for r in data["rows"]:
        share = ", ".join(f"{s:.2f}" for s in r["share"])
        kl = ", ".join(f"{k:.1f}" for k in r["kl"])
        rows.append([r["name"], share, f"{mean(r['share']):.2f}", kl, f"{r['distinct']:.2f}"])
    head = ["method", "share of positive continuations, by seed", "mean", "KL by seed (nats)", "distinct texts"]
    return table(head, rows) + "\n\n" + source(data)


def overoptimisation(data):
    """Proxy, gold and KL of a run without a guard, every fifth round, with the rounds that the guard chose."""
    stop, published = data["stopped_after"], data["published"]
    marks = {published: "the guard publishes this policy", stop: "the guard stops the run"}
    shown = [r for r in data["rows"] if r["round"] % 5 == 0 or r["round"] in marks]
    rows = [
        [str(r["round"]), f"{r['proxy']:.2f}", f"{r['gold']:.3f}", f"{r['kl']:.1f}", marks.get(r["round"], "")]
        for r in shown
    ]
    head = ["round", "proxy (mean score)", "gold (share of liked words)", "KL (nats)", ""]
    return table(head, rows) + "\n\n" + source(data)


def long_sequences(data):
    """Peak memory of one step, by the length of its sequence."""
    modes = ("none", "mlp", "block")
    rows = [
        [f"{r['tokens']:,}", *(f"{r[m]['gb']:.2f} GB" for m in modes), *(f"{r[m]['cpu'] / r['none']['cpu']:.2f}×" for m in modes[1:])]
        for r in data["rows"]
    ]
    head = ["tokens", *(f"`recompute` {m}" for m in modes), *(f"processor time of {m}, relative to none" for m in modes[1:])]
    return table(head, rows) + "\n\n" + source(data)


def default_model(data):
    rows = [
        [
            r["name"],
            f"{r['mb']} MB",
            r["license"],
            r["languages"],
            *(f"{r[k]} of {data['of']}" for k in ("en", "zh")),
            f"{r['seconds_to_ready']:.1f} s",
            f"{1000 * r['seconds_to_first_token']:.0f} ms",
            f"{r['peak_mb']} MB",
        ]
        for r in data["rows"]
    ]
    head = ["model", "download", "licence", "languages", "right in English", "right in Chinese"]
    head += ["start to ready", "first token (median)", "peak memory"]
    return table(head, rows) + "\n\n" + source(data)


def serving_memory(data):
    """MB by weight format, as held after one answer / at the peak while loading."""
    names = list(data["rows"][0]["formats"])
    rows = [
        [r["name"], f"{r['mb']} MB", *(f"{r['formats'][n]['held']} / {r['formats'][n]['peak']} MB" for n in names)]
        for r in data["rows"]
    ]
    return table(["model", "file", *(f"`{n}`" for n in names)], rows) + "\n\n" + source(data)


def qlora(data):
    base = data["rows"][0]
    rows = []
    for r in data["rows"]:
        half, last = r["heldout_loss"]
        rows.append(
            [
                f"`{r['kind']}`",
                f"{r['gb']:.2f} GB",
                f"{r['gb'] / base['gb']:.2f}×",
                f"{r['seconds']:.2f} s",
                f"{base['seconds'] / r['seconds']:.2f}×",
                f"{half:.3f}",
                f"{last:.3f}",
            ]
        )
    head = ["`frozen_precision`", "peak memory", "relative memory", "one step (median)", "relative speed"]
    head += [f"held-out loss after {data['steps'] // 2} steps", f"after {data['steps']}"]
    return table(head, rows) + "\n\n" + data["what"] + ". " + source(data)


def labelers(data):
    rows = [
        [
            r["database"],
            r["pauses"],
            f"{r['submits']}",
            f"{r['submits_per_second']:g}",
            *(f"{r[what][p]:g} ms" for what in ("submit_ms", "turn_ms") for p in ("p50", "p99")),
        ]
        for r in data["rows"]
    ]
    head = ["database", "pauses", "judgments", "judgments/s", "submit p50", "submit p99", "next set p50", "next set p99"]
    note = f"{data['what']}; {data['build']}. One write of 4 kB to the disk took {data['sync_ms']:g} ms."
    return table(head, rows) + "\n\n" + note + " " + source(data)


def gpu(data):
    rows = [[r["phase"], r["result"], "ok" if r["ok"] else "failed"] for r in data["rows"]]
    return table(["phase", "result", ""], rows) + "\n\n" + source(data)


def gpu_products(data):
    """Times of products, with the part of the copy bandwidth for few rows and the arithmetic rate for many."""
    rows = []
    for r in data["rows"]:
        n, m, k = r["rows"], r["outputs"], r["inputs"]
        if n <= 64:
            share = m * k * 2 / r["now_us"] / 1e3 / data["copy_gb_per_s"]
            reached = f"{m * k * 2 / r['now_us'] / 1e6:.2f} TB/s of weights, {share:.2f} of a copy's rate"
        else:
            reached = f"{2 * n * m * k / r['now_us'] / 1e6:.0f} TFLOP/s"
        before, now = r["before_us"], r["now_us"]
        rows.append([str(n), f"{k} → {m}", f"{before:.1f} µs", f"{now:.1f} µs", f"{before / now:.1f}×", reached])
    head = ["rows", "matrix", "before", "now", "faster", "now reaches"]
    how = f"Measured on {data['date']} at commits {data['commit']}, {data['machine']}: {data['how']}."
    return table(head, rows) + "\n\n" + how


def real_run(data):
    """The steps of the tour with a real model and real rankings."""
    reward, ppo = data["reward"], data["ppo"]
    heldout = reward["result"]["metrics"]["heldout"]
    accuracy, pairs = heldout["accuracy"], heldout["pairs"]
    spread = 1.96 * (accuracy * (1 - accuracy) / pairs) ** 0.5
    rows = [["import", f"{data['import']['imported']} sets of ranked completions"]]
    rows.append([
        f"reward model: LoRA rank {reward['args']['lora']['rank']}, {reward['args']['epochs']} epoch, "
        f"`learning_rate` {reward['args']['learning_rate']:g}, `max_length` {reward['args']['max_length']}",
        f"held-out pair accuracy {accuracy:.2f} ({pairs} pairs, 95 % interval ±{spread:.2f}); "
        f"{reward['seconds'] / 60:.0f} minutes, {reward['gb']:.1f} GB",
    ])
    rewards = ", ".join(f"{v:.2f}" for v in ppo["curves"]["reward"])
    args = ppo["args"]
    rows.append([
        f"PPO: LoRA rank {args['lora']['rank']}, {args['iterations']} iterations of {args['rollout_batch_size']} × "
        f"{args['response_length']} tokens, `kl_coef` {args['kl_coef']:g}, `learning_rate` {args['learning_rate']:g}",
        f"mean reward {rewards}; KL {ppo['curves']['kl'][0]:.2f} → {ppo['curves']['kl'][-1]:.2f} nats per sequence; "
        f"{ppo['seconds'] / 60:.0f} minutes, {ppo['gb']:.1f} GB",
    ])
    asked = data["completion_seconds"]
    rows.append(["a completion of 24 tokens", f"{asked['idle']} s alone, {asked['during']} s while PPO ran"])
    switch = data["switch"]
    rows.append(["promotion and rollback", f"{switch['answered']} of {switch['requests']} requests sent meanwhile were answered"])
    return table(["step", "figures"], rows) + "\n\n" + source(data)


def schemas(data):
    """What a JSON schema costs: throughput and the first token."""
    first = data["first_token_ms"]
    rows = [
        [f"tokens/s with a schema, of those without, {r['streams']} streams",
         f"{r['ratio']:.2f} ({r['least']:.2f} to {r['most']:.2f} in five pairs)"]
        for r in data["rows"]
    ]
    rows.append([
        f"first token, median of {first['schemas']} schemas of 8 fields",
        f"{first['none']:.0f} ms without, {first['new']:.0f} ms with a new schema (at most {first['new_worst']:.0f}), "
        f"{first['again']:.0f} ms with the same one again",
    ])
    return table([data["model"], ""], rows) + "\n\n" + source(data)


def duration(ms):
    return f"{ms / 1e3:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"


def latency(row):
    """The median, and the first request if that took much longer; or why there is neither."""
    if not row:
        return "not measured"
    if "p50" not in row:
        return row.get("message") or f"status {row.get('status')}"
    is_slow = row.get("first", 0) >= max(1000, 2 * row["p50"])
    return duration(row["p50"]) + (f" (first: {duration(row['first'])})" if is_slow else "")


def volume(data):
    """Latencies of requests on large databases, in a column for each database and program."""
    columns = data["columns"]
    requests = list(dict.fromkeys(request for column in columns for request in column["ms"]))
    rows = [[request, *(latency(column["ms"].get(request)) for column in columns)] for request in requests]
    head = ["request", *(column["label"] for column in columns)]
    notes = "; ".join(f"{c['label']}: {c['what']}, {c['bytes'] / 1e9:.1f} GB, {c['build']}" for c in columns)
    return table(head, rows) + f"\n\n{notes}. " + source(data)


TABLES = {
    "volume": (volume, "volume"),
    "real-run": (real_run, "real-run"),
    "schemas": (schemas, "schemas"),
    "gpu": (gpu, "gpu"),
    "gpu-products": (gpu_products, "gpu-products"),
    "labelers": (labelers, "labelers"),
    "serving-models": (serving, "serving-models"),
    "serving-formats": (serving, "serving-formats"),
    "serving-ratios": (serving_ratios, "serving-llamacpp"),
    "serving-llamacpp": (serving, "serving-llamacpp"),
    "serving-transformers": (serving, "serving-transformers"),
    "ppo-iteration": (ppo, "ppo-iteration"),
    "learning": (learning, "learning"),
    "overoptimisation": (overoptimisation, "overoptimisation"),
    "qlora": (qlora, "qlora"),
    "long-sequences": (long_sequences, "long-sequences"),
    "serving-memory": (serving_memory, "serving-memory"),
    "default-model": (default_model, "default-model"),
}


def main():
    check = "--check" in sys.argv[1:]
    stale = []
    used = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()

        def fill(match):
            name = match[1]
            used.add(name)
            render, file = TABLES[name]
            data = json.loads((ROOT / "benches/results" / f"{file}.json").read_text())
            return f"<!-- bench: {name} -->\n{render(data)}\n<!-- /bench -->"

        new = re.sub(r"<!-- bench: ([\w-]+) -->\n.*?<!-- /bench -->", fill, text, flags=re.S)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new)
    missing = set(TABLES) - used
    if missing:
        sys.exit(f"no document has the tables {sorted(missing)}")
    if check and stale:
        sys.exit(f"run scripts/bench_tables.py: {', '.join(stale)} differ from benches/results")


main()
