"""The hub of the tests is a hub to `huggingface_hub`: revisions, folders, refusals."""

import json
import subprocess
import sys

from tests.hub import Hub

FILES = {"config.json": b'{"of": "main"}', "onnx/model.onnx": b"\0weights", "README.md": b"# Tiny\n"}

CLIENT = """
import json, sys
from pathlib import Path
import huggingface_hub as hf

def said(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:
        return type(error).__name__

def folder(name, **options):
    root = Path(hf.snapshot_download(name, **options))
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*.*")) if path.is_file()}

api, accepted = hf.HfApi(), sys.argv[1]
print(json.dumps({
    "main": folder("me/tiny"),
    "v2": folder("me/tiny", revision="v2"),
    "commits": [api.model_info("me/tiny", revision=revision).sha for revision in ("main", "v2")],
    "root": sorted(entry.path for entry in api.list_repo_tree("me/tiny")),
    "onnx": [(entry.path, entry.size) for entry in api.list_repo_tree("me/tiny", "onnx")],
    "named": [entry.path for entry in api.get_paths_info("me/tiny", ["onnx/model.onnx", "absent"])],
    "data": Path(hf.hf_hub_download("me/tiny", "a.txt", repo_type="dataset")).read_text(),
    "no file": said(hf.hf_hub_download, "me/tiny", "absent.json"),
    "no folder": said(lambda: list(api.list_repo_tree("me/tiny", "absent"))),
    "no revision": said(hf.hf_hub_download, "me/tiny", "config.json", revision="v3"),
    "no repository": [said(api.model_info, "me/none", token=token) for token in (False, accepted)],
    "gated": [said(hf.hf_hub_download, "me/closed", "config.json", token=t) for t in (False, "hf_wrong")],
    "expired": said(api.model_info, "me/tiny", token="hf_expired"),
    "opened": Path(hf.hf_hub_download("me/closed", "config.json", token=accepted)).read_text(),
}))
"""


def test_the_hubs_own_client_finds_here_what_was_added_and_is_refused_the_rest(tmp_path):
    with Hub() as hub:
        hub.add("models", "me/tiny", FILES)
        second = hub.add("models", "me/tiny", {"config.json": b'{"of": "v2"}'}, revision="v2")
        hub.add("datasets", "me/tiny", {"a.txt": b"a data set of the same name"})
        hub.add("models", "me/closed", FILES, gated=True)
        environment = hub.environment(tmp_path) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-c", CLIENT, hub.token]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["main"] == {name: content.decode() for name, content in FILES.items()}
    assert got["v2"] == {"config.json": '{"of": "v2"}'}
    assert got["expired"] == "HfHubHTTPError"
    assert got["commits"][1] == second != got["commits"][0]
    assert got["root"] == ["README.md", "config.json", "onnx"]
    assert got["onnx"] == [["onnx/model.onnx", 8]] and got["named"] == ["onnx/model.onnx"]
    assert got["data"] == "a data set of the same name"
    assert got["no file"] == got["no folder"] == "RemoteEntryNotFoundError"
    assert got["no revision"] == "RevisionNotFoundError"
    assert got["no repository"] == ["RepositoryNotFoundError"] * 2
    assert got["gated"] == ["GatedRepoError"] * 2 and got["opened"] == '{"of": "main"}'
