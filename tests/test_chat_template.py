"""Chat templates: what real ones need works, and a hostile one ends in a ValueError."""

import time
from datetime import datetime
from pathlib import Path

import pytest

from tinytorch_gpu.checkpoint import open_model
from tinytorch_gpu.tokenizers import Tokenizer
from tinytorch_gpu.tokenizers.chat_template import render

resource = pytest.importorskip("resource", reason="the worker's limits are those of POSIX")
pytest.importorskip("jinja2", reason="chat templates are Jinja2")

MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Thanks 👍"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
# Recorded from transformers' apply_chat_template with the same model file.
TALK = (
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    "<|im_start|>user\nThanks 👍<|im_end|>\n"
)
DEFAULT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
)


def test_smollm2_template_is_that_of_transformers(smollm2: Path) -> None:
    tokenizer = open_model(smollm2).tokenizer()
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False) == DEFAULT + TALK
    asked = tokenizer.apply_chat_template([SYSTEM, *MESSAGES])
    brief = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert asked == brief + TALK + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ ''|attr('__class__')|attr('__mro__')|first|attr('x')() }}",
        "{{ '{0.__class__.__mro__}'.format('')[999] }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    messages = list(MESSAGES)
    with pytest.raises(ValueError, match="chat template failed"):
        render(template, messages=messages)
    assert messages == MESSAGES


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 1000000000 * [0] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a'.ljust(9000000000) }}",
        "{{ '%9000000000s' % 1 }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ range(99999999999999999999)|length }}",
        "{% set s = 'a' * 1000000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
        "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s=9) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_bombs_are_defused(template: str) -> None:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="chat template failed"):
        render(template)
    # The worker's own limits end it: 2 s of processor time, and none of our memory.
    assert time.monotonic() - start < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "Expected an expression"),
        ("{% for x in y %}", "Unexpected end of template"),
        ("{% break %}", "outside loop"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "recursion"),
        ("{{ missing.field }}", "'missing' is undefined"),
        ("{{ messages[99].role }}", "."),
        ("{{ none + 1 }}", "unsupported operand"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'x'|no_such_filter }}", "no_such_filter"),
        ("{{ missing|tojson }}", "Undefined"),
        ("{{ raise_exception('roles must alternate\\nsecond line') }}", "roles must alternate"),
        ("{{ raise_exception('') }}", "."),
    ],
    ids=range(12),
)
def test_a_failure_is_one_line(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"chat template failed: .*{reason}") as caught:
        render(template, messages=MESSAGES)
    assert "\n" not in str(caught.value)
    assert "second line" not in str(caught.value)


def test_what_hugging_face_offers_to_templates() -> None:
    assert render('{{ {"k": "é👍<b>"}|tojson }}') == '{"k": "é👍<b>"}'
    assert render('{{ ["é"]|tojson(ensure_ascii=true) }}') == '["\\u00e9"]'
    assert render("{{ {'a': 1}|tojson(indent=2) }}") == '{\n  "a": 1\n}'
    year = datetime.now().year
    assert int(render("{{ strftime_now('%Y') }}")) in (year, year + 1)
    loop = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}"
    assert render(loop + "{% break %}{% endif %}{{ i }}{% endfor %}") == "023"
    # Blocks leave no blank lines behind: templates are written with that in mind.
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"
    assert render("{{ missing }}{{ 3 * 4 }}{{ 'ab' * 3 }}") == "12ababab"


def test_variables_of_a_model(tiny_gguf: Path) -> None:
    ours = open_model(tiny_gguf).tokenizer()
    ours.chat_template = "{{ bos_token }}|{{ eos_token }}|{{ messages|length }}"
    assert ours.apply_chat_template(MESSAGES) == "<|im_start|>|<|im_end|>|3"
    bare = Tokenizer(ours.backend, chat_template="[{{ bos_token }}{{ eos_token }}]")
    assert bare.apply_chat_template(MESSAGES) == "[]"


def test_no_template(tiny_gguf: Path) -> None:
    backend = open_model(tiny_gguf).tokenizer().backend
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(backend).apply_chat_template(MESSAGES)
