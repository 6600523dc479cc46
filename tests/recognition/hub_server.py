"""A stand-in for the Hugging Face hub: the requests that huggingface_hub makes to publish a model and to fetch it."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 34
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves one repository, ``me/model``, on a free port of this machine; files above 10,000 bytes go to LFS.

    Attributes:
        repositories: contents of files by repository and name.
        unknown: requests that it has no answer for.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.unknown: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _answer(self, content=None, status: int = 200, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _unknown(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self._answer({"error": "unknown"}, 404, {"X-Error-Code": "EntryNotFound"})

    def do_POST(self):
        path, body = urlsplit(self.path).path, self._body()
        hub = self.server
        if not path.endswith("/batch") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            hub.repositories.setdefault(name, {})
            return self._answer({"url": f"{hub.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        for name, files in hub.repositories.items():
            if path == f"/api/models/{name}/preupload/main":
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] > 10_000 else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self._answer({"files": modes})
            if path == f"/{name}.git/info/lfs/objects/batch":
                objects = [
                    {**item, "actions": {"upload": {"href": f"{hub.address}/lfs/{item['oid']}"}}}
                    for item in json.loads(body)["objects"]
                ]
                return self._answer({"transfer": "basic", "objects": objects})
            if path == f"/api/models/{name}/commit/main":
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                return self._answer({"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self._unknown()

    def do_PUT(self):
        digest, body = self.path.rsplit("/", 1)[1], self._body()
        assert hashlib.sha256(body).hexdigest() == digest
        self.server.objects[digest] = body
        self._answer({})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        for name, files in self.server.repositories.items():
            if path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                return self._answer({"id": name, "sha": COMMIT, "siblings": siblings, "private": False})
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files.items()
                ]
                return self._answer(tree)
            if path.startswith(f"/{name}/resolve/") and (content := files.get(path.split("/", 5)[5])) is not None:
                tag = hashlib.sha256(content).hexdigest()
                return self._answer(content, headers={"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        if path.startswith("/api/models/"):
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self._unknown()

    do_HEAD = do_GET
