"""Reading sources.toml: what is accepted, and what a mistake says."""

from pathlib import Path

import pytest

from pipeline.corpus.collect.sources import FilesSource, PackageSource, UrlSource, read_sources
from pipeline.store.store import literals

HASH = "0123456789abcdef" * 4
PACKAGE = f"""
[manual]
kind = "package"
package = "example"
version = "1.2"
file = "sdist"
sha256 = "{HASH}"
members = ["docs/**/*.html"]
licence = "MIT"
"""
FILES = """
[letters]
kind = "files"
path = "letters"
licence = "mine"
"""
URL = f"""
[texts]
kind = "url"
urls = ["https://example.org/a/texts-1.0.zip#sha256={HASH}"]
members = ["**/*.md"]
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "sources.toml"
    path.write_text(text)
    return read_sources(path)


def test_sources_of_every_kind_are_read_in_order(tmp_path):
    sources = read(tmp_path, PACKAGE + FILES + URL)
    assert list(sources) == ["manual", "letters", "texts"]
    manual, letters, texts = sources.values()
    assert isinstance(manual, PackageSource) and manual.sha256 == HASH and manual.file == "sdist"
    assert isinstance(texts, UrlSource) and texts.urls == (f"https://example.org/a/texts-1.0.zip#sha256={HASH}",)
    assert isinstance(letters, FilesSource) and letters.members == ("**/*",)


def test_sources_say_nothing_of_licence_and_filter_unless_they_do(tmp_path):
    silent = read(tmp_path, FILES.replace('licence = "mine"', ""))["letters"]
    assert (silent.licence, silent.languages, silent.rules, silent.pii) == (None, None, None, None)
    text = FILES + 'languages = ["de", "fr"]\nrules = ["c4", "fineweb"]\npii = []'
    said = read(tmp_path, text)["letters"]
    assert (said.languages, said.rules, said.pii) == (("de", "fr"), ("c4", "fineweb"), ())


def test_sources_weight_is_one_unless_said_and_no_part_of_what_is_collected(tmp_path):
    silent, twice = (read(tmp_path, FILES + text)["letters"] for text in ("", "weight = 2"))
    assert (silent.weight, twice.weight) == (1.0, 2.0)
    assert literals(silent) == literals(twice)


@pytest.mark.parametrize("value", ["-0.1", "1001", "nan", "inf", '"2"', "true"])
def test_sources_weight_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"\[letters\]: weight is .*, expected a number"):
        read(tmp_path, FILES + f"weight = {value}")


def test_sources_rules_for_the_filter_are_no_part_of_what_is_collected(tmp_path):
    plain = read(tmp_path, FILES)["letters"]
    judged = read(tmp_path, FILES + 'rules = ["c4"]\nlanguages = ["de"]\npii = ["email"]')["letters"]
    assert literals(plain) == literals(judged) and plain != judged


def test_sources_relative_path_is_below_the_folder_of_the_file(tmp_path):
    assert read(tmp_path, FILES)["letters"].path == str(tmp_path / "letters")


def test_sources_default_file_of_the_project_is_valid():
    sources = read_sources(Path(__file__).parents[4] / "data" / "sources.toml")
    assert list(sources) == ["sqlalchemy-docs", "lxml-docs", "django-docs", "shakespeare", "wikipedia-sample"]
    assert all(source.licence and source.note for source in sources.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PACKAGE.replace('kind = "package"', 'kind = "pakage"'), ["[manual]", "'pakage'", "did you mean `package`?"]),
        (PACKAGE.replace('kind = "package"', ""), ["[manual]", "key `kind` is missing", "package, files, url"]),
        (PACKAGE.replace("version", "vesion"), ["unknown key `vesion`", "did you mean `version`?", "Allowed: "]),
        (
            PACKAGE.replace('version = "1.2"', ""),
            ["key `version` is missing", "required: members, package, version, file, sha256"],
        ),
        (PACKAGE.replace('"MIT"', '""'), ["licence is '', expected a text"]),
        (PACKAGE.replace('"1.2"', "1.2"), ["version is 1.2, expected a text"]),
        (PACKAGE.replace('["docs/**/*.html"]', '"docs/**"'), ["members is 'docs/**'", "expected a list of texts"]),
        (PACKAGE.replace('["docs/**/*.html"]', "[]"), ["members matches no file"]),
        (PACKAGE.replace('["docs/**/*.html"]', '["!a.txt"]'), ["members matches no file"]),
        (PACKAGE.replace("docs/**", "../docs"), ["lead out of the source"]),
        (PACKAGE.replace(HASH, HASH[:-1]), ["sha256", "64 hexadecimal digits"]),
        (PACKAGE.replace(HASH, HASH.upper()), ["sha256", "lower case"]),
        (PACKAGE.replace('"sdist"', '"egg"'), ["file is 'egg'", "expected one of sdist, wheel"]),
        (PACKAGE.replace('file = "sdist"', ""), ["key `file` is missing"]),
        (PACKAGE.replace('"example"', '"../example"'), ["package is '../example'", "name of a package"]),
        (PACKAGE.replace('"1.2"', '">=1.2"'), ["version is '>=1.2'", "one exact version, such as 1.2.3"]),
        (
            URL.replace(f"#sha256={HASH}", ""),
            ["texts-1.0.zip' has no sha256", "`sha256sum FILE` prints it"],
        ),
        (URL.replace(HASH, HASH[1:]), ["texts-1.0.zip': sha256 is", "64 hexadecimal digits"]),
        (URL.replace("https://", "ftp://"), ["does not begin with http://, https:// or file://"]),
        (URL.replace("https://example.org/", "/"), ["does not begin with http://, https:// or file://"]),
        (URL.replace("https://example.org", "file://example.org"), ["is on another machine"]),
        (URL.replace("https://example.org", "https://"), ["has no host"]),
        (URL.replace("example.org/a/texts-1.0.zip", "example.org/a/"), ["does not end in the name of a file"]),
        (URL.replace("example.org/a/texts-1.0.zip", "[::1/a"), ["'https://[::1/a': Invalid IPv6"]),
        (URL.replace("example.org", "me:secret@example.org"), ["of example.org contains a user name", "~/.netrc"]),
        (URL.replace("urls = [", "urls = []  # ["), ["urls is empty", "#sha256="]),
        (URL + "max_download_mb = 0", ["max_download_mb is 0, expected a number above 0"]),
        (FILES + 'rules = ["gopher_qualiti"]', ["[letters]", "gopher_qualiti", "did you mean `gopher_quality`"]),
        (FILES + 'rules = "c4"', ["rules is 'c4'", "expected a list with any of gopher_quality"]),
        (FILES + 'pii = ["emial"]', ["[letters]", "'emial'", "did you mean `email`"]),
        (FILES + 'languages = ["german"]', ["[letters]", "'german'", "no language that can be detected"]),
        (PACKAGE.replace("[manual]", "[My_Manual]"), ["[My_Manual]", "a to z, 0 to 9 and single hyphens"]),
        (PACKAGE.replace("[manual]", '["../manual"]'), ["[../manual]", "a to z"]),
        (FILES.replace("path =", "text_key = 3\npath ="), ["[letters]", "text_key is 3, expected a text"]),
        (FILES + 'media_type = "text/html5"', ["media_type is 'text/html5'", "text/html, text/plain"]),
        ('kind = "files"', ["kind = 'files' is outside a table"]),
        ("[letters\n", ["not valid TOML"]),
        ("# nothing yet\n", ["declares no source"]),
    ],
)
def test_sources_mistake_names_file_table_key_and_what_is_allowed(tmp_path, text, expected):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    for part in [str(tmp_path / "sources.toml"), *expected]:
        assert part in str(caught.value)


def test_sources_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sources.toml does not exist"):
        read_sources(tmp_path / "sources.toml")
