"""A file that is no page of a source although it is there: which glob leaves it out."""

import zipfile
from hashlib import sha256

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.left_out import left_out
from pipeline.corpus.collect.url import UrlSource, fetch_pinned, pinned


def test_left_out_file_of_a_folder_is_named_with_its_glob(tmp_path):
    """trace said of a file that `members` excludes what it says of one that never existed."""
    for name in ("drafts/old.md", "drafts/new.md", "notes.txt", "kept.md", ".hidden/a.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# x")
    sources = [
        FilesSource(name="gone", path="/nowhere"),
        FilesSource(name="notes", path=str(tmp_path), members=("**/*.md", "!drafts/**")),
    ]
    for query in ("drafts/old.md", "./drafts/old.md", str(tmp_path / "drafts/old.md"), "old.md"):
        (sentence,) = left_out(sources, tmp_path, query)
        assert sentence.endswith(
            'drafts/old.md is left out of source `notes` by members: the glob "!drafts/**" excludes it'
        )
    (sentence,) = left_out(sources, tmp_path, "notes.txt")
    assert sentence.endswith("by members: none of its globs matches it (**/*.md)")
    (sentence,) = left_out(sources, tmp_path, ".hidden/a.md")
    assert "begins with a dot" in sentence
    assert left_out(sources, tmp_path, "kept.md") == left_out(sources, tmp_path, "never.md") == []
    assert left_out(sources, tmp_path, "") == []


def test_left_out_file_of_a_fetched_archive_is_found_without_a_download(tmp_path):
    path = tmp_path / "texts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/old text.md", "# x")
    url = f"{path.as_uri()}#sha256={sha256(path.read_bytes()).hexdigest()}"
    source = UrlSource(name="texts", urls=(url,), members=("**/*.html",))
    cache = tmp_path / "cache"
    assert left_out([source], cache, "a/old text.md") == []
    fetch_pinned(pinned(url), cache, 1.0)
    (sentence,) = left_out([source], cache, "old text.md")
    assert "texts.zip!/a/old%20text.md is left out of source `texts`" in sentence
