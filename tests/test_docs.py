"""Generated pages: nothing drifts, every key and metric is there, and the tables hold together."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from destruct.config.base import dump_with_provenance
from destruct.config.settings import Config
from destruct.tracking.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["config.md", "metrics.md", "sources.md"]


SCRIPT = ROOT / "docs" / "generate.py"
generate = runpy.run_path(str(SCRIPT))["main"]


def test_the_pages_say_what_the_code_says():
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_page_that_drifted_or_is_missing_is_told_in_one_line_and_written_again(tmp_path, capsys):
    here = ["--folder", str(tmp_path)]
    assert generate(here) == 0
    pages = {name: (tmp_path / name).read_text() for name in PAGES}
    assert pages == {name: (ROOT / "docs" / name).read_text() for name in PAGES}
    drifted = pages["config.md"].replace("`ppo.epochs`           | int ", "`ppo.epoch` | int ")
    (tmp_path / "config.md").write_text(drifted)
    (tmp_path / "metrics.md").unlink()
    assert generate(["--check", *here]) == 1
    config, metrics = capsys.readouterr().err.splitlines()
    assert "config.md: 1 lines out of date, 1 missing, the first: '-| `ppo.epoch` | int" in config
    assert f"metrics.md: 0 lines out of date, {len(pages['metrics.md'].splitlines())} missing" in metrics
    assert (tmp_path / "config.md").read_text() == drifted and not (tmp_path / "metrics.md").exists()
    assert generate(here) == 0 and generate(["--check", *here]) == 0


def test_a_schema_that_drifted_is_told_and_written_again(tmp_path, capsys):
    here = ["--folder", str(tmp_path)]
    assert generate(here) == 0
    schema = tmp_path / "schema.json"
    assert schema.read_text() == (ROOT / "configs" / "schema.json").read_text()
    schema.write_text(schema.read_text().replace('"clip_range"', '"clip"'))
    assert generate(["--check", *here]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "schema.json: 1 lines out of date, 1 missing, the first: '-    \"clip\": {'" in said
    assert generate(here) == 0 and generate(["--check", *here]) == 0


def tables(name: str) -> list[list[list[str]]]:
    """Every table of a page: rows of cells, without the padding."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / "docs" / name).read_text().splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.mark.parametrize("name", PAGES)
def test_every_row_has_the_cells_of_its_head_and_the_columns_line_up(name):
    assert len(tables(name)) >= (2 if name == "sources.md" else 6)
    for table in tables(name):
        assert {len(row) for row in table} == {len(table[0])}
        assert all(row[0] and row[-1] for row in table)
    lines = (ROOT / "docs" / name).read_text().splitlines()
    for line, following in zip(lines, lines[1:], strict=False):
        if line.startswith("|") and following.startswith("|"):
            # All but the last cell are as wide as those below them.
            bars = [[bar.start() for bar in re.finditer(r"(?<!\\)\|", row)][:-1] for row in (line, following)]
            assert bars[0] == bars[1], following


def test_every_key_of_resolved_yaml_stands_on_the_page_once_with_the_default_it_has_there():
    """By the other way round: from the file that a run writes, not from the types."""
    config = Config.model_validate({"data": {"sources": {"any": {"embedded": "prose"}}}})
    resolved = yaml.safe_load(dump_with_provenance(config, {}))
    rows = {row[0].strip("`"): row for table in tables("config.md") for row in table if len(row) == 5}

    def check(values: dict, prefix: str) -> int:
        count = 0
        for key, value in values.items():
            path = f"{prefix}{key}".replace("data.sources.any.", "data.sources.<name>.")
            path = path.replace("model.value.", "model.policy.")
            if isinstance(value, dict) and path != "reward.terms":
                count += check(value, f"{prefix}{key}.")
            elif key != "embedded":
                assert json.loads(rows[path][2].strip("`")) == value, path
                count += 1
        return count

    assert check(resolved, "") > 70
    assert rows["data.sources"][1:3] == ["name: section", "required"]


def test_bounds_are_told_as_the_config_enforces_them():
    """Worked by hand for one key of each kind."""
    rows = {row[0].strip("`"): row for table in tables("config.md") for row in table if len(row) == 5}
    assert rows["ppo.clip_range"][1:4] == ["float", "`0.2`", "> 0, < 1"]
    assert rows["ppo.early_stop_kl"][1:4] == ["float or null", "`null`", "> 0"]
    assert rows["run.seed"][3] == ">= 0, < 2**63"
    assert rows["kl.in_loss"][1:4] == [
        "choice",
        '`"none"`',
        "`none`, `k2`, `k3`, `k3_weighted`, `exact`, `exact_forward`",
    ]
    assert rows["optimizer.params.lr"][1:4] == ["float or `auto`", '`"auto"`', "> 0"]
    assert rows["optimizer.params.betas"][1:4] == ["2 x float", "`[0.9, 0.999]`", ">= 0, < 1"]
    assert rows["gradient_accumulation_steps"][1:4] == ["int", "required", ">= 1"]


def test_every_metric_stands_on_the_page_once_with_its_unit():
    rows = [row for table in tables("metrics.md") for row in table if row[0].startswith("`")]
    assert [row[0].strip("`") for row in rows] == list(METRICS)
    assert [row[1] for row in rows] == [metric.unit for metric in METRICS.values()]
