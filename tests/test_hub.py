"""Hub names, against a stand-in of the hub on loopback. The network is never used."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights " * 1000,
    "chat_template.jinja": b"{{ 1 }}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "README.md": b"card",
}
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
RESOLVE = """
import sys
from mmchat.errors import UserError
from mmchat.pretrained import resolve
try:
    found = resolve(sys.argv[1])
    print(sorted(path.name for path in found.iterdir()), found.name)
except UserError as error:
    print("error:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what `snapshot_download` asks about the repository someone/model."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "someone", "model"] and len(parts) > 5:
            commit = COMMITS.get(parts[5], parts[5] if parts[5] in COMMITS.values() else None)
            if commit is None:
                return self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            if "tree" in parts:
                tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
                return self.answer(200, json.dumps(tree).encode())
            siblings = [{"rfilename": name} for name in FILES]
            return self.answer(200, json.dumps({"id": "someone/model", "sha": commit, "siblings": siblings}).encode())
        if parts[:3] == ["someone", "model", "resolve"] and parts[4] in FILES:
            data = FILES[parts[4]]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": parts[3]}
            return self.answer(200, data, **headers)
        return self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815  (the name that http.server calls)

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def ask(hub, tmp_path):
    """ask(source, **environment): what `resolve` gives in a process that knows only the stand-in."""

    def run(source, **environment):
        known = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, source],
            env={**os.environ, **known, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return run


SAFE = ["README.md", "chat_template.jinja", "config.json", "model.safetensors"]


def test_a_hub_name_is_fetched_once_and_without_code(ask):
    assert ask("someone/model") == f"{SAFE} {COMMITS['main']}"
    assert not any("evil" in path or ".bin" in path for path in Hub.asked)
    fetched = len([path for path in Hub.asked if path.endswith("model.safetensors")])
    assert ask("someone/model", HF_HUB_OFFLINE="1") == ask("someone/model") == f"{SAFE} {COMMITS['main']}"
    assert len([path for path in Hub.asked if path.endswith("model.safetensors")]) == fetched


def test_a_revision(ask):
    assert ask("someone/model@v1") == f"{SAFE} {COMMITS['v1']}"
    answer = ask("someone/model@v2")
    assert answer.startswith("error: model directory 'someone/model@v2' is no path here, and the hub did not give it")
    assert "\n" not in answer


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached")],
)
def test_offline_is_said_in_one_line(ask, environment, why):
    answer = ask("someone/model", **environment)
    assert answer.startswith("error: model directory 'someone/model' is no path here, ") and why in answer
    assert "\n" not in answer
