"""`@mill_asset`: the decorator with the options that all assets share, so that an asset body only calls its stages.

In: the body of an asset, with a parameter `cfg` for its settings. Out: a Dagster asset whose launchpad shows these
settings, and whose body gets them as the dataclass that its stage declares (or as stage -> dataclass).
"""

import datetime
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dagster as dg

from pipeline.defs.run_config import Config, ConfigFile, asset_config
from pipeline.store.store import Stage

Body = Callable[..., dg.MaterializeResult[Any]]
CORES = "cores"  # pool of the steps that use every core; dagster.yaml limits it to one step at a time
OWNER = re.compile(r"team:\w+|[^@\s]+@[^@\s]+\.[^@\s]+")
CORPUS_AGE = (2, 8)  # days until the UI marks an asset as old, and as overdue
PROJECT = "project"  # table of config.toml that applies to all assets
MODEL_AGE = (8, 15)  # the schedules rebuild the corpus every night, and the rest every week


def mill_asset(
    file: ConfigFile,
    *,
    key: str,
    group: str,
    kinds: set[str],
    config: Config,
    code: Iterable[Stage] | str,
    ins: Mapping[str, str] | None = None,
    given: Mapping[str, Any] | None = None,
    description: str | None = None,
    pool: str | None = CORES,
) -> Callable[[Body], dg.AssetsDefinition]:
    """Decorates a function of `context`, `mill`, `cfg` and the handles that the asset reads.

    `key` is the name of the asset, such as pages/web. `config` is the dataclass of its settings (or stage ->
    dataclass), `given` their defaults from models.toml or tasks.toml, `code` the stages whose versions make up the
    code version, `ins` maps parameters to assets with other names.
    """
    warn, fail = (datetime.timedelta(days=days) for days in (CORPUS_AGE if group == "corpus" else MODEL_AGE))
    decorate = dg.asset(
        key=key.split("/"),
        ins={name: dg.AssetIn(asset.split("/")) for name, asset in (ins or {}).items()},
        group_name=group,
        kinds=kinds,
        description=description,
        config_schema=asset_config(key, config, file, given),
        code_version=code if isinstance(code, str) else " ".join(f"{stage.name}-{stage.version}" for stage in code),
        owners=owners(file),
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn),
        pool=pool,
    )
    return lambda body: decorate(_without_cfg(body))


def owners(file: ConfigFile) -> list[str]:
    """`owner` in the table [project] of config.toml. Raises ValueError when Dagster would not accept it."""
    table = file.tables.get(PROJECT, {})
    owner = table.get("owner", "") if isinstance(table, Mapping) and set(table) <= {"owner"} else None
    if not isinstance(owner, str) or (owner and not OWNER.fullmatch(owner)):
        raise ValueError(
            f'{file.path}: [{PROJECT}] is {table!r}, expected one line like owner = "ann@example.org" or'
            ' owner = "team:language_models"'
        )
    return [owner] if owner else []


def _without_cfg(body: Body) -> Body:
    """`body` with the signature that Dagster calls: the parameter `cfg` is read from the context."""
    signature = inspect.signature(body)

    @functools.wraps(body)
    def compute(context: dg.AssetExecutionContext, **given: Any) -> dg.MaterializeResult[Any]:
        return body(context, cfg=context.op_execution_context.op_config, **given)

    parameters = [parameter for name, parameter in signature.parameters.items() if name != "cfg"]
    compute.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    compute.__annotations__ = {name: hint for name, hint in body.__annotations__.items() if name != "cfg"}
    del compute.__wrapped__  # otherwise Dagster would find `cfg` again
    return compute
