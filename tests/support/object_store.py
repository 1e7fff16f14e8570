"""Simulates Google Cloud Storage: an HTTP server for TensorStore, and an fsspec file system.

Both serve the same bucket. As in a real one, there are no folders, only objects whose names contain
slashes. Nothing can be renamed or appended to.
"""

import http.server
import importlib
import io
import json
import re
import threading
import types
import urllib.parse
import urllib.request

import fsspec
from orbax.checkpoint._src.path import gcs_utils

BUCKET = "bucket"
REGISTRY = importlib.import_module("fsspec.registry")._registry  # maps protocols to file systems


class ObjectStore:
    """The objects of one bucket, as a dict from name to (content, generation)."""

    def __init__(self):
        self.objects, self.lock, self.count = {}, threading.RLock(), 0

    def names(self, prefix=""):
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def read(self, name):
        return self.objects[name][0]

    def generation(self, name):
        return self.objects[name][1] if name in self.objects else 0

    def write(self, name, content):
        with self.lock:
            self.count += 1
            self.objects[name] = bytes(content), self.count

    def delete(self, name):
        with self.lock:
            del self.objects[name]


class RemoteStore:
    """Client for the objects of a bucket that another process serves."""

    def __init__(self, port):
        self._url = f"http://localhost:{port}"

    def _request(self, path, body=None, method=None):
        request = urllib.request.Request(self._url + path, data=body, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    @property
    def objects(self):
        return self.names()

    def names(self, prefix=""):
        path = f"/storage/v1/b/{BUCKET}/o?prefix={urllib.parse.quote(prefix, safe='')}"
        return [item["name"] for item in json.loads(self._request(path))["items"]]

    def read(self, name):
        return self._request(f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}")

    def write(self, name, content):
        name = urllib.parse.quote(name, safe="")
        self._request(f"/upload/storage/v1/b/{BUCKET}/o?name={name}", bytes(content), "POST")

    def delete(self, name):
        name = urllib.parse.quote(name, safe="")
        self._request(f"/storage/v1/b/{BUCKET}/o/{name}", method="DELETE")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def log_message(self, *_):
        pass

    def _reply(self, code, content=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _request(self):
        url = urllib.parse.urlsplit(self.path)
        options = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        name = options.get("name") or urllib.parse.unquote(
            re.sub(r"^/(upload/)?storage/v1/b/[^/]+(/o/?)?", "", url.path)
        )
        return name, options

    def _precondition_fails(self, name, options):
        now = self.store.generation(name)
        wanted, unwanted = options.get("ifGenerationMatch"), options.get("ifGenerationNotMatch")
        if wanted is not None and int(wanted) != now:
            return 412
        return 304 if unwanted is not None and int(unwanted) == now else 0

    def do_GET(self):
        name, options = self._request()
        with self.store.lock:
            if not name:
                return self._list(options)
            if name not in self.store.objects:
                return self._reply(404, b"{}")
            if code := self._precondition_fails(name, options):
                return self._reply(code)
            content = self.store.read(name)
            headers = {"x_goog_generation": self.store.generation(name)}
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._reply(200, content, **headers)
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        last = min(last, len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self._reply(206, content[first : last + 1], **headers)

    def _list(self, options):
        start, end = options.get("startOffset", ""), options.get("endOffset")
        names = [
            name
            for name in self.store.names(options.get("prefix", ""))
            if name >= start and (end is None or name < end)
        ]
        items = [{"name": name, "generation": "1", "size": "1"} for name in names]
        self._reply(200, json.dumps({"items": items}).encode(), Content_Type="application/json")

    def do_POST(self):
        name, options = self._request()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.store.lock:
            if code := self._precondition_fails(name, options):
                return self._reply(code)
            self.store.write(name, content)
            about = {"name": name, "generation": str(self.store.generation(name))}
        self._reply(200, json.dumps(about).encode(), Content_Type="application/json")

    def do_DELETE(self):
        name, options = self._request()
        with self.store.lock:
            if code := self._precondition_fails(name, options):
                return self._reply(code)
            if name not in self.store.objects:
                return self._reply(404)
            self.store.delete(name)
        self._reply(204)


class FakeFileSystem(fsspec.AbstractFileSystem):
    """Replaces gcsfs for the simulated bucket."""

    protocol = ("gs", "gcs")
    store: ObjectStore

    def _name(self, path):
        return self._strip_protocol(path).removeprefix(BUCKET).strip("/")

    def info(self, path, **_):
        name = self._name(path)
        full = f"{BUCKET}/{name}".rstrip("/")
        if name in self.store.objects:
            return {"name": full, "size": len(self.store.read(name)), "type": "file"}
        if not name or self.store.names(name + "/"):
            return {"name": full, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        info = self.info(path)
        if info["type"] == "file":
            return [info] if detail else [info["name"]]
        prefix = self._name(path)
        prefix += "/" if prefix else ""
        children = {name[len(prefix) :].partition("/")[0] for name in self.store.names(prefix)}
        infos = [self.info(f"{BUCKET}/{prefix}{child}") for child in sorted(children)]
        return infos if detail else [child["name"] for child in infos]

    def mkdir(self, path, create_parents=True, **_):
        pass  # there are no folders

    def makedirs(self, path, exist_ok=False):
        pass

    def rm_file(self, path):
        if self._name(path) in self.store.objects:  # a folder ends with its last object
            self.store.delete(self._name(path))

    def rmdir(self, path):
        pass

    def cp_file(self, path1, path2, **_):
        self.store.write(self._name(path2), self.store.read(self._name(path1)))

    def mv(self, path1, path2, **_):
        raise NotImplementedError("objects cannot be renamed")

    def _open(self, path, mode="rb", **_):
        name = self._name(path)
        if mode == "rb":
            if name not in self.store.objects:
                raise FileNotFoundError(path)
            return io.BytesIO(self.store.read(name))
        if mode != "wb":
            raise NotImplementedError(f"mode {mode}")
        return _Upload(self.store, name)


def use_store(store, patch):
    """Maps `gs://` to the simulated bucket.

    Args:
      store: an `ObjectStore` or a `RemoteStore`.
      patch: pytest's `MonkeyPatch`.
    """
    patch.setattr(FakeFileSystem, "store", store, raising=False)
    for name in FakeFileSystem.protocol:
        patch.setitem(REGISTRY, name, FakeFileSystem)
    about = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    patch.setattr(gcs_utils, "get_bucket", lambda _: about)  # a function of google-cloud-storage


class _Upload(io.BytesIO):
    """A new object, which is created when the file is closed."""

    def __init__(self, store, name):
        super().__init__()
        self._store, self._object_name = store, name

    def close(self):
        if not self.closed:
            self._store.write(self._object_name, self.getvalue())
        super().close()


def serve(store):
    """Starts a server in a thread and returns it."""
    # The server creates the handlers, so the store is a class attribute.
    handler = type("Handler", (_Handler,), {"store": store})
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
