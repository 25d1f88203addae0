"""Which version of a registered model is to be served, and its files.

In: the name of a registered model, and an alias or the number of a version. Out: MLflow's object of the version, or
its folder, downloaded. A version that is not there is an error that says what is.
"""

import functools
from pathlib import Path
from typing import Any

from pipeline.store.layout import Layout
from pipeline.tracking.logged_models import registered_models, versions_of
from pipeline.tracking.refusals import is_missing
from pipeline.tracking.server import has_database, new_client, shown_uri, tracking_uri, unreachable


@functools.cache
def client_of(layout: Layout) -> Any:
    """One client for the many questions of a server that looks for new versions."""
    return new_client(layout)


def is_registered(layout: Layout, name: str) -> bool:
    """Raises OSError when the server cannot be asked."""
    if not has_database(layout):
        return False
    try:
        return bool(versions_of(client_of(layout), name))
    except Exception as error:
        raise unreachable(layout, error) from error


def version_of(layout: Layout, name: str, alias: str) -> Any:
    """Raises ValueError when there is no such model, alias or version, OSError when the server does not answer."""
    if not has_database(layout):
        raise ValueError(f"{name}@{alias}: MLflow at {shown_uri(layout)} has no database yet; train a task first")
    try:
        client = client_of(layout)
        if alias.isdecimal():
            return client.get_model_version(name, alias)
        return client.get_model_version_by_alias(name, alias)
    except Exception as error:
        if not _is_absent(error):
            raise unreachable(layout, error) from error
        raise ValueError(_what_is_there(layout, name, alias)) from error


def _is_absent(error: Exception) -> bool:
    return is_missing(error) or getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def _what_is_there(layout: Layout, name: str, alias: str) -> str:
    client = client_of(layout)
    where = f"MLflow at {shown_uri(layout)}"
    versions = versions_of(client, name)
    if not versions:
        names = ", ".join(sorted(one.name for one in registered_models(client))) or "none"
        return f"{where} has no registered model {name!r}; it has {names}"
    aliases = client.get_registered_model(name).aliases
    named = ", ".join(f"@{one} (version {aliases[one]})" for one in sorted(aliases)) or "no alias"
    numbers = ", ".join(f"@{one.version}" for one in versions[:5])
    what = "version" if alias.isdecimal() else "alias"
    return f"{name} has no {what} {alias!r}; it has {named}, and the versions {numbers}"


def downloaded(layout: Layout, version: Any, folder: str) -> Path:
    """The files of a version, in `folder`."""
    from mlflow.artifacts import download_artifacts

    place = client_of(layout).get_model_version_download_uri(version.name, version.version)
    return Path(download_artifacts(place, dst_path=folder, tracking_uri=tracking_uri(layout)))
