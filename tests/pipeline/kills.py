"""Functions that kill the worker they run in. They import little, because every worker imports them."""

import os
import signal
from pathlib import Path
from typing import Any


def killed_once(function: Any, mark: Path, item: Any) -> Any:
    """The first worker of a call dies as by the kernel's out-of-memory killer."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return function(item)
    return os.kill(os.getpid(), signal.SIGKILL)


def always_killed(item: Path) -> None:
    if item.name == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
