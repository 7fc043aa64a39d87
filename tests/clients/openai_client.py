#!/usr/bin/env python3
"""The official `openai` client against the real binary: answers, streams, log-probs, errors, cancelling.

    pip install openai; python3 tests/clients/openai_client.py     (INSTRUCTD_BIN: default target/debug/instructd)
"""

import asyncio
import time

import openai
import server as instructd

MESSAGES = [{"role": "user", "content": "t5 t6 t7"}]


def test_models(client, _):
    first = client.models.list().data[0]
    assert first.id == "tiny-chat" and first.object == "model" and first.owned_by == "instructd"
    assert client.models.retrieve("tiny-chat").id == "tiny-chat"
    try:
        client.models.retrieve("nope")
        raise AssertionError("an unknown model was found")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found" and e.param == "model", e.body


def test_chat(client, _):
    answer = client.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, max_completion_tokens=6, temperature=0.8, seed=7, n=3, user="somebody",
        extra_body={"ignore_eos": True},
    )
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert all(c.message.role == "assistant" and c.message.content for c in answer.choices)
    assert all(c.finish_reason == "length" for c in answer.choices)
    assert len({c.message.content for c in answer.choices}) > 1, "samples differ"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 18, 21), usage
    again = client.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, max_completion_tokens=6, temperature=0.8, seed=7, n=3,
        extra_body={"ignore_eos": True},
    )
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]


def test_chat_logprobs(client, _):
    answer = client.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=4, temperature=0,
        extra_body={"ignore_eos": True},
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        assert token.logprob <= 0 and bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 4
        best = token.top_logprobs
        assert [t.logprob for t in best] == sorted((t.logprob for t in best), reverse=True)
        # Greedy: the token drawn is the most likely one.
        assert best[0].token == token.token and best[0].logprob == token.logprob


def test_chat_stream(client, _):
    options = dict(model="tiny-chat", messages=MESSAGES, max_tokens=8, seed=3, n=2)
    whole = client.chat.completions.create(**options)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk" and chunk.id.startswith("chatcmpl-")
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [c.message.content for c in whole.choices]
    assert reasons == [c.finish_reason for c in whole.choices]
    assert usage == whole.usage


def test_completions(client, _):
    answer = client.completions.create(
        model="tiny-chat", prompt=["t1 t2", "t3"], max_tokens=4, logprobs=2, echo=True, seed=1, best_of=1,
        logit_bias={"40": -100}, presence_penalty=0.5, frequency_penalty=0.5, extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].text.startswith("t1 t2") and answer.choices[1].text.startswith("t3")
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens[:2] == ["t1", " t2"] and logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 6
    assert logprobs.top_logprobs[0] is None and all(len(t) in (2, 3) for t in logprobs.top_logprobs[1:])
    scored = client.completions.create(model="tiny-chat", prompt=[1, 2, 3], max_tokens=0, logprobs=0, echo=True)
    assert len(scored.choices[0].logprobs.tokens) == 3 and scored.usage.completion_tokens == 0
    text = "".join(
        c.choices[0].text
        for c in client.completions.create(model="tiny-chat", prompt="t1 t2", max_tokens=6, seed=1, stream=True)
        if c.choices
    )
    assert text == client.completions.create(model="tiny-chat", prompt="t1 t2", max_tokens=6, seed=1).choices[0].text


def test_stop(client, _):
    free = client.completions.create(
        model="tiny-chat", prompt="t9", max_tokens=12, seed=4, extra_body={"ignore_eos": True}
    ).choices[0].text
    words = free.split()
    # Two words: the stop string lies across a token's border.
    stop = f"{words[4]} {words[5]}"
    choice = client.completions.create(
        model="tiny-chat", prompt="t9", max_tokens=12, seed=4, stop=stop, extra_body={"ignore_eos": True}
    ).choices[0]
    assert choice.text == free[: free.index(stop)] and choice.finish_reason == "stop"


def test_errors(client, server):
    def fails(kind, param, call):
        try:
            call()
        except kind as e:
            assert type(e) is kind, type(e)
            assert e.param == param, (e.param, e.body)
            assert e.request_id and e.body["message"], e.body
            return
        raise AssertionError(f"no {kind.__name__}")

    create = client.chat.completions.create
    fails(openai.BadRequestError, "temperature", lambda: create(model="tiny-chat", messages=MESSAGES, temperature=5))
    fails(openai.BadRequestError, "max_tokens", lambda: create(model="tiny-chat", messages=MESSAGES, max_tokens=999))
    fails(openai.BadRequestError, "colour", lambda: create(model="tiny-chat", messages=MESSAGES, extra_body={"colour": 1}))
    fails(openai.NotFoundError, "model", lambda: create(model="nope", messages=MESSAGES))
    stranger = openai.OpenAI(base_url=server.url, api_key="sk-wrong", max_retries=0)
    fails(openai.AuthenticationError, None, lambda: stranger.get("/admin/jobs", cast_to=object))
    owner = openai.OpenAI(base_url=server.url, api_key=instructd.ADMIN_KEY, max_retries=0)
    key = owner.post("/admin/keys", body={"name": "i", "scopes": ["inference"]}, cast_to=object)["key"]
    guest = openai.OpenAI(base_url=server.url, api_key=key, max_retries=0)
    fails(openai.PermissionDeniedError, None, lambda: guest.get("/admin/jobs", cast_to=object))
    fails(openai.ConflictError, None, lambda: owner.post("/admin/models/rollback", cast_to=object))


def test_rate_limit(client, server):
    owner = openai.OpenAI(base_url=server.url, api_key=instructd.ADMIN_KEY, max_retries=0)
    made = owner.post("/admin/keys", body={"name": "q", "scopes": ["inference"], "daily_tokens": 5}, cast_to=object)
    poor = openai.OpenAI(base_url=server.url + "/v1", api_key=made["key"], max_retries=0)
    create = lambda: poor.chat.completions.create(model="tiny-chat", messages=MESSAGES, max_tokens=4)
    create()
    try:
        create()
        raise AssertionError("the key's tokens of today were used up")
    except openai.RateLimitError as e:
        assert e.code == "quota_exceeded" and int(e.response.headers["retry-after"]) > 0, e.body


def test_cancel(client, server):
    stream = client.completions.create(
        model="tiny-chat", prompt=["t1"] * 40, max_tokens=60, stream=True, n=6, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    for _ in range(600):
        if server.metric("instructd_requests_running") + server.metric("instructd_requests_waiting") == 0:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a cancelled request kept its slots")


def test_async(_, server):
    async def many():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:
            asks = [
                client.chat.completions.create(model="tiny-chat", messages=MESSAGES, max_tokens=5, seed=s % 4)
                for s in range(16)
            ]
            return [a.choices[0].message.content for a in await asyncio.gather(*asks)]

    texts = asyncio.run(many())
    assert texts[:4] == texts[4:8] == texts[8:12] == texts[12:], "the company in the batch changes no answer"


def main():
    with instructd.running() as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)
        for name, test in list(globals().items()):
            if name.startswith("test_"):
                test(client, server)
                print("ok", name)
        assert "panicked" not in server.log(), server.log()
    print(f"openai {openai.__version__}: all fine")


if __name__ == "__main__":
    main()
