"""The messages of a mailbox file (mbox, RFC 4155), streamed.

In: an open, untrusted file. Out: the bytes of each message, one after the other, without the `From ` line before it
and without the '>' that marks such lines inside a message; None for a message above the limit, and nothing for a file
that does not begin with a `From ` line.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

FROM_LINE = re.compile(rb"From \S{1,500}[^\n]{0,500}\d\d:\d\d")  # an address and a date with its time
MARKED = re.compile(rb"^>(>*From )", re.MULTILINE)
BLANK = (b"\n", b"\r\n")
BLOCK = 1 << 16  # longer lines are read in pieces


def messages(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    held: list[bytes] | None = None  # None before the first message
    n_bytes = 0
    after_blank = True
    while line := stream.readline(BLOCK):
        if after_blank and FROM_LINE.match(line):
            if held is not None:
                yield _message(held, n_bytes, max_bytes)
            held, n_bytes = [], 0
        elif held is None:
            if line in BLANK:
                continue
            return
        else:
            n_bytes += len(line)
            if n_bytes <= max_bytes:
                held.append(line)
            else:
                held.clear()
        after_blank = line in BLANK
    if held is not None:
        yield _message(held, n_bytes, max_bytes)


def _message(lines: list[bytes], n_bytes: int, max_bytes: int) -> bytes | None:
    return None if n_bytes > max_bytes else MARKED.sub(rb"\1", b"".join(lines))
