"""The data card names the origin of every kind of source, from what a record contains of it."""

import pytest

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.url import UrlSource
from pipeline.corpus.report.data_card import origin_of
from pipeline.store.store import literals

HASH = "0123456789ab" + 52 * "0"


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        (
            PackageSource(
                name="docs", package="lxml", version="6.1.3", file="sdist", sha256=HASH, members=("*.html",)
            ),
            "package lxml 6.1.3, sha256 0123456789ab",
        ),
        (
            UrlSource(name="docs", urls=(f"https://example.org/docs.zip#sha256={HASH}",)),
            "https://example.org/docs.zip",
        ),
        (FilesSource(name="docs", path="/texts"), "files of the person who collected them"),
    ],
)
def test_origin_of_every_kind_of_source_is_named(source, origin):
    """The card of a corpus with a package failed when the key `registry` went."""
    assert origin_of(literals(source)).strip("`") == origin
