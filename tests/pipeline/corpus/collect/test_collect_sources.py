"""Reading sources.toml: what is accepted, and what a mistake says."""

from pathlib import Path

import pytest

from pipeline.corpus.collect.sources import FilesSource, PackageSource, read_sources
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
DEBIAN = f"""
[manual]
kind = "package"
registry = "debian"
package = "manual-doc"
version = "1:2.3-4+deb12u5~x"
sha256 = "{HASH}"
members = ["usr/share/doc/**/*.html"]
"""
NPM = f"""
[texts]
kind = "package"
registry = "npm"
package = "@scope/texts"
version = "1.2.3-beta.1"
sha256 = "{HASH}"
members = ["**/*.md"]
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


def test_sources_of_other_registries_have_one_file_a_version(tmp_path):
    manual, texts = read(tmp_path, DEBIAN + NPM).values()
    assert isinstance(manual, PackageSource) and isinstance(texts, PackageSource)
    assert (manual.registry, manual.file, manual.has_top_folder) == ("debian", None, False)
    assert (texts.registry, texts.file, texts.has_top_folder) == ("npm", None, True)
    assert manual.address == "debian://manual-doc/1:2.3-4+deb12u5~x/"
    assert texts.address == "npm://%40scope/texts/1.2.3-beta.1/"


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
        (PACKAGE.replace('kind = "package"', ""), ["[manual]", "key `kind` is missing", "package, files"]),
        (PACKAGE.replace("version", "vesion"), ["unknown key `vesion`", "did you mean `version`?", "allowed: kind"]),
        (
            PACKAGE.replace('version = "1.2"', ""),
            ["key `version` is missing", "needs package, version, sha256, members"],
        ),
        (PACKAGE.replace('"MIT"', '""'), ["licence is '', expected a text"]),
        (PACKAGE.replace('"1.2"', "1.2"), ["version is 1.2, expected a text"]),
        (PACKAGE.replace('["docs/**/*.html"]', '"docs/**"'), ["members is 'docs/**'", "expected a list of texts"]),
        (PACKAGE.replace('["docs/**/*.html"]', "[]"), ["members takes no file"]),
        (PACKAGE.replace('["docs/**/*.html"]', '["!a.txt"]'), ["members takes no file"]),
        (PACKAGE.replace("docs/**", "../docs"), ["lead outside"]),
        (PACKAGE.replace(HASH, HASH[:-1]), ["sha256", "64 hexadecimal digits"]),
        (PACKAGE.replace(HASH, HASH.upper()), ["sha256", "lower case"]),
        (PACKAGE.replace('"sdist"', '"egg"'), ["file is 'egg'", "allowed: sdist, wheel"]),
        (PACKAGE.replace('file = "sdist"', ""), ["key `file` is missing", 'file = "sdist" or file = "wheel"']),
        (
            PACKAGE + 'registry = "deban"',
            ["registry is 'deban'", "allowed: pypi, npm, debian", "did you mean `debian`"],
        ),
        (
            DEBIAN + 'file = "wheel"',
            ["file is 'wheel'", 'registry "debian" has one file', "leave the key `file` out"],
        ),
        (DEBIAN.replace("manual-doc", "Manual"), ["package is 'Manual'", "name of a package of registry debian"]),
        (DEBIAN.replace("1:2.3-4+deb12u5~x", "latest"), ["version is 'latest'", "registry debian, such as 1:1.2.3"]),
        (NPM.replace("@scope/texts", "../texts"), ["package is '../texts'", "registry npm"]),
        (NPM.replace("1.2.3-beta.1", "^1.2.0"), ["version is '^1.2.0'", "registry npm, such as 1.2.3"]),
        (FILES + 'rules = ["gopher_qualiti"]', ["[letters]", "gopher_qualiti", "did you mean 'gopher_quality'"]),
        (FILES + 'rules = "c4"', ["rules is 'c4'", "expected a list of texts", "[]"]),
        (FILES + 'pii = ["emial"]', ["[letters]", "'emial'", "did you mean 'email'"]),
        (FILES + 'languages = ["german"]', ["[letters]", "'german'", "ISO 639-1"]),
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
