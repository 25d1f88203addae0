"""Shared by all tests: warnings of other people's libraries that are not ours to mend."""

FOREIGN_WARNINGS = (
    "ignore:The ``noload`` loader strategy is deprecated",  # MLflow 3.17 under SQLAlchemy 2.1
)


def pytest_configure(config):
    for line in FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
