#!/usr/bin/env python3
"""LangChain, LlamaIndex and LiteLLM against the real binary: chat, streams, tools, forms, models. A framework that is not
installed is skipped by name.

    python3 -m venv VENV; VENV/bin/pip install -r tests/clients/requirements-frameworks.txt
    VENV/bin/python tests/clients/frameworks.py
    (INSTRUCTD_BIN: default target/debug/instructd)
"""

import json
import os
import pathlib
import tempfile
from typing import Literal

import server as instructd
import tiny_model

KEY = instructd.ADMIN_KEY


def test_langchain(url):
    import pydantic
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAI

    # Without other properties, which an untrained model writes without an end.
    class Weather(pydantic.BaseModel, extra="forbid"):
        """How it is."""
        city: Literal["Bonn", "Ulm"]

    @tool(args_schema=Weather)
    def weather(city: Literal["Bonn", "Ulm"]) -> str:
        """Tells the weather."""
        return f"fine in {city}"

    chat = ChatOpenAI(base_url=url + "/v1", api_key=KEY, model="tiny", max_tokens=12, temperature=0.5, seed=3, max_retries=0)
    talk = [SystemMessage("brief"), HumanMessage("hello")]
    answer = chat.invoke(talk)
    assert isinstance(answer, AIMessage) and answer.usage_metadata["output_tokens"] <= 12, answer
    assert "".join(piece.text for piece in chat.stream(talk)) == answer.text, "whole and streamed"
    assert len(chat.batch([talk, talk, talk])) == 3
    for method in ("json_schema", "function_calling"):
        formed = chat.model_copy(update={"max_tokens": 200}).with_structured_output(Weather, method=method)
        assert formed.invoke("where?").city in ("Bonn", "Ulm")
    called = chat.model_copy(update={"max_tokens": 200}).bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).invoke(talk)
    call = called.tool_calls[0]
    assert call["name"] == "weather" and call["args"]["city"] in ("Bonn", "Ulm"), called
    chat.bind_tools([weather]).invoke([*talk, called, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])])
    responses = ChatOpenAI(base_url=url + "/v1", api_key=KEY, model="tiny", max_tokens=16, use_responses_api=True, max_retries=0)
    first = responses.invoke("hello")
    on = responses.invoke("and?", previous_response_id=first.response_metadata["id"])
    assert on.response_metadata["id"] != first.response_metadata["id"]
    text = OpenAI(base_url=url + "/v1", api_key=KEY, model="tiny", max_tokens=5, max_retries=0).invoke("x")
    assert isinstance(text, str)


def test_llama_index(url):
    import pydantic
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    class Weather(pydantic.BaseModel, extra="forbid"):
        city: Literal["Bonn", "Ulm"]

    options = dict(api_base=url + "/v1", api_key=KEY, model="tiny", is_chat_model=True, is_function_calling_model=True,
                   max_retries=0, temperature=0.5, additional_kwargs={"seed": 3})
    llm = OpenAILike(max_tokens=12, **options)
    talk = [ChatMessage(role="system", content="brief"), ChatMessage(role="user", content="hello")]
    answer = llm.chat(talk)
    assert answer.raw.usage.completion_tokens <= 12, answer
    assert "".join(piece.delta or "" for piece in llm.stream_chat(talk)) == answer.message.content
    assert isinstance(llm.complete("x").text, str)
    wide = OpenAILike(max_tokens=200, **options)
    tool = FunctionTool.from_defaults(fn=lambda city: f"fine in {city}", name="weather", fn_schema=Weather, description="d")
    called = wide.chat_with_tools([tool], user_msg="where?", tool_required=True)
    call = wide.get_tool_calls_from_response(called)[0]
    assert call.tool_name == "weather" and call.tool_kwargs["city"] in ("Bonn", "Ulm"), called
    formed = wide.as_structured_llm(Weather).chat(talk)
    assert formed.raw.city in ("Bonn", "Ulm"), formed


def test_litellm(url):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    schema = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Ulm"]}}, "required": ["city"],
              "additionalProperties": False}
    talk = [{"role": "user", "content": "hello"}]
    for options in (dict(model="openai/tiny", api_base=url + "/v1"), dict(model="anthropic/tiny", api_base=url)):
        options |= dict(api_key=KEY, messages=talk, max_tokens=12, num_retries=0, temperature=0.5)
        answer = litellm.completion(**options)
        assert answer.usage.completion_tokens <= 12, answer
        pieces = list(litellm.completion(stream=True, **options))
        assert pieces[-1].choices[0].finish_reason in ("stop", "length"), pieces[-1]
        tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema}}]
        forced = {"type": "function", "function": {"name": "weather"}}
        called = litellm.completion(**{**options, "max_tokens": 200}, tools=tools, tool_choice=forced)
        arguments = called.choices[0].message.tool_calls[0].function.arguments
        assert json.loads(arguments)["city"] in ("Bonn", "Ulm"), called
    options = dict(model="openai/tiny", api_base=url + "/v1", api_key=KEY, messages=talk, max_tokens=200, num_retries=0)
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema, "strict": True}}
    formed = litellm.completion(response_format=form, **options)
    assert json.loads(formed.choices[0].message.content)["city"] in ("Bonn", "Ulm"), formed
    text = litellm.text_completion(model="text-completion-openai/tiny", api_base=url + "/v1", api_key=KEY, prompt="x",
                                   max_tokens=4)
    assert isinstance(text.choices[0].text, str)


def main():
    ran = 0
    with tempfile.TemporaryDirectory(prefix="instructd-frameworks-") as directory:
        os.environ["INSTRUCTD_TEST_MODEL"] = str(tiny_model.write(pathlib.Path(directory) / "tiny"))
        with instructd.running(REQUIRE_INFERENCE_KEY="true") as server:
            for name, test in [(name, test) for name, test in globals().items() if name.startswith("test_")]:
                try:
                    test(server.url)
                except ModuleNotFoundError as e:
                    print(f"skipped {name}: {e}", flush=True)
                    continue
                print("ok", name, flush=True)
                ran += 1
            assert server.alive()
    if os.environ.get("INSTRUCTD_REQUIRE_FRAMEWORKS") == "1":
        assert ran == 3, f"{ran} of 3 frameworks ran"


if __name__ == "__main__":
    main()
