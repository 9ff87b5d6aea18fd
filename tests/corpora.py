"""Small texts in the columns of the five data sets of the specification, as local Parquet files."""

from pathlib import Path

import pyarrow
import pyarrow.parquet

from destruct.data.embedded import EMBEDDED

SOURCES = ("wikitext", "bookcorpusopen", "cnn_dailymail", "daily_dialog", "europarl")


def write_corpora(root: Path, size: int = 60_000) -> None:
    """One folder a source, `train.parquet` and, where the hub's data set has one, `validation.parquet`."""
    prose, dialogue = EMBEDDED["prose"](size, 1), EMBEDDED["dialogue"](size, 2)
    lines = [line for text in prose for line in [*text.splitlines(), ""]]
    rows = {
        "wikitext": {"text": lines},
        "bookcorpusopen": {"title": [f"book {n}" for n in range(len(prose))], "text": prose},
        "cnn_dailymail": {
            "article": prose[::-1],
            "highlights": [text[:20] for text in prose[::-1]],
            "id": [str(n) for n in range(len(prose))],
        },
        "daily_dialog": {
            "dialog": [text.splitlines() for text in dialogue],
            "act": [[0] * len(text.splitlines()) for text in dialogue],
            "emotion": [[0] * len(text.splitlines()) for text in dialogue],
        },
        "europarl": {"translation": [{"en": text, "fr": text.upper()} for text in lines if text]},
    }
    for name, columns in rows.items():
        table = pyarrow.table(columns)
        (root / name).mkdir(parents=True)
        if name in ("bookcorpusopen", "europarl"):
            pyarrow.parquet.write_table(table, root / name / "train.parquet")
            continue
        tenth = max(2, table.num_rows // 10)
        pyarrow.parquet.write_table(table.slice(0, tenth), root / name / "validation.parquet")
        pyarrow.parquet.write_table(table.slice(tenth), root / name / "train.parquet")
