"""What tests of collecting share: the pages and reasons that one file gives."""

import io

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.formats import Found, Note, Refused, read_member
from pipeline.corpus.collect.members import Member

MB = 1_000_000


def read(name: str, content: bytes, *, max_bytes: int = MB, **keys) -> list[Found | Refused]:
    source = FilesSource(name="s", licence="mine", path="/", **keys)
    items = read_member(Member(name, lambda: io.BytesIO(content)), f"file:///{name}", source, max_bytes)
    return [item for item in items if not isinstance(item, Note)]


def reasons(items: list[Found | Refused]) -> list[str]:
    return [item.reason if isinstance(item, Refused) else "found" for item in items]
