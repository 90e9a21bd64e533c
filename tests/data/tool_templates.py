"""Chat templates with tools, of our own writing in the manner of five families of models, and rows to render with them.

Each is a template and the special tokens that it needs; `<tool_call>` is plain text in some families.
"""

# ruff: noqa: E501 - templates and rows are read more easily on one line

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from veritune.records import Message, Row, ToolCall

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": 'Height of the tide, "in metres".',
            "parameters": {
                "type": "object",
                "properties": {"harbour": {"type": "string"}, "hour": {"type": "integer"}},
            },
        },
    },
)


@dataclass(frozen=True)
class ToolTemplate:
    """A template with tools, its special tokens, the token that ends plain answers, and the one that ends calls."""

    text: str
    specials: tuple[str, ...]
    end: str = "<|im_end|>"
    call_end: str = "<|im_end|>"


_JSON_CALLS = (
    "{%- for call in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- if not loop.last %}{{ '\n' }}{%- endif %}{%- endfor %}"
)

QWEN = ToolTemplate(
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}# Tools\n<tools>"
    "{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}\n</tools>{{ '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}{{ '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{{ '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}"
    "{%- if m.tool_calls %}{%- if m.content %}{{ '\n' }}{%- endif %}" + _JSON_CALLS + "{%- endif %}{{ '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{%- endif %}"
    "{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}",
    (),
)

HERMES = ToolTemplate(
    "{{ bos_token }}{%- if tools %}<|im_start|>system\nYou may call functions. <tools>"
    "{%- for tool in tools %}{{ tool.function | tojson }}{%- endfor %}</tools>"
    "{%- if messages[0].role == 'system' %}{{ '\n' + messages[0].content }}{%- endif %}{{ '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{{ '<|im_start|>tool\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}"
    "{%- if m.tool_calls %}{%- for call in m.tool_calls %}{{ '<tool_call>\n' }}"
    "{{ call.function | tojson }}{{ '\n</tool_call>' }}{%- endfor %}{%- endif %}{{ '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}",
    ("<tool_call>", "</tool_call>"),
)

LLAMA = ToolTemplate(
    "{{ bos_token }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "<|start_header_id|>system<|end_header_id|>\n{%- if tools %}Environment: ipython\n{%- endif %}{{ system }}<|eot_id|>"
    "{%- if tools %}{%- set first = messages[0].content | trim %}{%- set messages = messages[1:] %}"
    "<|start_header_id|>user<|end_header_id|>\nGiven these functions:\n"
    "{%- for tool in tools %}{{ tool | tojson(indent=4) }}\n{%- endfor %}{{ first }}<|eot_id|>{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' or m.role == 'ipython' %}<|start_header_id|>ipython<|end_header_id|>\n"
    "{{ m.content | tojson }}<|eot_id|>"
    "{%- elif m.tool_calls %}{%- if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eom_id|>'
    "{%- else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n{{ m.content | trim }}<|eot_id|>{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}{%- endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    "<|eot_id|>",
    "<|eom_id|>",
)

MISTRAL = ToolTemplate(
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}"
    "{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{%- set users = loop_messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{%- for m in loop_messages %}"
    "{%- if m.role == 'user' %}"
    "{%- if tools and m == users[-1] %}[AVAILABLE_TOOLS][{%- for tool in tools %}{{ tool.function | tojson }}{%- endfor %}]"
    "[/AVAILABLE_TOOLS]{%- endif %}"
    "[INST]{%- if loop.last and system is defined %}{{ system + '\n\n' + m.content }}{%- else %}{{ m.content }}{%- endif %}[/INST]"
    "{%- elif m.tool_calls %}[TOOL_CALLS][{%- for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{ call.function | tojson }}{%- if not loop.last %}, {% endif %}{%- endfor %}]{{ eos_token }}"
    "{%- elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{%- elif m.role == 'tool' %}[TOOL_RESULTS]{\"content\": {{ m.content }}}[/TOOL_RESULTS]{%- endif %}{%- endfor %}",
    (
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
)

XML = ToolTemplate(
    "{%- if tools %}<|im_start|>system\n{%- for tool in tools %}<function>{{ tool.function.name }}: "
    "{{ tool.function.description }}</function>{%- endfor %}<|im_end|>{{ '\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}<function={{ call.function.name }}>"
    "{%- for key, value in call.function.arguments.items() %}<parameter={{ key }}>\n{{ value }}\n</parameter>{%- endfor %}"
    "</function>{%- endfor %}{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}",
    (),
)

TEMPLATES = {"qwen": QWEN, "hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "xml": XML}


def tokenizer_with(base: Any, template: ToolTemplate) -> Any:
    """A copy of a tokenizer with a template and the special tokens that it needs."""
    other = copy.deepcopy(base)
    other.add_special_tokens({"additional_special_tokens": list(template.specials), "bos_token": "<|endoftext|>"})
    other.chat_template = template.text
    return other


def call(harbour: str, hour: int = 7, call_id: str = "abcdef123") -> ToolCall:
    return ToolCall("tide", f'{{"harbour": "{harbour}", "hour": {hour}}}', call_id)


def tool_row(row_id: str = "r", harbour: str = "Arnau", *, system: str | None = None) -> Row:
    """A question, a call, its result and the answer."""
    turns = (
        *((Message("system", system),) if system else ()),
        Message("user", f"How high is the tide in {harbour}?"),
        Message("assistant", "", tool_calls=(call(harbour),)),
        Message("tool", '{"height": "3.1 m"}', tool_call_id="abcdef123", name="tide"),
        Message("assistant", f"It is 3.1 m in {harbour}."),
    )
    return Row(row_id, turns, "tools.jsonl", 1, tools=TOOLS)
