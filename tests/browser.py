"""A page in a headless browser; without one tests skip and say so, except in CI."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_PROBE = "<script>document.title = document.documentElement.scrollWidth</script></body>"


def width_shown(text: str, width: int, folder: Path) -> tuple[int, str]:
    """How wide the page ``text`` is in a window of ``width`` pixels (500 at least), and what the browser said."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        if os.environ.get("CI"):
            pytest.fail("no browser: .ci/run installs chromium")
        pytest.skip("no Chromium to look at the page with")
    file = folder / "page.html"
    file.write_text(text.replace("</body>", _PROBE), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={folder / 'profile'}",
         f"--window-size={width},900", "--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(\d+)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    return int(title[1]), done.stderr
