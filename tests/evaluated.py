"""What tests of `destruct evaluate` share: a run, and what is said of it."""

import json
import re
from pathlib import Path

from destruct import evaluate
from destruct.loop import train
from tests.test_export import SHORT, in_float32
from tests.tiny import ROOT, tiny_run

PROMPTS = f"prompts.file={ROOT / 'configs/prompts.yaml'}"


def trained_run(folder: Path) -> dict:
    """A run in float32 of two updates, both of them saved, validated and heard: its folder and its validation sets."""
    with tiny_run(folder, *SHORT, in_float32(folder), "run.evaluate_every=1", PROMPTS) as run:
        train(run)
        return {"run": run.folder, "sets": run.inputs.validation}


def told(capsys, *arguments: object) -> dict:
    """The evaluation as JSON."""
    capsys.readouterr()
    assert evaluate.main([*map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, code: int, *arguments: object) -> str:
    """What is said in two lines, the last ones, of what does not end well."""
    capsys.readouterr()
    assert evaluate.main(list(map(str, arguments))) == code
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"(reading and .*\n)?destruct: .*\n  remedy: .*\n", err), err
    return err
