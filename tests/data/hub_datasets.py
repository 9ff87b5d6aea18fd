"""The data sets of the tests' hub: configurations, revisions, scripts, a gate, and a card that declares its types."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hub import Files, Hub

EXPORT = "refs/convert/parquet"

README = b"""---
configs:
- config_name: long
  data_files:
  - {split: train, path: long/train-*.parquet}
  - {split: validation, path: long/validation-*.parquet}
  - {split: test, path: long/test-*.parquet}
- config_name: short
  data_files:
  - {split: train, path: short/train-*.parquet}
---
Tales.
"""


TRANSLATED = b"""---
dataset_info:
- config_name: en-fr
  features:
  - name: translation
    dtype: {translation: {languages: [en, fr]}}
  splits:
  - {name: train, num_examples: 2, num_bytes: 100}
configs:
- config_name: en-fr
  data_files:
  - {split: train, path: en-fr/train-*.parquet}
---
"""


def parquet(**columns: Any) -> bytes:
    """A Parquet file of these columns."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def tales(first: str) -> Files:
    """Two configurations; the first text is told apart by its revision."""
    return {
        "README.md": README,
        "long/train-00000-of-00002.parquet": parquet(text=[first, "", "second tale"]),
        "long/train-00001-of-00002.parquet": parquet(text=["third tale"]),
        "long/validation-00000-of-00001.parquet": parquet(text=["held out"]),
        "long/test-00000-of-00001.parquet": parquet(text=["tested on"]),
        "short/train-00000-of-00001.parquet": parquet(text=["short a", "short b"]),
    }


def fill(hub: Hub) -> None:
    """Put them up."""
    hub.add("datasets", "me/tales", tales("first tale"))
    hub.add("datasets", "me/tales", tales("first tale, as it was"), revision="v1.0")
    hub.add("datasets", "me/script", {"README.md": b"Old.\n", "script.py": b"import datasets\n"})
    turns = parquet(dialog=[["Hello. ", " Hi!"], ["Bye."]])
    hub.add("datasets", "me/script", {"default/train/0000.parquet": turns}, revision=EXPORT)
    pairs = {
        f"{name}/{split}/0000.parquet": parquet(translation=[{"en": f"{name} {split} {n}", "fr": "mot"} for n in "12"])
        for name, split in (("de-fr", "train"), ("en-fr", "train"), ("en-fr", "test"))
    }
    hub.add("datasets", "me/pairs", {"README.md": b"Old.\n", "pairs.py": b"import datasets\n"})
    hub.add("datasets", "me/pairs", pairs, revision=EXPORT)
    talks = parquet(translation=[{"en": "Yes.", "fr": "Oui."}, {"en": "No.", "fr": "Non."}])
    hub.add("datasets", "me/talks", {"README.md": TRANSLATED, "en-fr/train-0.parquet": talks})
    hub.add("datasets", "me/closed", tales("a secret"), gated=True)
    hub.add("datasets", "me/bare", {"README.md": b"Nothing yet.\n"})
