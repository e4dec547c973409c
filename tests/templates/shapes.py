"""Seven shapes of conversations, as clients send them, and what their renderings must say."""

import json


def call(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name"},
                    "days": {"type": "integer"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "Time.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]
USER = {"role": "user", "content": "Weather in Oslo?"}
SYSTEM = {"role": "system", "content": "Be terse."}
FIRST = call("call_Zk81fXyP0aWq", "get_weather", {"city": "Bergen", "days": 2})
SECOND = call("call_Zk82fXyP0aWq", "now", {})
RESULT = {"role": "tool", "tool_call_id": FIRST["id"], "content": "sunny-17"}
OTHER = {"role": "tool", "tool_call_id": SECOND["id"], "content": "noon-12"}

# name: messages, tools, words in their order
SHAPES = {
    "plain": ([USER], None, ["Weather in Oslo?"]),
    "system": ([SYSTEM, USER], None, ["Be terse.", "Weather in Oslo?"]),
    "turns": (
        [
            SYSTEM,
            USER,
            {"role": "assistant", "content": "Which day?"},
            {"role": "user", "content": "Monday."},
        ],
        None,
        ["Be terse.", "Weather in Oslo?", "Which day?", "Monday."],
    ),
    "parts": (
        [
            {"role": "system", "content": parts("Be terse.")},
            {"role": "user", "content": parts("Weather", "in Oslo?")},
        ],
        None,
        ["Be terse.", "Weather", "in Oslo?"],
    ),
    "tools": ([USER], TOOLS, ["get_weather"]),
    "call": (
        [USER, {"role": "assistant", "content": None, "tool_calls": [FIRST]}, RESULT],
        TOOLS,
        ["Weather in Oslo?", "get_weather", "Bergen", "sunny-17"],
    ),
    "parallel": (
        [
            {"role": "developer", "content": "Be terse."},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [FIRST, SECOND]},
            RESULT,
            OTHER,
            {"role": "assistant", "content": "Sunny at noon.", "tool_calls": []},
            {"role": "user", "content": "Thanks."},
        ],
        TOOLS,
        [
            "Be terse.",
            "Weather in Oslo?",
            "get_weather",
            "Bergen",
            "sunny-17",
            "noon-12",
            "Sunny at noon.",
            "Thanks.",
        ],
    ),
}

NO_TOOLS = ("tools", "call", "parallel")
# templates that cannot express a shape; what they cannot do is in docs/templates.md
REFUSED = {
    "HuggingFaceTB-SmolLM3-3B": NO_TOOLS,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": NO_TOOLS,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": NO_TOOLS,
    "deepseek-ai-DeepSeek-V3.1": NO_TOOLS,
    "google-gemma-2-2b-it": NO_TOOLS,
    "llama-cpp-rwkv-world": NO_TOOLS,
    "microsoft-Phi-3.5-mini-instruct": NO_TOOLS,
}
# what is printed as Python has it because the template's authors want that: signatures, and tools as text
PRINTED = {
    "Apriel-1.6-15b-Thinker-fixed": ("{'",),
    "unsloth-Apriel-1.5": ("{'",),
    "CohereForAI-c4ai-command-r-plus-tool_use": ("None",),
}
# the system message stands before the last one of the user
MOVED = ("mistralai-Mistral-Nemo-Instruct-2407",)
