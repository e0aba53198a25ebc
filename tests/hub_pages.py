"""The pages and the API of the stand-in of huggingface.co.

API: https://huggingface.co/docs/hub/api; LFS: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs, urlsplit

from hub_handlers import Files, Handler, Repo, blob_id, commit_of, is_large, sha256


class HubHandler(Handler):
    """The pages and the API of the Hub itself."""

    def answer(self):
        parts = self.url.strip("/").split("/")
        if self.token and self.token not in self.hub.rights:
            return self.fail(401, None, "Invalid credentials in Authorization header")
        if parts[0] != "api":
            return (
                self.lfs(parts) if parts[1].endswith(".git") else self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            )
        if parts[1] == "validate-yaml":
            return self.json({"warnings": [], "errors": []})
        if parts[1] == "repos":
            return self.create(json.loads(self.body))
        name, action, revision = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "", "/".join(parts[5:]) or "main"
        if self.command == "POST":
            return self.change(name, action, revision)
        files = self.visible(name, revision)
        if files is not None:
            self.json(tree(files) if action == "tree" else self.info(name, files))

    def visible(self, name: str, revision: str) -> Files | None:
        """The files of a revision, or None where an error has been sent."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.token):
            return self.fail(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if (files := repo.files(revision)) is None:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    def info(self, name: str, files: Files) -> dict:
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            {"rfilename": path} | ({"size": len(c), "blobId": blob_id(c), **lfs_info(path, c, "sha256")} if blobs else {})
            for path, c in files.items()
        ]
        return {"id": name, "sha": commit_of(files), "siblings": siblings, "gated": self.hub.repos[name].gated, "tags": []}

    def resolve(self, name: str, revision: str, path: str):
        if (files := self.visible(name, revision)) is None:
            return None
        if self.hub.repos[name].gated and self.token != "hf_writer":
            return self.fail(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted")
        if path not in files:
            return self.fail(404, "EntryNotFound", "Entry not found")
        content, commit = files[path], commit_of(files)
        if not is_large(path):
            return self.send(200, content, ETag=f'"{blob_id(content)}"', X_Repo_Commit=commit)
        linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        return self.send(302, Location=f"{self.hub.storage}/{sha256(content)}", X_Repo_Commit=commit, **linked)

    def create(self, wanted: dict):
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.hub.rights.get(self.token) != "write":
            return self.fail(403 if self.token else 401, None, "You don't have the rights to create a model under this namespace")
        if name not in self.hub.repos:
            self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
            return self.json({"url": f"{self.hub.endpoint}/{name}"})
        return self.json({"url": f"{self.hub.endpoint}/{name}"}, 409)

    def change(self, name: str, action: str, revision: str):
        repo = self.hub.repos[name]
        if self.hub.rights.get(self.token) != "write":
            return self.fail(403, None, "you must use a write token")
        if action == "branch":
            self.json({}, 409 if revision in repo.branches else 200)
            return repo.branches.setdefault(revision, dict(repo.branches["main"]))
        if action == "preupload":
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if is_large(p) else "regular", "shouldIgnore": False} for p in paths]
            return self.json({"files": modes})
        for line in self.body.splitlines():
            self.apply(repo.branches[revision], **json.loads(line))
        return self.json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/1", "commitOid": commit_of(repo.branches[revision])})

    def apply(self, files: Files, key: str, value: dict):
        """One line of a commit."""
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.hub.blobs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]

    def lfs(self, parts: list[str]):
        if parts[-1] == "verify":
            value = json.loads(self.body)
            return self.send(200 if sha256(self.hub.blobs[value["oid"]]) == value["oid"] else 422)
        verify = f"{self.hub.endpoint}/{'/'.join(parts[:4])}/verify"
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.storage}/{item['oid']}"}, "verify": {"href": verify}}}
            for item in json.loads(self.body)["objects"]
        ]
        return self.json({"transfer": "basic", "objects": objects})


def lfs_info(path: str, content: bytes, key: str) -> dict:
    return {"lfs": {key: sha256(content), "size": len(content), "pointerSize": 134}} if is_large(path) else {}


def tree(files: Files) -> list[dict]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": blob_id(content), **lfs_info(path, content, "oid")}
        for path, content in files.items()
    ]
