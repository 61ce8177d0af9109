"""A small W&B server on the loopback interface: it keeps what arrives, and misbehaves as it is told.

It answers what wandb 0.31 asks while a run is on (GraphQL, the file stream, uploads) and what `wandb-workspaces` asks
to save a view. Clients are pointed to it by `WandbServer.environment`. It is told how to behave by its attributes, from
other processes by `behave(url, ...)`.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

SUMMARIES = {1: "min", 2: "max", 3: "mean", 4: "best", 5: "last"}
"""How W&B numbers the summaries of a metric."""


class Run:
    """What arrived of one run.

    Attributes:
        files: Uploaded files, by their path in the run.
        alerts: Title, text and severity of each alert.
        config: The last config.
        summary: The last summary.
    """

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, str]] = defaultdict(dict)
        self.files: dict[str, bytes] = {}
        self.alerts: list[dict[str, str]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.complete = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the history, each once, in the order of their offset."""
        lines = self.lines["wandb-history.jsonl"]
        return [json.loads(lines[offset]) for offset in sorted(lines)]

    @property
    def definitions(self) -> dict[str, tuple[str | None, set[str]]]:
        """The x axis and the summaries of each metric that was defined by its name."""
        metrics = self.config["_wandb"]["value"].get("m", [])
        names = [metric.get("1") for metric in metrics]
        return {
            metric["1"]: (
                names[metric["5"] - 1] if "5" in metric else None,
                {SUMMARIES[number] for number in metric["7"]},
            )
            for metric in metrics
            if "1" in metric
        }


class WandbServer:
    """Serves from entering the context until it is left, or `stop` is called.

    Attributes:
        delay: Seconds to wait before each answer.
        status: What to answer instead of serving: 429, 503, ...; None serves.
        runs: What arrived, by the id of the run.
        views: The saved views, by their id.
        views_per_page: How many views one answer lists.
        refused: How many requests were refused.
        requests: The operation or path of every request that was served.
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.status: int | None = None
        self.runs: dict[str, Run] = defaultdict(Run)
        self.views: dict[str, dict[str, Any]] = {}
        self.views_per_page = 100
        self.refused = 0
        self.requests: list[str] = []
        self._connections: set[socket.socket] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"wandb": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What points a client to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}

    @property
    def run(self) -> Run:
        """The one run that there is."""
        (run,) = self.runs.values()
        return run

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on, and break those that there are."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Take what a request brings, and say what to answer."""
        if path == "/graphql":
            request = json.loads(body)
            variables = request.get("variables") or {}
            query = request["query"]
            name = next((name for name in _OPERATIONS if name in query), "")
            self.requests.append(name)
            return {"data": _OPERATIONS[name](self, variables) if name else {}}
        self.requests.append(path)
        words = path.split("/")
        if words[1] == "files" and words[-1] == "file_stream":
            self._stream(self.runs[words[4]], json.loads(body))
        elif words[1] == "storage":
            self.runs[words[2]].files["/".join(words[3:])] = body
        return {}

    @staticmethod
    def _stream(run: Run, chunk: dict[str, Any]) -> None:
        for name, part in (chunk.get("files") or {}).items():
            if name == "wandb-summary.json":
                run.summary.update(json.loads(part["content"][-1]))
            else:
                run.lines[name].update(enumerate(part["content"], start=part["offset"]))
        run.complete = run.complete or bool(chunk.get("complete"))

    def _upsert_bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[variables["name"]]
        run.config.update(json.loads(variables.get("config") or "{}"))
        project = {"id": "cA==", "name": variables.get("project"), "entity": {"id": "ZQ==", "name": "entity"}}
        bucket = {"id": "aWQ=", "name": variables["name"], "displayName": variables["name"], "project": project}
        bucket |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _create_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.url}/storage/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{where}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": files}}

    def _alert(self, variables: dict[str, Any]) -> dict[str, Any]:
        told = {name: variables[name] for name in ("title", "text", "severity")}
        self.runs[variables["runName"]].alerts.append(told)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "dQ==", "entity": "entity", "username": "user", "email": "", "flags": "{}", "admin": False}
        return {"viewer": {**viewer, "teams": {"edges": []}, "apiKeys": None}}

    def _features(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"model": {"id": "cA==", "name": variables.get("project"), "entity": None, "bucket": None}}

    def _upsert_view(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = variables.get("id") or base64.b64encode(f"View:{len(self.views)}".encode()).decode()
        inserted = id not in self.views
        self.views[id] = {**variables, "id": id}
        return {"upsertView": {"view": {"id": id, "name": variables["name"]}, "inserted": inserted}}

    def _all_views(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = [
            {"node": {name: view[name] for name in ("id", "name", "displayName")}, "cursor": view["id"]}
            for view in self.views.values()
            if (view["entityName"], view["projectName"]) == (variables["entity"], variables["project"])
        ]
        start = next((i + 1 for i, edge in enumerate(found) if edge["cursor"] == variables["cursor"]), 0)
        page = found[start : start + self.views_per_page]
        more = start + len(page) < len(found)
        return {"project": {"allViews": {"edges": page, "pageInfo": {"hasNextPage": more}}}}

    def _summaries(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = [{"node": {"summaryMetrics": json.dumps(run.summary)}} for run in self.runs.values()]
        return {"project": {"runs": {"edges": found[::-1][: variables["first"]]}} if found else None}


_OPERATIONS = {
    "upsertView(": WandbServer._upsert_view,
    "allViews(": WandbServer._all_views,
    "runs(first:": WandbServer._summaries,
    "upsertBucket(": WandbServer._upsert_bucket,
    "createRunFiles(": WandbServer._create_run_files,
    "notifyScriptableRunAlert(": WandbServer._alert,
    "RunResumeStatus": WandbServer._resume_status,
    "serverInfo": WandbServer._features,
    "viewer": WandbServer._viewer,
}


class _Handler(BaseHTTPRequestHandler):
    """One connection to a `WandbServer`."""

    protocol_version = "HTTP/1.1"
    wandb: WandbServer

    def handle(self) -> None:
        self.wandb._connections.add(self.connection)
        try:
            super().handle()
        except (OSError, ValueError):  # the other end or `stop` has closed the connection
            self.close_connection = True
        finally:
            self.wandb._connections.discard(self.connection)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/behave":
            told = json.loads(body)
            stop = told.pop("stop", False)
            vars(self.wandb).update(told)
            self._send(200, {"refused": self.wandb.refused})
            if stop:
                threading.Thread(target=self.wandb.stop).start()
            return
        time.sleep(self.wandb.delay)
        if self.wandb.status is not None:
            self.wandb.refused += 1
            self._send(self.wandb.status, {"error": "as told"})
        elif path.startswith("/sdk/otel"):  # telemetry of the client about itself
            self._send(200, {})
        else:
            self._send(200, self.wandb.answer(path, body))

    do_GET = do_PUT = do_POST

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def behave(url: str, **how: Any) -> dict[str, Any]:
    """Tell a server, from another process, how to behave: `delay=3`, `status=503`, `status=None`, `stop=True`.

    Returns:
        How many requests it has refused.
    """
    with urlopen(Request(f"{url}/behave", json.dumps(how).encode(), method="POST"), timeout=10) as answer:
        return json.loads(answer.read())
