"""A model's chat template, run as what it is: a program out of an untrusted file."""

import json
from datetime import datetime
from typing import Any

# Far more than a conversation needs, and far less than would hurt.
_LONGEST_TEXT = 8_000_000
_MOST_STEPS = 200_000


def render(template: str, **variables: Any) -> str:
    """Return the text of a Jinja2 ``template``; any failure is a ValueError of one line.

    It runs in Jinja2's immutable sandbox with what Hugging Face offers to templates
    (``raise_exception``, ``strftime_now``, ``tojson``). Loops over ``range``, repeated sequences and
    the length of the result are bounded.
    """
    try:
        import jinja2
    except ImportError:
        raise ImportError(
            "chat templates need Jinja2: pip install 'tinytorch-gpu[demo]', or use raw text"
        ) from None
    try:
        parts, length = [], 0
        for part in _environment().from_string(template).generate(**variables):
            length += len(part)
            if length > _LONGEST_TEXT:
                raise ValueError(f"its text grows past {_LONGEST_TEXT} characters")
            parts.append(part)
        return "".join(parts)
    except (jinja2.TemplateError, ValueError, TypeError, ArithmeticError, LookupError,
            AttributeError, SyntaxError, RecursionError, MemoryError) as error:  # fmt: skip
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the model's chat template failed: {reason}") from None


def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Bounded(ImmutableSandboxedEnvironment):
        """A sandbox in which text cannot be multiplied into gigabytes."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or not all(isinstance(x, int | float) for x in (left, right)):
                size = max((len(x) for x in (left, right) if hasattr(x, "__len__")), default=1)
                times = max((abs(x) for x in (left, right) if isinstance(x, int)), default=1)
                if operator == "**" or size * times > _LONGEST_TEXT:
                    raise SecurityError(f"{operator} makes too much of it")
            return super().call_binop(context, operator, left, right)

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    left = [_MOST_STEPS]

    def bounded_range(*args: int) -> range:
        found = range(*args)
        left[0] -= len(found)
        if left[0] < 0:
            raise SecurityError(f"it loops more than {_MOST_STEPS} times")
        return found

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.filters["tojson"] = tojson
    environment.globals.update(
        range=bounded_range,
        raise_exception=raise_exception,
        strftime_now=lambda pattern: datetime.now().strftime(pattern),
    )
    return environment
