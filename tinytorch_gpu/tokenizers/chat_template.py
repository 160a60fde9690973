"""A model's chat template, run as what it is: a program out of an untrusted file."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("template_worker.py")
# The worker limits its own processor time; this is for systems that have no such limit.
_PATIENCE = 20.0


def render(template: str, **variables: Any) -> str:
    """Return the text of a Jinja2 ``template``; any failure is a ValueError of one line.

    It runs in Jinja2's immutable sandbox with what Hugging Face offers to templates
    (``raise_exception``, ``strftime_now``, ``tojson``, loop controls), in a process of its own with
    little time and memory: no list of forbidden operations could bound what a template computes.
    ``variables`` are plain values. Jinja2 missing is an ImportError.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ImportError(
            "chat templates need Jinja2: pip install 'tinytorch-gpu[demo]', or use raw text"
        )
    task = json.dumps({"template": template, "variables": variables})
    command = [sys.executable, "-P", str(_WORKER)]
    try:
        done = subprocess.run(
            command, input=task.encode(), capture_output=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError("the model's chat template failed: it takes too long") from None
    if done.returncode:
        raise ValueError("the model's chat template failed: it takes too much time or memory")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(f"the model's chat template failed: {answer['error']}")
    return str(answer["text"])
