"""Reading sources.toml: what is accepted, and what a mistake says."""

from pathlib import Path

import pytest

from pipeline.stages.collect.sources import FilesSource, PackageSource, read_sources

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


def read(tmp_path: Path, text: str):
    path = tmp_path / "sources.toml"
    path.write_text(text)
    return read_sources(path)


def test_sources_both_kinds_are_read_in_order(tmp_path):
    sources = read(tmp_path, PACKAGE + FILES)
    assert list(sources) == ["manual", "letters"]
    manual, letters = sources.values()
    assert isinstance(manual, PackageSource) and manual.sha256 == HASH and manual.registry == "pypi"
    assert isinstance(letters, FilesSource) and letters.members == ("**/*",)


def test_sources_relative_path_is_below_the_folder_of_the_file(tmp_path):
    assert read(tmp_path, FILES)["letters"].path == str(tmp_path / "letters")


def test_sources_default_file_of_the_project_is_valid():
    sources = read_sources(Path(__file__).parents[3] / "data" / "sources.toml")
    assert list(sources) == ["sqlalchemy-docs", "lxml-docs", "django-docs", "shakespeare", "wikipedia-sample"]
    assert all(source.licence and source.note for source in sources.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PACKAGE.replace('kind = "package"', 'kind = "pakage"'), ["[manual]", "'pakage'", "did you mean `package`?"]),
        (PACKAGE.replace('kind = "package"', ""), ["[manual]", "key `kind` is missing", "package, files"]),
        (PACKAGE.replace("version", "vesion"), ["unknown key `vesion`", "did you mean `version`?", "allowed: kind"]),
        (PACKAGE.replace('licence = "MIT"', ""), ["key `licence` is missing", "needs licence, package"]),
        (PACKAGE.replace('"1.2"', "1.2"), ["version is 1.2, expected a text"]),
        (PACKAGE.replace('["docs/**/*.html"]', '"docs/**"'), ["members is 'docs/**'", "expected a list of texts"]),
        (PACKAGE.replace('["docs/**/*.html"]', "[]"), ["members takes no file"]),
        (PACKAGE.replace('["docs/**/*.html"]', '["!a.txt"]'), ["members takes no file"]),
        (PACKAGE.replace("docs/**", "../docs"), ["lead outside"]),
        (PACKAGE.replace(HASH, HASH[:-1]), ["sha256", "64 hexadecimal digits"]),
        (PACKAGE.replace(HASH, HASH.upper()), ["sha256", "lower case"]),
        (PACKAGE.replace('"sdist"', '"egg"'), ["file is 'egg'", "allowed: sdist, wheel"]),
        (PACKAGE + 'registry = "npm"', ["registry is 'npm'", "allowed: pypi"]),
        (PACKAGE.replace("[manual]", "[My_Manual]"), ["[My_Manual]", "a to z, 0 to 9 and single hyphens"]),
        (PACKAGE.replace("[manual]", '["../manual"]'), ["[../manual]", "a to z"]),
        (FILES.replace("path =", "text_key = 3\npath ="), ["[letters]", "text_key is 3, expected a text"]),
        (FILES + 'media_type = "text/html5"', ["media_type is 'text/html5'", "text/html, text/plain"]),
        ('kind = "files"', ["kind = 'files' stands outside a table"]),
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
