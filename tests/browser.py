"""The browser of the tests: Debian's chromium, which is driven by playwright. Tests without it are skipped, but never
in CI."""

from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
QUIET_BROWSER = [  # else it looks for Google's hosts all the time
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
