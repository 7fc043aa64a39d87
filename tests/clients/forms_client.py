#!/usr/bin/env python3
"""The official `openai` and `anthropic` clients against the real binary: texts of a given form, tools, reasoning,
Responses and Messages, whole and streamed.

    pip install -r tests/clients/requirements.txt; python3 tests/clients/forms_client.py
    (INSTRUCTD_BIN: default target/debug/instructd)
"""

import json
import os
import pathlib
import tempfile
from typing import Literal

import anthropic
import openai
import pydantic
import server as instructd
import tiny_model

USER = [{"role": "user", "content": "How is it?"}]


class Weather(pydantic.BaseModel):
    city: Literal["Bonn", "Ulm"]
    days: Literal[1, 2, 3]


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Ulm"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "d", "parameters": SCHEMA, "strict": True}
TOOLS = [{"type": "function", "function": FUNCTION}]


def fits(arguments):
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert found["city"] in ("Bonn", "Ulm") and 1 <= found["days"] <= 9, found


def test_parsed_form(client, _):
    for seed in range(5):
        answer = client.chat.completions.parse(model="tiny", messages=USER, response_format=Weather, seed=seed)
        assert isinstance(answer.choices[0].message.parsed, Weather), answer
    for body in ({"guided_choice": ["yes", "no"]}, {"structured_outputs": {"choice": ["yes", "no"]}}):
        answer = client.chat.completions.create(model="tiny", messages=USER, extra_body=body)
        assert answer.choices[0].message.content in ("yes", "no")
    answer = client.completions.create(model="tiny", prompt="x", extra_body={"guided_regex": "[ab]{3}"})
    assert set(answer.choices[0].text) <= {"a", "b"} and len(answer.choices[0].text) == 3
    try:
        client.chat.completions.create(model="tiny", messages=USER, extra_body={"guided_regex": "("})
        raise AssertionError("a regular expression that is none was taken")
    except openai.BadRequestError as e:
        assert e.param == "guided_regex", e.body


def test_tools(client, _):
    options = dict(model="tiny", messages=USER, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=3)
    answer = client.chat.completions.create(**options)
    choice = answer.choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.type == "function" and call.function.name == "weather"
    fits(call.function.arguments)
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    on = [*USER, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "fine"}]
    client.chat.completions.create(model="tiny", messages=on, tools=TOOLS, max_tokens=3)


def test_reasoning(client, _):
    options = dict(model="tiny", messages=USER, max_tokens=60, seed=2, reasoning_effort="low",
                   logit_bias={"5": 5, "0": -100})
    whole = client.chat.completions.create(**options).choices[0].message
    thought, said = "", ""
    for chunk in client.chat.completions.create(**options, stream=True):
        delta = chunk.choices[0].delta
        thought += getattr(delta, "reasoning_content", None) or ""
        said += delta.content or ""
    # Whether a model of random weights opens a span of thoughts is its own affair; both ways tell the same.
    assert thought == (getattr(whole, "reasoning_content", None) or ""), (thought, whole)
    assert said == (whole.content or ""), (said, whole)


def test_responses(client, _):
    first = client.responses.create(model="tiny", input="How is it?", instructions="brief", max_output_tokens=20)
    assert first.output_text and first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
    on = client.responses.create(model="tiny", input="And?", previous_response_id=first.id, max_output_tokens=5)
    assert on.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    told, kinds = "", []
    for event in client.responses.create(model="tiny", input="x", max_output_tokens=20, stream=True):
        kinds.append(event.type)
        told += event.delta if event.type == "response.output_text.delta" else ""
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert event.response.output_text == told
    tool = {"type": "function", **FUNCTION}
    called = client.responses.create(model="tiny", input="x", tools=[tool], tool_choice="required",
                                     parallel_tool_calls=False)
    call = called.output[0]
    assert call.type == "function_call"
    fits(call.arguments)
    output = [{"type": "function_call_output", "call_id": call.call_id, "output": "fine"}]
    client.responses.create(model="tiny", input=[*called.output, *output], tools=[tool], max_output_tokens=3)
    parsed = client.responses.parse(model="tiny", input="x", text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)


def test_messages(_, client):
    options = dict(model="tiny", max_tokens=30, messages=USER, system="brief")
    answer = client.messages.create(**options)
    assert answer.role == "assistant" and answer.content[0].type == "text" and answer.stop_reason in ("max_tokens", "end_turn")
    counted = client.messages.count_tokens(model="tiny", messages=USER, system="brief")
    assert counted.input_tokens == answer.usage.input_tokens
    with client.messages.stream(**options) as stream:
        told = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == told and final.usage.output_tokens > 0
    tool = {"name": "weather", "description": "d", "input_schema": SCHEMA}
    # An untrained model writes much white space: a call ends within 300 tokens.
    forced = dict(model="tiny", max_tokens=400, messages=USER, tools=[tool],
                  tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True})
    called = client.messages.create(**forced)
    assert called.stop_reason == "tool_use" and called.content[0].name == "weather", called
    fits(called.content[0].input)
    with client.messages.stream(**forced) as stream:
        fits(stream.get_final_message().content[0].input)
    result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": "fine"}
    on = [*USER, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    client.messages.create(model="tiny", max_tokens=3, messages=on, tools=[tool])
    try:
        client.messages.create(model="tiny", max_tokens=3, messages=[{"role": "assistant", "content": "x"}])
        raise AssertionError("an answer was begun for the model")
    except anthropic.BadRequestError as e:
        assert "last message" in str(e), e


def main():
    with tempfile.TemporaryDirectory(prefix="instructd-forms-") as directory:
        model = tiny_model.write(pathlib.Path(directory) / "tiny")
        os.environ["INSTRUCTD_TEST_MODEL"] = str(model)
        with instructd.running(REQUIRE_INFERENCE_KEY="true") as server:
            clients = (
                openai.OpenAI(base_url=server.url + "/v1", api_key=instructd.ADMIN_KEY, max_retries=0),
                anthropic.Anthropic(base_url=server.url, api_key=instructd.ADMIN_KEY, max_retries=0),
            )
            tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
            for name, test in tests:
                test(*clients)
                print("ok", name, flush=True)
            assert server.alive()


if __name__ == "__main__":
    main()
