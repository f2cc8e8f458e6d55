"""What `--push` sends, to a server of the test and to a hub that is only named."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from selfsight.errors import UserError
from selfsight.export import export as exporting
from selfsight.export import hub
from selfsight.export.export import export
from tests.export.made import TINY, encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("runs") / "run", TINY)


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """No token of this machine."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload of small files needs.

    Attributes:
        files: path -> content, of each repository that exists; private: of those that were made.
        refuses: every request, as the hub does without a right.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.private, self.refuses = {}, {}, False
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def _send(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if self.server.refuses:
            self._send({"error": "forbidden"}, 403)
        elif name not in self.server.files:
            self._send({"error": "Repository not found"}, 404)
        elif "tree" in self.path:
            about = {"type": "file", "oid": "0" * 40}
            files = self.server.files[name].items()
            self._send([{**about, "path": path, "size": len(content)} for path, content in files])
        else:
            siblings = [{"rfilename": path} for path in self.server.files[name]]
            self._send({"id": name, "sha": "0" * 40, "siblings": siblings, "private": True})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = self.path.split("?")[0].split("/")
        name = "/".join(parts[3:5])
        if self.server.refuses:
            self._send({"error": "forbidden"}, 403)
        elif parts[2:4] == ["repos", "create"]:
            about = json.loads(body)
            name = f"{about['organization']}/{about['name']}"
            self.server.files[name] = {}
            private = about.get("private", about.get("visibility") == "private")
            self.server.private[name] = private
            self._send({"url": f"{self.server.address}/{name}"})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            kept = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            self._send({"files": [{**f, "shouldIgnore": False} for f in kept]})
        elif "commit" in parts:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[name][entry["value"]["path"]] = content
            url = f"{self.server.address}/{name}/commit/1"
            self._send({"commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})
        else:
            self._send({"errors": [], "warnings": []})  # of the card's head


@pytest.fixture
def server(monkeypatch):
    """A hub on this machine, and a token for it."""
    with Hub() as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", started.address)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield started
        started.shutdown()


@pytest.mark.parametrize("private", [True, False])
def test_it_is_sent_as_it_lies_in_the_folder(run, tmp_path, server, private):
    found = export(run, "timm", tmp_path / "out", push="me/model", private=private)
    sent = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert server.files == {"me/model": sent}
    assert server.private == {"me/model": private}
    assert found.address == f"{server.address}/me/model"
    card = sent["README.md"].decode()
    assert "the name is `hf-hub:me/model`" in card


def test_a_repository_with_other_files_stays_as_it_is(run, tmp_path, server):
    server.files["me/model"] = {".gitattributes": b"", "thesis.pdf": b"%PDF"}
    with pytest.raises(UserError, match=r"holds other files than an export \(thesis.pdf\)"):
        export(run, "timm", tmp_path / "out", push="me/model")
    assert server.files["me/model"].keys() == {".gitattributes", "thesis.pdf"}
    server.files["me/model"] = {"export.json": b"{}", "thesis.pdf": b"%PDF"}
    export(run, "timm", tmp_path / "out", push="me/model")
    assert "model.safetensors" in server.files["me/model"]


def test_a_refusal_is_one_line_and_the_export_stays(run, tmp_path, server):
    server.refuses = True
    with pytest.raises(UserError, match="the hub did not take it") as error:
        export(run, "timm", tmp_path / "out", push="me/model")
    assert "run the same command again" in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_nothing_is_sent_that_was_not_verified(run, tmp_path, server, monkeypatch):
    def differs(*_):
        raise UserError("the features differ")

    monkeypatch.setattr(exporting, "verify", differs)
    with pytest.raises(UserError, match="the features differ"):
        export(run, "timm", tmp_path / "out", push="me/model")
    assert server.files == {}


def test_a_dry_run_lists_and_sends_nothing(run, tmp_path, command, monkeypatch):
    monkeypatch.setattr(hub, "push", lambda *_: pytest.fail("was sent"))
    out = str(tmp_path / "out")
    arguments = ("export", str(run), "--to", "timm", "-o", out, "--push", "me/model", "--dry-run")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in done.stdout
    assert "Not sent to me/model, because of --dry-run" in done.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("me/model", "no token of the Hugging Face hub; log in with `hf auth login`, or set"),
        ("model", "is no name on the hub; give ORG/NAME"),
        ("me/mo del", "is no name on the hub; give ORG/NAME"),
        ("a/b/c", "is no name on the hub; give ORG/NAME"),
    ],
)
def test_a_name_and_a_token_are_needed_first(run, tmp_path, name, reason):
    with pytest.raises(UserError, match=f"--push {name}: {reason}"):
        export(run, "timm", tmp_path / "out", push=name)
    assert list(tmp_path.iterdir()) == []
