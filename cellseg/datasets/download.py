"""Fetch LIVECell, NeurIPS 2022 and DSB2018 from their owners, resuming where an earlier attempt stopped.

Nothing starts before the licence is accepted. Files travel over TLS, are checked against the published SHA-256 or,
where none is published, against the one recorded beside the file by the first download, and are unpacked without
leaving the folder. Running it again completes what is missing and changes nothing else.

Given up: mirrors, parallel connections, and two downloads into the same folder at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from cellseg.core import CellsegError
from cellseg.files import atomic_path, write_text

if TYPE_CHECKING:
    import requests
    from rich.progress import Progress

CHUNK = 1 << 16
"""Bytes written at a time, and so the most that a dropped connection loses."""
TIMEOUT_S = (10, 60)
BACKOFF_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts that brought no byte; one more attempt than pauses is made."""
_SYMLINK = 0o120000
_FILE_TYPE = 0o170000


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes
    ----------
    path : str
        Below the base URL, and below the local folder, with forward slashes.
    sha256 : str or None
        As published; None where the owner publishes none.
    into : str
        Folder below the local one into which an archive without a folder of its own is unpacked.
    """

    path: str
    sha256: str | None = None
    into: str = ""


@dataclass(frozen=True)
class Source:
    """Where a data set lies and on what terms."""

    title: str
    base_url: str
    files: tuple[RemoteFile, ...]
    licence: str
    citation: str


SOURCES = {
    "livecell": Source(
        title="LIVECell (1.3 GB of images, some hundred MB of annotations)",
        base_url="https://livecell-dataset.s3.eu-central-1.amazonaws.com/LIVECell_dataset_2021",
        files=(
            RemoteFile("annotations/LIVECell/livecell_coco_val.json"),
            RemoteFile("annotations/LIVECell/livecell_coco_test.json"),
            RemoteFile("annotations/LIVECell/livecell_coco_train.json"),
            RemoteFile("images.zip"),
        ),
        licence=(
            "Creative Commons Attribution-NonCommercial 4.0 International (CC BY-NC 4.0), "
            "https://creativecommons.org/licenses/by-nc/4.0/. Name the authors; no commercial use, which "
            "by this project's rule covers weights trained on it: do not publish them."
        ),
        citation="Edlund et al., LIVECell, Nature Methods 18, 1038-1045 (2021)",
    ),
    "neurips": Source(
        title="NeurIPS 2022 cell segmentation challenge (Zenodo record 10719375)",
        base_url="https://zenodo.org/records/10719375/files",
        files=(
            RemoteFile("Training-labeled.zip", "b2383929eb8e99b2716fa0d4e2f6e03983e626a57cf00fe85175869c54aa3592"),
            RemoteFile("Tuning.zip", "849423d36bb8fcc2d91a5b189a3b6d93c3d4071c9701eaaa44ba393a510459c4"),
            RemoteFile("Testing.zip", "3379730221f43830d30fddf131750e967c9c9bdf04f98811e852a050eb659ccc"),
            RemoteFile("train-unlabeled-part1.zip", "390b38b398b05e9e5306a024a3bd48ab22e49592cfab3c1a119eab3636b38e0d"),
            RemoteFile("train-unlabeled-part2.zip", "d1e68eba2918305eab8b846e7578ac14683de970e3fa6a7c2a4a55753be56204"),
        ),
        licence=(
            "Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International (CC BY-NC-ND 4.0), "
            "https://creativecommons.org/licenses/by-nc-nd/4.0/. Name the authors; no commercial use; do not pass on "
            "changed images or labels."
        ),
        citation="Ma et al., The multimodality cell segmentation challenge, Nature Methods 21, 1103-1113 (2024)",
    ),
    "dsb2018": Source(
        title="Data Science Bowl 2018, stage 1 (BBBC038v1; about 90 MB)",
        base_url="https://data.broadinstitute.org/bbbc/BBBC038",
        files=(
            RemoteFile("stage1_train.zip", into="stage1_train"),
            RemoteFile("stage1_test.zip", into="stage1_test"),
            RemoteFile("stage1_solution.csv"),
        ),
        licence="Creative Commons Zero 1.0 (CC0, public domain), https://creativecommons.org/publicdomain/zero/1.0/",
        citation="Caicedo et al., Nucleus segmentation across imaging experiments, Nature Methods 16, 1247-1253 (2019)",
    ),
}


def licence(name: str) -> str:
    """Return what must be read and accepted before a data set is downloaded."""
    source = _source(name)
    return f"{source.title}\nLicence: {source.licence}\nCite: {source.citation}"


def download(name: str, root: str | Path, *, base_url: str | None = None, accept_licence: bool = False) -> Path:
    """Fetch, check and unpack a data set; what is already there and sound is left alone.

    Parameters
    ----------
    name : {"livecell", "neurips", "dsb2018"}
        Which data set.
    root : str or Path
        Folder to fill; the archives stay there, so that a second run knows them.
    base_url : str, optional
        A mirror with the same paths; https, except on this machine.
    accept_licence : bool
        Whether the user has read and accepted :func:`licence`.

    Returns
    -------
    Path
        ``root``.

    Raises
    ------
    CellsegError
        If the licence is not accepted, the address is not TLS, a file cannot be had or does not match its checksum
        (it is moved aside as ``<file>.bad``), an archive is damaged or unsafe, or the disk is full.
    """
    source = _source(name)
    if not accept_licence:
        raise CellsegError(f"{name}: accept the licence first (--accept-licence).\n{licence(name)}")
    base = (base_url or source.base_url).rstrip("/")
    _require_tls(base)
    root = Path(root)
    try:
        for remote in source.files:
            path = root / remote.path
            if not path.is_file():
                fetch(f"{base}/{remote.path}", path)
            verify(path, remote.sha256)
            if path.suffix == ".zip":
                unpack(path, root / remote.into)
    except OSError as error:
        raise CellsegError(f"{root}: cannot be written ({error.strerror or error})") from error
    return root


def fetch(url: str, path: Path) -> None:
    """Download one file through ``<path>.part``, resuming and retrying; the name appears only when it is complete.

    Parameters
    ----------
    url : str
        https address, or http on this machine.
    path : Path
        File to write; parent folders are made.

    Raises
    ------
    CellsegError
        If the server refuses, keeps failing, or redirects to an address without TLS.
    """
    import requests

    _require_tls(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(url, part)
            break
        except requests.RequestException as error:
            response = error.response
            if response is not None and response.status_code < 500 and response.status_code not in (408, 429):
                raise CellsegError(f"{url}: the server says {response.status_code} {response.reason}") from error
            failures = 0 if _size(part) > before else failures + 1
            if failures > len(BACKOFF_S):
                raise CellsegError(
                    f"{url}: failed {failures} times in a row ({error}); what came is kept, run it again to resume"
                ) from error
            time.sleep(BACKOFF_S[max(failures - 1, 0)])
    part.replace(path)
    _etag_file(part).unlink(missing_ok=True)


def verify(path: Path, sha256: str | None) -> None:
    """Check a file against its published SHA-256, or against the one recorded when it was first seen.

    Parameters
    ----------
    path : Path
        File to read.
    sha256 : str or None
        Published value; with None, ``<path>.sha256`` (the format of ``sha256sum``) is the authority and is written
        if absent.

    Raises
    ------
    CellsegError
        If it differs; the file is then moved to ``<path>.bad``.
    """
    record = _record_file(path)
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    wanted = sha256
    if wanted is None and record.is_file():
        lines = [line for line in record.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        wanted = lines[0].split()[0] if lines else ""
    if wanted is None:
        write_text(record, f"# first download: {path.stat().st_size} bytes\n{found}  {path.name}\n")
    elif found != wanted.lower():
        origin = "published" if sha256 else f"recorded in {record.name}"
        _set_aside(path, f"SHA-256 is {found}, {origin} is {wanted}")


def unpack(archive: Path, root: Path) -> None:
    """Extract a zip below ``root``, skipping files that are already there in full.

    Every name is checked before the first byte is written; contents are checked against the zip's own CRCs.

    Raises
    ------
    CellsegError
        If a member would land outside ``root`` or is a symbolic link (nothing is extracted), if the disk is too
        small, or if the archive is damaged (it is moved to ``<archive>.bad``).
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            targets = [_safe_target(archive, member, root) for member in members]
            todo = [(m, t) for m, t in zip(members, targets, strict=True) if _size(t, -1) != m.file_size]
            _require_space(root, sum(member.file_size for member, _ in todo))
            with _progress() as progress:
                task = progress.add_task(f"unpack {archive.name}", total=sum(m.file_size for m, _ in todo))
                for member, target in todo:
                    with opened.open(member) as packed, atomic_path(target) as temporary, temporary.open("wb") as out:
                        shutil.copyfileobj(packed, out, CHUNK)
                    progress.advance(task, member.file_size)
    except CellsegError:
        raise
    except Exception as error:  # a damaged zip raises dozens of types, OSError for an offset below 0 among them
        _record_file(archive).unlink(missing_ok=True)
        _set_aside(archive, f"damaged archive ({error})")


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise CellsegError(f"download {name}: unknown data set; known are {', '.join(SOURCES)}")
    return SOURCES[name]


def _require_tls(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")):
        return
    raise CellsegError(f"{url}: wanted an https address; data are not fetched over {parts.scheme or 'no scheme'}")


def _check_redirect(response: requests.Response, **_: object) -> None:
    """Refuse a redirect away from TLS before it is followed."""
    if response.is_redirect:
        _require_tls(urljoin(response.url, response.headers["Location"]))


def _attempt(url: str, part: Path) -> None:
    """Make one request for what ``part`` lacks and append it; the server may start over instead."""
    import requests

    have = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        with contextlib.suppress(FileNotFoundError):
            headers["If-Range"] = _etag_file(part).read_text(encoding="ascii").strip()
    hooks = {"response": _check_redirect}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S, hooks=hooks) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416 and have:
            if content_range == f"bytes */{have}":
                return
            part.unlink()
            raise requests.ConnectionError(f"the partial file of {have} bytes does not fit the server's; starting over")
        response.raise_for_status()
        resumed = response.status_code == 206 and content_range.startswith(f"bytes {have}-")
        if response.status_code == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise requests.ConnectionError(f"asked for bytes from {have}, got {content_range!r}; starting over")
        _receive(response, part, have if resumed else 0)


def _receive(response: requests.Response, part: Path, have: int) -> None:
    """Write a response body behind the first ``have`` bytes and check that all of it came."""
    import requests

    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        write_text(_etag_file(part), etag)
    else:
        _etag_file(part).unlink(missing_ok=True)
    _require_space(part.parent, (total or 0) - have)
    with part.open("ab" if have else "wb") as out, _progress() as progress:
        task = progress.add_task(part.stem, total=total, completed=have)
        for chunk in response.iter_content(CHUNK):
            out.write(chunk)
            progress.advance(task, len(chunk))
    if total is not None and _size(part) != total:
        raise requests.ConnectionError(f"the connection closed at {_size(part)} of {total} bytes")


def _safe_target(archive: Path, member: zipfile.ZipInfo, root: Path) -> Path:
    """Say where a member goes; refuse links and whatever would leave ``root``."""
    name = member.filename
    pure = PurePosixPath(name)
    if (member.external_attr >> 16) & _FILE_TYPE == _SYMLINK:
        raise CellsegError(f"{archive}: holds the symbolic link '{name}'; nothing was unpacked")
    target = root / pure
    inside = target.resolve().is_relative_to(root.resolve())
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not inside:
        raise CellsegError(f"{archive}: '{name}' would be written outside {root}; nothing was unpacked")
    return target


def _require_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise CellsegError(f"{folder}: {wanted / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _set_aside(path: Path, why: str) -> None:
    bad = path.with_name(path.name + ".bad")
    path.replace(bad)
    raise CellsegError(f"{path}: {why}; moved to {bad.name}, run the download again")


def _record_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _size(path: Path, absent: int = 0) -> int:
    return path.stat().st_size if path.is_file() else absent


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Show bytes, speed and remaining time on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        yield progress
