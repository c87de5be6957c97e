"""
A Hub on this machine, for tests: it speaks what the real `huggingface_hub` client speaks to make a repository, upload
(preupload, LFS, commit), list and download, with revisions, private repositories and interruptions on demand. And a
client: Python in a process of its own, since the client's endpoint is fixed when it is imported.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


TOKEN = "hf_of_the_owner"


class Repository:
    """Branches and commits; a commit is a dictionary of files."""

    def __init__(self, is_private):
        self.is_private = is_private
        self.commits = {"0" * 40: {".gitattributes": b""}}
        self.branches = {"main": "0" * 40}

    def resolve(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)

    def commit(self, branch, files):
        content = b"".join(path.encode() + data for path, data in sorted(files.items()))
        sha = hashlib.sha1(content + str(len(self.commits)).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class FakeHub(ThreadingHTTPServer):
    """
    Runs in a thread; `with FakeHub() as hub`. Set `drop_uploads` to close the connection in the middle of that many
    uploads, `stall_uploads` to never answer any (`is_stalling` is set when one has begun), `broken` to a status with
    which all requests are answered, or those of the files that `breaks` names; with "closed" none is answered.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {}
        self.blobs = {}  # uploaded, but not necessarily committed
        self.requests = []
        self.drop_uploads = 0
        self.stall_uploads = False
        self.broken = None
        self.breaks = ()
        self.is_stalling = threading.Event()
        self.stop_stalling = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.stop_stalling.set()
        self.shutdown()
        self.server_close()

    def files(self, repo, revision="main"):
        repository = self.repositories[repo]
        return repository.commits[repository.resolve(revision)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    ROUTES = [
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/?]+)", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/?]+))?", "info"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/?]+)", "branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/?]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/?]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/upload/(?P<oid>\w+)", "upload"),
        ("HEAD|GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
    ]

    def log_message(self, *args):
        pass

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        if self.server.broken and path.endswith(self.server.breaks or ("",)):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.server.broken != "closed":
                return self.answer(self.server.broken)
            self.close_connection = True
            return self.connection.close()
        for method, pattern, name in self.ROUTES:
            if self.command in method.split("|") and (match := re.fullmatch(pattern, path)):
                arguments = {key: value for key, value in match.groupdict().items() if value is not None}
                if name != "upload":
                    self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
                        self.body = self.read_chunks()
                if "repo" in arguments and not self.may_enter(arguments["repo"]):
                    return self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
                return getattr(self, name)(**arguments)
        return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def read_chunks(self):
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status, content=b"", headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ------------------------------------------------------------------ who may do what

    def is_owner(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def may_enter(self, repo):
        repository = self.server.repositories.get(repo)
        is_write = self.command in ("POST", "PUT")
        return self.is_owner() or (repository is not None and not repository.is_private and not is_write)

    # ------------------------------------------------------------------ requests

    def create(self):
        if not self.is_owner():
            return self.answer(401)
        request = json.loads(self.body)
        repo = f"{request['organization']}/{request['name']}"
        if repo in self.server.repositories:
            return self.answer(409, {"error": "You already created it", "url": f"{self.server.url}/{repo}"})
        self.server.repositories[repo] = Repository(request.get("visibility") == "private")
        return self.answer(200, {"url": f"{self.server.url}/{repo}"})

    def validate(self):
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def revision_or_404(self, repo, revision):
        sha = self.server.repositories[repo].resolve(revision) if repo in self.server.repositories else None
        if sha is None:
            code = "RevisionNotFound" if repo in self.server.repositories else "RepoNotFound"
            self.answer(404, headers={"X-Error-Code": code})
        return sha

    def info(self, repo, revision="main"):
        if sha := self.revision_or_404(repo, revision):
            siblings = [{"rfilename": path} for path in self.server.files(repo, sha)]
            is_private = self.server.repositories[repo].is_private
            self.answer(200, {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "private": is_private})

    def tree(self, repo, revision):
        if sha := self.revision_or_404(repo, revision):
            files = self.server.files(repo, sha)
            self.answer(
                200,
                [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ],
            )

    def branch(self, repo, revision):
        repository = self.server.repositories[repo]
        if revision in repository.branches:
            return self.answer(409, {"error": "Reference already exists"})
        repository.branches[revision] = repository.branches["main"]
        return self.answer(200, {})

    def preupload(self, repo, revision):
        if self.revision_or_404(repo, revision):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": files})

    def lfs_batch(self, repo):
        objects = [
            {**file, "actions": {"upload": {"href": f"{self.server.url}/upload/{file['oid']}"}}}
            for file in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid):
        size = int(self.headers.get("Content-Length") or 0)
        if self.server.stall_uploads or self.server.drop_uploads > 0:
            self.rfile.read(size // 2)
            self.close_connection = True
            if self.server.stall_uploads:
                self.server.is_stalling.set()
                self.server.stop_stalling.wait(60)
            self.server.drop_uploads -= 1
            return self.connection.close()
        data = self.rfile.read(size) if size else self.read_chunks()
        if hashlib.sha256(data).hexdigest() != oid:
            return self.answer(400, {"error": "another file than announced"})
        self.server.blobs[oid] = data
        return self.answer(200)

    def commit(self, repo, revision):
        if not (sha := self.revision_or_404(repo, revision)):
            return
        files = dict(self.server.files(repo, sha))
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        new = self.server.repositories[repo].commit(revision, files)
        self.answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{new}", "commitOid": new})

    def file(self, repo, revision, path):
        if sha := self.revision_or_404(repo, revision):
            data = self.server.files(repo, sha).get(path)
            if data is None:
                return self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(200, data, headers={"ETag": etag, "X-Repo-Commit": sha})


WORKER = """
import json, sys
names = {}
for line in sys.stdin:
    names["result"] = None
    try:
        exec(json.loads(line), names)
        answer = {"result": names["result"]}
    except Exception as error:
        answer = {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


class ClientError(Exception):
    """What a client's code raised: `kinds` names its class and the classes above."""

    def __init__(self, kinds, message):
        super().__init__(message)
        self.kinds = kinds


class Client:
    """Python that knows the fake Hub as the only one; `with Client(hub.url) as client`."""

    def __init__(self, url):
        self.home = tempfile.TemporaryDirectory()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": url,
            "HF_HOME": self.home.name,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.home.cleanup()

    def send(self, code):
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def run(self, code):
        """Run code; returns what it puts into `result`. Names stay."""
        self.send(code)
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"], answer["message"])
        return answer["result"]
