#!/usr/bin/env python3
"""The official `openai` client's files and batches against the real binary, over a restart; and responses that a second
start goes on from.

    pip install -r tests/clients/requirements.txt; python3 tests/clients/batch_client.py
    (INSTRUCTD_BIN: default target/debug/instructd)
"""

import io
import json
import pathlib
import tempfile
import time

import openai
import server as instructd
import tiny_model

LINES = 40


def line(i, body, url="/v1/chat/completions"):
    return json.dumps({"custom_id": f"n{i}", "method": "POST", "url": url, "body": body}) + "\n"


def body(i):
    return {"model": "tiny", "messages": [{"role": "user", "content": f"q{i}"}], "max_tokens": 200, "seed": i}


def wait(client, batch, until):
    for _ in range(3000):
        batch = client.batches.retrieve(batch.id)
        if until(batch):
            return batch
        time.sleep(0.1)
    raise AssertionError(batch)


def over(batch):
    return batch.status in ("completed", "failed", "expired", "cancelled")


def begin(client):
    lines = "".join(line(i, body(i)) for i in range(LINES)) + line("bad", {"messages": [], "no_such_field": 1})
    file = client.files.create(file=("requests.jsonl", io.BytesIO(lines.encode())), purpose="batch")
    assert file.bytes == len(lines) and file.filename == "requests.jsonl" and file.status == "processed", file
    assert client.files.content(file.id).text == lines
    assert [f.id for f in client.files.list(purpose="batch")] == [file.id]
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                  metadata={"who": "me"})
    assert batch.metadata == {"who": "me"} and batch.request_counts.total == LINES + 1, batch
    # It goes on while others are answered.
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "now"}], max_tokens=3)
    assert answer.usage.completion_tokens <= 3
    return wait(client, batch, lambda b: b.request_counts.completed > 3)


def end(client, batch):
    batch = wait(client, batch, over)
    assert batch.status == "completed", batch
    assert (batch.request_counts.completed, batch.request_counts.failed) == (LINES, 1), batch
    answers = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert [a["custom_id"] for a in answers] == [f"n{i}" for i in range(LINES)]
    for i in (0, LINES - 1):
        alone = client.chat.completions.create(**body(i))
        told = answers[i]["response"]["body"]["choices"][0]["message"]["content"]
        assert told == alone.choices[0].message.content, (told, alone)
    errors = [json.loads(text) for text in client.files.content(batch.error_file_id).text.splitlines()]
    assert [e["custom_id"] for e in errors] == ["nbad"] and errors[0]["response"]["status_code"] == 400, errors
    assert {f.purpose for f in client.files.list()} == {"batch", "batch_output"}
    assert len(list(client.batches.list(limit=1))) == 1
    client.files.delete(batch.output_file_id)
    try:
        client.files.content(batch.output_file_id)
        raise AssertionError("a removed file was read")
    except openai.NotFoundError:
        pass


def cancelled(client):
    lines = "".join(line(i, {**body(i), "max_tokens": 1500}) for i in range(200))
    file = client.files.create(file=("long.jsonl", io.BytesIO(lines.encode())), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    client.batches.cancel(batch.id)
    assert wait(client, batch, over).status == "cancelled"


def main():
    with tempfile.TemporaryDirectory(prefix="instructd-batches-") as directory:
        directory = pathlib.Path(directory)
        model = tiny_model.write(directory / "tiny")
        settings = dict(MODEL=model, REQUIRE_INFERENCE_KEY="true")
        client = lambda server: openai.OpenAI(base_url=server.url + "/v1", api_key=instructd.ADMIN_KEY, max_retries=0)
        with instructd.running_in(directory, **settings) as server:
            batch = begin(client(server))
            kept = client(server).responses.create(model="tiny", input="first", max_output_tokens=16)
            print("ok begun", flush=True)
        with instructd.running_in(directory, **settings) as server:
            end(client(server), batch)
            print("ok ended after a restart", flush=True)
            on = client(server).responses.create(model="tiny", input="on", previous_response_id=kept.id,
                                                 max_output_tokens=16)
            assert on.previous_response_id == kept.id
            assert client(server).responses.retrieve(kept.id).output_text == kept.output_text
            client(server).responses.delete(kept.id)
            print("ok responses after a restart", flush=True)
            cancelled(client(server))
            print("ok cancelled", flush=True)
            assert server.alive()


if __name__ == "__main__":
    main()
