"""A small Hugging Face hub on this machine, for `huggingface_hub`, `datasets` and `transformers` to talk to.

They read HF_ENDPOINT and HF_HOME when they are imported: what shall use this hub runs in a process of its own, started
with `Hub.environment(cache)`.

    with Hub() as hub:
        hub.add("datasets", "me/tales", {"train.parquet": content})
        hub.add("models", "me/tiny", {"config.json": config}, revision="v2")
        subprocess.run([...], env=hub.environment(tmp_path))
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = ("datasets", "models")
Files = dict[str, bytes]  # path inside the repository -> content


@dataclass
class Repository:
    """Every revision of one repository, and who may read it."""

    name: str
    gated: bool
    revisions: dict[str, Files] = field(default_factory=dict)

    def commit(self, revision: str) -> str:
        """The 40 hexadecimal digits of a revision: another content has another one."""
        facts = [self.name, revision, *(f"{path} {oid(content)}" for path, content in self.revisions[revision].items())]
        return oid("\n".join(facts).encode())

    def named(self, revision: str) -> str | None:
        """The revision of that name or commit."""
        return next((name for name in self.revisions if revision in (name, self.commit(name))), None)


def oid(content: bytes) -> str:
    """What tells two contents apart, as git names them."""
    return hashlib.sha1(content).hexdigest()


def impatient() -> None:
    """Let the hub's client of this process try again at once; it waits 23 s in all before it gives a request up."""
    from huggingface_hub.utils import _http

    _http.time.sleep = lambda seconds: None


class Hub:
    """Repositories of data sets and models, served on a port of their own while the `with` block runs.

    Args:
        token: the one that gated repositories accept.
    """

    def __init__(self, token: str = "hf_accepted"):
        self.token = token
        self.expired = "hf_expired"
        """A token that no account has any more; whatever is asked for with it is refused."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        """What was asked for, in order: `HEAD /datasets/me/tales/resolve/main/README.md`."""
        self.down = False
        """Answer everything with 503 from now on."""
        self.broken: str | None = None
        """Close the connection before the content of files whose paths end so, however they are asked for."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def add(self, kind: str, name: str, files: Files, revision: str = "main", gated: bool = False) -> str:
        """Put one revision of a repository up, and the repository where it is new; returns its commit."""
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it is one of {KINDS}")
        repository = self.repositories.setdefault((kind, name), Repository(name, gated))
        repository.revisions[revision] = dict(sorted(files.items()))
        return repository.commit(revision)

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, cache: Path) -> dict[str, str]:
        """This process's variables for one that finds its hub here, and cache and token in a folder of the test."""
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HUGGING"))}
        unproxied = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return own | unproxied | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True)
class Answer:
    """A response: JSON, or the bytes of a file."""

    status: int
    body: bytes
    headers: dict[str, str]


def _json(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def _refusal(status: int, code: str, commit: str = "") -> Answer:
    headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": commit} if commit else {})
    return Answer(status, b"", headers)


def answer(hub: Hub, url: str, form: dict[str, list[str]], bearer: str) -> Answer:
    """What the hub says to a request.

    Args:
        url: path and query.
        form: of a POST.
        bearer: the token, empty without one.
    """
    parts = [unquote(part) for part in urlsplit(url).path.strip("/").split("/")]
    query = parse_qs(urlsplit(url).query)
    api = parts[0] == "api"
    parts = parts[1:] if api else parts
    if parts and parts[0] in KINDS:
        kind, *parts = parts
    elif api:
        return _refusal(404, "NotFound")
    else:
        kind = "models"  # their files lie at the root
    if bearer == hub.expired:
        return Answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
    for length in (2, 1):
        repository = hub.repositories.get((kind, "/".join(parts[:length])))
        if repository is None:
            continue
        verb, *rest = parts[length:] or ["revision"]
        revision = repository.named(rest[0] if rest else "main")
        if revision is None:
            return _refusal(404, "RevisionNotFound")
        if repository.gated and verb in ("resolve", "auth-check") and bearer != hub.token:
            return _refusal(403 if bearer else 401, "GatedRepo")
        return _answer_of(repository, revision, verb, "/".join(rest[1:]), query | form)
    return _refusal(404 if bearer else 401, "RepoNotFound")


def _answer_of(repository: Repository, revision: str, verb: str, path: str, query: dict[str, list[str]]) -> Answer:
    files, commit = repository.revisions[revision], repository.commit(revision)
    if verb == "resolve" and path in files:
        content = files[path]
        return Answer(200, content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": commit})
    if verb == "revision":
        siblings = [{"rfilename": name} for name in files]
        return _json(
            {"id": repository.name, "sha": commit, "gated": repository.gated, "siblings": siblings, "tags": []}
        )
    if verb == "auth-check":
        return _json({})
    if verb == "paths-info":
        wanted = query.get("paths", [])
        return _json([entry for entry in _entries(files) if entry["path"] in wanted])
    if verb == "tree":
        below = f"{path}/" if path else ""
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        inside = [entry for entry in _entries(files) if entry["path"].startswith(below)]
        found = [entry for entry in inside if recursive or "/" not in entry["path"].removeprefix(below)]
        if found or not path:
            return _json(found)
    return _refusal(404, "EntryNotFound", commit)


def _entries(files: Files) -> Iterator[dict[str, Any]]:
    """Files and folders as the hub lists them."""
    folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
    for folder in sorted(folders):
        yield {"type": "directory", "path": folder, "size": 0, "oid": oid(folder.encode())}
    for name, content in files.items():
        yield {"type": "file", "path": name, "size": len(content), "oid": oid(content)}


def _part(whole: Answer, asked: str | None) -> Answer:
    """The bytes first-last of an answer, both counted from 0 and included, as a stream asks for them."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
    if found is None or whole.status != 200:
        return whole
    first, last = int(found[1]), min(int(found[2]), len(whole.body) - 1)
    place = {"Content-Range": f"bytes {first}-{last}/{len(whole.body)}"}
    return Answer(206, whole.body[first : last + 1], whole.headers | place)


def _handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            hub.requests.append(f"{self.command} {unquote(self.path)}")
            bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            got = Answer(503, b"", {}) if hub.down else answer(hub, self.path, parse_qs(form), bearer)
            got = _part(got, self.headers.get("Range"))
            self.send_response(got.status)
            for name, value in {"Content-Length": str(len(got.body)), **got.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET" and hub.broken and self.path.endswith(hub.broken):
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(got.body)

        do_GET = do_HEAD = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            """Silent: the requests are in `Hub.requests`."""

    return Handler
