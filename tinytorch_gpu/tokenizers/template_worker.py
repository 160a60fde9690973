"""The process that renders one chat template: a task in on stdin, its text or error out on stdout.

It imports nothing of this package, so that it starts quickly, and it limits itself before it looks
at the template: what grows or loops without end ends this process and nothing else.
"""

import json
import sys
from datetime import datetime
from typing import Any

SECONDS, BYTES = 2, 1 << 30
# Far more than a conversation needs.
LONGEST_TEXT = 8_000_000


def limit() -> None:
    """Bound this process's processor time and memory, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's patience is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def environment() -> Any:
    """Return Jinja2's immutable sandbox with what Hugging Face offers to templates."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda pattern: datetime.now().strftime(pattern),
    )
    return made


def rendered(template: str, variables: dict[str, Any]) -> str:
    """Return the template's text; one that grows too long is a ValueError."""
    parts, length = [], 0
    for part in environment().from_string(template).generate(**variables):
        length += len(part)
        if length > LONGEST_TEXT:
            raise ValueError(f"its text grows past {LONGEST_TEXT} characters")
        parts.append(part)
    return "".join(parts)


def main() -> None:
    task = json.load(sys.stdin)
    limit()
    try:
        answer = {"text": rendered(task["template"], task["variables"])}
    except MemoryError:
        answer = {"error": "it takes too much memory"}
    except Exception as error:  # whatever a template can bring about is its own failure
        answer = {"error": (str(error) or type(error).__name__).splitlines()[0][:200]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
