"""Hub names, against a stand-in of the hub on loopback. The network is never used."""

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mmchat.cli.main import main
from mmchat.cli.push import kind_of, travelling_files
from mmchat.conversion import export_model
from mmchat.errors import UserError
from mmchat.files import write_json
from mmchat.front_matter import read_front_matter
from mmchat.hub import hub_name, pin, resolve
from mmchat.model.directory import load_assistant
from mmchat.model.lora_adapter import LoraShape, add_adapter, load_adapter, save_adapter
from mmchat.pretrained import open_pretrained
from mmchat.vision.directory import save_tower

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
from mmchat.hub import pin, resolve
from mmchat.vision.directory import save_tower
try:
    found = resolve(sys.argv[1])
    assert pin(sys.argv[1]) == f"{sys.argv[1].split('@')[0]}@{found.name}"
    print(sorted(path.name for path in found.iterdir()), found.name)
except UserError as error:
    print("error:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what `snapshot_download` asks about the repository someone/model."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    pushed: dict[str, bytes] = {}
    large: dict[str, bytes] = {}
    private: dict[str, bool] = {}
    breaks = False

    def do_POST(self):
        """What `create_repo` and `upload_folder` ask; safetensors go by LFS."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        path, root = self.path.split("?")[0], f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "stranger":
                return self.answer(403, b'{"error": "no rights"}')
            status = 409 if name in self.private else 200
            self.private.setdefault(name, asked["visibility"] == "private")
            return self.answer(status, json.dumps({"url": f"{root}/{name}"}).encode())
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes["safetensors" in f["path"]], "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        if path.endswith("/objects/batch"):
            objects = json.loads(content)["objects"]
            for one in objects:
                if one["oid"] not in self.large:
                    one["actions"] = {"upload": {"href": f"{root}/lfs/{one['oid']}"}}
            return self.answer(200, json.dumps({"objects": objects, "transfer": "basic"}).encode())
        if "/commit/" in path:
            if Hub.breaks:
                return self.answer(500, b"{}")
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.pushed[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.pushed[value["path"]] = self.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del self.pushed[value["path"]]
            return self.answer(
                200, json.dumps({"commitUrl": f"{root}/me/model/commit/{'c' * 40}", "commitOid": "c" * 40}).encode()
            )
        return self.answer(200, b"{}")  # /api/validate-yaml

    def do_PUT(self):
        self.asked.append(self.path)
        self.large[self.path.split("/")[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, b"")

    def do_GET(self):
        if (name := "/".join(self.path.split("?")[0].split("/")[3:5])) in self.private:
            if "/tree/" in self.path:
                tree = [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in self.pushed]
                return self.answer(200, json.dumps(tree).encode())
            siblings = [{"rfilename": file} for file in self.pushed]
            found = {"id": name, "private": self.private[name], "sha": "c" * 40, "siblings": siblings}
            return self.answer(200, json.dumps(found).encode())
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
        if self.command != "HEAD":
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


@pytest.mark.parametrize(
    ("source", "is_name"),
    [
        *(("someone/model", True), ("someone/model@v1", True), ("someone/model-0.5b", True)),
        *(("runs/missing", False), ("./someone/model", False), ("../someone/model", False), ("~/model", False)),
        *(("/someone/model", False), ("someone/tower.json", False), ("someone/a/model", False), ("model", False)),
    ],
)
def test_a_mistyped_path_is_no_hub_name(source, is_name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert (hub_name(source) is not None) == is_name
    if not is_name:
        assert not resolve(source).exists() and pin(source) == source


def test_a_missing_path_is_answered_without_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"^tokenizer 'runs/missing' does not exist; give a directory"):
        open_pretrained(AutoTokenizer, "runs/missing", "tokenizer")
    with pytest.raises(UserError, match=r"^model directory runs/missing does not exist"):
        load_assistant("runs/missing")
    with pytest.raises(UserError, match=r"^adapter runs/missing does not exist"):
        load_adapter("runs/missing")


@pytest.fixture
def in_cache(assistant_dir, monkeypatch):
    """The hub has the tiny assistant as someone/model, at the commit aaa..."""
    snapshot = assistant_dir.parent / COMMITS["main"]
    if not snapshot.exists():
        snapshot.symlink_to(assistant_dir)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(snapshot))


def test_an_adapter_names_its_base_on_the_hub(in_cache, tmp_path):
    name = pin("someone/model")
    assert name == f"someone/model@{COMMITS['main']}"
    model, processor = load_assistant(name)
    layer = next(key for key, part in model.language_model.named_modules() if isinstance(part, torch.nn.Linear))
    adapter = add_adapter(model, {f"language_model.{layer}": LoraShape(2, 4)}, 0.0)
    save_adapter(adapter, processor, tmp_path / "adapter", name)
    assert json.loads((tmp_path / "adapter" / "base.json").read_text())["model"] == name
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "\nbase_model: someone/model\n" in card
    assert f'from_pretrained("someone/model", revision="{COMMITS["main"]}")' in card
    load_adapter(tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), "--base", "someone/model", "--out", str(tmp_path / "merged")]) == 0
    load_assistant(tmp_path / "merged")


def test_the_language_model_of_an_assistant_on_the_hub(in_cache, make_tower, tmp_path):
    save_tower(make_tower(), tmp_path / "tower")
    parts = ["--language", "someone/model", "--vision", str(tmp_path / "tower"), "--out", str(tmp_path / "new")]
    assert main(["init", *parts]) == 0
    there, here = load_assistant("someone/model")[0], load_assistant(tmp_path / "new")[0]
    weights = here.language_model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in there.language_model.state_dict().items())
    # It names its base, also when it is exported; what is exported from the hub is its own base.
    assert base_of(tmp_path / "new") == "someone/model"
    assert load_assistant(tmp_path / "new")[0].config.base_models == ["someone/model"]
    assert main(["export", str(tmp_path / "new"), "--to", "hf", "--out", str(tmp_path / "exported")]) == 0
    assert base_of(tmp_path / "exported") == "someone/model"
    export_model("someone/model@v1", "hf", tmp_path / "again")
    assert base_of(tmp_path / "again") == "someone/model"


def base_of(directory):
    return read_front_matter(directory / "README.md")["base_model"]


@pytest.fixture
def push(hub, tmp_path):
    """push(*arguments): exit status, stdout and stderr of `mmchat push` in a process that knows only the stand-in."""
    Hub.private.clear()
    Hub.pushed.clear()
    Hub.large.clear()

    def run(*arguments, **environment):
        known = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_x"}
        done = subprocess.run(
            [sys.executable, "-m", "mmchat.cli.main", "push", *map(str, arguments)],
            env={**os.environ, **known, "HF_HUB_OFFLINE": "0", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def model_dir(assistant_dir, tmp_path):
    return Path(shutil.copytree(assistant_dir, tmp_path / "model"))


def test_push(push, model_dir, hub):
    status, out, err = push(model_dir, "me/model", "--dry-run")
    assert status == 0 and not Hub.private and f"-> {hub}/me/model (private)" in out, err
    Hub.pushed["model-00001-of-00002.safetensors"] = b"stale"
    status, out, err = push(model_dir, "me/model")
    assert status == 0, err
    assert Hub.pushed == {path.name: path.read_bytes() for path in model_dir.iterdir()}
    assert Hub.private == {"me/model": True}
    assert out.splitlines()[-1] == 'use it with: mmchat chat me/model --image image.png "What is this?"'
    status, _, err = push(model_dir, "me/model", "--public")
    assert status == 2 and "me/model exists already and is private; leave out --public" in err
    assert push(model_dir, "me/open", "--public")[0] == 0 and Hub.private["me/open"] is False
    status, _, err = push(model_dir, "me/open")
    assert status == 2 and "me/open exists already and is public; add --public" in err


def test_a_push_that_broke_off_sends_the_weights_once(push, model_dir, monkeypatch):
    monkeypatch.setattr(Hub, "breaks", True)
    status, _, err = push(model_dir, "me/model")
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and "500" in err
    monkeypatch.setattr(Hub, "breaks", False)
    Hub.asked.clear()
    assert push(model_dir, "me/model")[0] == 0
    assert "model.safetensors" in Hub.pushed and not any(path.startswith("/lfs/") for path in Hub.asked)


@pytest.mark.parametrize(
    ("name", "environment", "why"),
    [
        ("me/model", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("me/model", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ("stranger/model", {}, "log in with `hf auth login`"),
        ("me/model@v1", {}, "is no name of a repository"),
    ],
)
def test_a_push_that_cannot_be_is_one_line(push, model_dir, name, environment, why):
    status, _, err = push(model_dir, name, **environment)
    assert status == 2 and why in err and len(err.strip().splitlines()) == 1, err


def test_what_is_not_pushed(model_dir, tmp_path):
    assert kind_of(model_dir)[0] == "assistant"
    (model_dir / "train.log").write_text("")
    (model_dir / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"does not belong to a model: checkpoints, train\.log; move"):
        travelling_files(model_dir)
    (model_dir / "train.log").unlink()
    (model_dir / "checkpoints").rmdir()
    assert len(travelling_files(model_dir)) > 5
    config = json.loads((model_dir / "config.json").read_text())
    write_json(model_dir / "config.json", {**config, "towers": [{"path": "/home/me/clip"}]})
    with pytest.raises(UserError, match=r"names a path of this machine, towers\.0\.path: '/home/me/clip'; remove"):
        travelling_files(model_dir)
    write_json(model_dir / "config.json", {"model_type": "llava"})
    (model_dir / "README.md").write_text("---\ntags: [llava]\n---\nmmchat opens it.\n")
    with pytest.raises(UserError, match=r"is no model that mmchat wrote \(config\.json: model_type 'llava'\)"):
        kind_of(model_dir)
    (model_dir / "README.md").write_text("---\nlibrary_name: transformers\ntags: [llava, mmchat]\n---\n")
    assert kind_of(model_dir)[0] == "exported model"
    with pytest.raises(UserError, match=r"give model/ or adapter/ of a run"):
        kind_of(tmp_path)
