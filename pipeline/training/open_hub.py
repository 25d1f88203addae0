"""Weights from a Hugging Face repository at a revision; nothing of it is executed.

In: the name of a repository, a commit, and the files that were pinned. Out: each file as <cache>/<sha256>/<name>, so
that a file that is there needs no network. The address (HF_ENDPOINT) and the token (HF_TOKEN, or that of
`hf auth login`) are those of huggingface_hub. Downloads are our own (corpus/collect/download.py): they continue after
a kill, which those of huggingface_hub 2 do not, and send the token to the hub only, not to the servers that it
redirects to.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pipeline.corpus.collect.download import BLOCK, WAITS, answered, cached_file, download, fetched, sha256_of, tried
from pipeline.corpus.collect.source import Progress
from pipeline.store.errors import DiskFull, SourceUnavailable
from pipeline.store.settings import Text, did_you_mean
from pipeline.store.shards import link_or_copy
from pipeline.training.model_files import LARGEST_TEXT, is_weights, names_in_folder, pickles_among, useful
from pipeline.training.open_config import OpenConfig

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_LISTED = 50_000_000  # bytes of the list of files
MOST_SHOWN = 12  # names in a message


@dataclass(frozen=True, slots=True)
class HubFile:
    n_bytes: int
    sha256: str | None  # None for a small file, of which the hub gives no sha256


@dataclass(frozen=True, slots=True)
class HubListing:
    files: Mapping[str, HubFile]
    n_parameters: int  # of the safetensors or else the GGUF; 0 where the hub has not counted them


@dataclass(frozen=True, kw_only=True, slots=True)
class HubWeights(OpenConfig):
    """Files of a Hugging Face repository."""

    key: ClassVar[str] = "huggingface"

    huggingface: Annotated[Text, "Repository of the Hugging Face hub (or of HF_ENDPOINT), for instance org/model."]
    revision: Annotated[Text, "Commit of the repository, 40 hexadecimal digits."]

    def __post_init__(self) -> None:
        OpenConfig.__post_init__(self)
        if not REPOSITORY.fullmatch(self.huggingface) or ".." in self.huggingface:
            raise ValueError(f"huggingface is {self.huggingface!r}, expected a repository such as org/model")
        if not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"revision is {self.revision!r}, expected a commit of 40 hexadecimal digits, because a branch or tag"
                " may change; the page of the repository shows it under Files, History"
            )

    def origin(self) -> str:
        return f"hf://{self.huggingface}@{self.revision}"

    def downloads(self) -> tuple[str, ...]:
        return tuple(self.files.values())

    def gather(self, folder: Path, cache: Path, progress: Progress) -> None:
        paths = {path: cached_file(cache / sha256, sha256) for path, sha256 in self.files.items()}
        if not all(paths.values()):
            paths = self._downloaded(cache, progress)
        for path, name in names_in_folder(self.files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(paths[path], folder / name)  # type: ignore[arg-type]

    def found(self, cache: Path, progress: Progress) -> dict[str, str]:
        """The sha256 of large files is that of the hub; small ones are downloaded."""
        with Hub(self.huggingface, self.revision) as hub:
            listed = hub.listing().files
            paths = useful(listed)
            if not paths and (pickles := pickles_among(listed)):
                raise ValueError(
                    f"{self.huggingface} has only pickles ({pickles[0]}), which can run code when they are opened and"
                    " are never read; choose a repository with safetensors or GGUF files"
                )
            return {path: listed[path].sha256 or hub.small_file_sha256(path, listed[path], cache) for path in paths}

    def _downloaded(self, cache: Path, progress: Progress) -> dict[str, Path]:
        with Hub(self.huggingface, self.revision) as hub:
            listing = hub.listing()
            _check_listed(self.files, listing.files, self.origin())
            _check_memory(self.files, listing, self.origin())
            _check_disk(self.files, listing, cache)
            return {path: hub.fetched(path, sha256, cache, progress) for path, sha256 in self.files.items()}


class Hub:
    """One revision of a repository, and the connection to it."""

    def __init__(self, repository: str, revision: str):
        from huggingface_hub import constants, get_token
        from requests import Session

        self.repository, self.revision = repository, revision
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.is_offline = constants.is_offline_mode()
        token = get_token()
        self.token = {"Authorization": f"Bearer {token}"} if token else {}
        self.session: Session = Session()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *error: object) -> None:
        self.session.close()

    def listing(self) -> HubListing:
        """All files of the revision, by path."""
        address = f"{self.endpoint}/api/models/{self.repository}/revision/{self.revision}?blobs=true"
        return _listing_in(self._tried(lambda: self._content(address), "list of files"), address)

    def fetched(self, path: str, sha256: str, cache: Path, progress: Progress) -> Path:
        """The file in the cache, downloaded if it is not there."""
        name = PurePosixPath(path).name
        return fetched(cache / sha256, name, sha256, lambda part: self._download(path, part, progress))

    def small_file_sha256(self, path: str, file: HubFile, cache: Path) -> str:
        if file.n_bytes > LARGEST_TEXT:
            raise ValueError(f"{path} of {self.repository} has {file.n_bytes / 1e6:,.0f} MB and no sha256 at the hub")
        part = cache / f".{self.revision}.{os.getpid()}.part"
        cache.mkdir(parents=True, exist_ok=True)
        try:
            self._download(path, part, lambda done, total: None)
            return sha256_of(part)
        finally:
            part.unlink(missing_ok=True)

    def _download(self, path: str, part: Path, progress: Progress) -> None:
        from huggingface_hub import hf_hub_url

        address = hf_hub_url(self.repository, path, revision=self.revision, endpoint=self.endpoint)
        write = partial(download, self.session, address, part, progress, own_headers=self.token)
        self._tried(write, f"file {path}")

    def _content(self, address: str) -> bytes:
        content = bytearray()
        with answered(self.session, address, {}, self.token) as response:
            response.raise_for_status()
            for block in response.iter_content(BLOCK):
                content += block
                if len(content) > MOST_LISTED:
                    raise ValueError(f"{address}: the list of files is larger than {MOST_LISTED / 1e6:g} MB")
        return bytes(content)

    def _tried(self, attempt: Any, what: str) -> Any:
        """The result of `attempt`, which is tried several times; a refusal of the hub becomes advice."""
        import requests

        if self.is_offline:
            raise SourceUnavailable(
                f"the {what} of {self.repository} is not in the cache, and HF_HUB_OFFLINE forbids the download;"
                " unset it"
            )

        def checked() -> Any:
            try:
                return attempt()
            except requests.HTTPError as error:
                if error.response is not None and (advice := self._refusal(error.response.status_code, what)):
                    raise advice from None
                raise

        advice = f"check the network and HF_ENDPOINT (now {self.endpoint}) and run again: what was downloaded is kept"
        return tried(checked, f"the {what} of {self.repository}", advice=advice, waits=WAITS)

    def _refusal(self, status: int, what: str) -> Exception | None:
        page = f"{self.endpoint}/{self.repository}"
        if status == 401:
            state = "the token in HF_TOKEN or of `hf auth login` is not accepted" if self.token else "no token is set"
            return SourceUnavailable(
                f"{page} answered 401 for the {what}: it does not exist or needs a login, and {state}; check the"
                " name, or set HF_TOKEN to a token of an account that may read it"
            )
        if status == 403:
            whose = "the account of your token" if self.token else "an account whose token is in HF_TOKEN"
            return SourceUnavailable(
                f"{page} answered 403 for the {what}: access needs terms that are accepted on that page by {whose}"
            )
        if status == 404:
            return ValueError(
                f"{page} has no {what} at the revision {self.revision} (404); check the repository and the commit"
            )
        return None


def _listing_in(content: bytes, address: str) -> HubListing:
    """The answer of the hub's API, which is not trusted to have any form."""
    try:
        answer = json.loads(content)
        files = {
            str(one["rfilename"]): HubFile(int(one.get("size") or 0), (one.get("lfs") or {}).get("sha256"))
            for one in answer["siblings"]
        }
        counted = answer.get("safetensors") or answer.get("gguf") or {}
        return HubListing(files, int(counted.get("total") or 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceUnavailable(
            f"{address} did not answer with the list of files of a repository; check HF_ENDPOINT"
        ) from error


def _check_listed(files: Mapping[str, str], listed: Mapping[str, HubFile], where: str) -> None:
    """Refuses before a download what cannot succeed: a file that is not there, or has another sha256."""
    for path, sha256 in files.items():
        if path not in listed:
            there = sorted(useful(listed) or listed)[:MOST_SHOWN]
            raise ValueError(
                f"{where} has no file {path}{did_you_mean(path, listed)}; it contains {', '.join(there)}"
            )
        if (got := listed[path].sha256) not in (None, sha256):
            raise ValueError(
                f"{path} of {where} has sha256 {got}, but {sha256} is expected; nothing was downloaded: find out why"
                " before you change the table files"
            )


def _check_memory(files: Mapping[str, str], listing: HubListing, where: str) -> None:
    """Refuses before a download a model that cannot be used here: it has float32 weights after its import."""
    from model.network.size_check import memory_of_machine

    at_least = sum(listing.files[path].n_bytes for path in files if is_weights(path))
    needed, there = max(at_least, 4 * listing.n_parameters), memory_of_machine()
    if needed > there:
        raise ValueError(
            f"{where} needs at least {needed / 1e9:,.1f} GB of memory for its weights in float32; this machine has"
            f" {there / 1e9:,.1f} GB, enough for {there / 4e9:,.2f} billion weights. Nothing was downloaded; choose a"
            " smaller model"
        )


def _check_disk(files: Mapping[str, str], listing: HubListing, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    missing = {path: sha256 for path, sha256 in files.items() if not cached_file(cache / sha256, sha256)}
    begun = sum(part.stat().st_size for sha256 in missing.values() for part in (cache / sha256).glob(".*.part"))
    needed = sum(listing.files[path].n_bytes for path in missing) - begun
    if needed > (free := shutil.disk_usage(cache).free):
        raise DiskFull(
            f"the files need {needed / 1e6:,.0f} MB in {cache}, where {free / 1e6:,.0f} MB are free; free some space,"
            " or run `gristmill gc`, and run again"
        )
