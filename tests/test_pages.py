"""The pages that people write name functions, keys, metrics, files and commands that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from destruct.config.base import walk
from destruct.config.settings import Config
from destruct.tracking.metrics import METRICS, check_name
from tests.docs_commands.blocks import ROOT, blocks_of, pages
from tests.docs_commands.dry_run import check
from tests.docs_commands.outputs import PAGE as OUTPUTS

WRITTEN = [path for path in pages() if path.name not in ("outputs.md", "lab.md", "CONTRIBUTING.md")]
SECTIONS = tuple(Config.model_fields)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes and assigned names of a Python file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(found)


def test_each_equation_of_the_algorithm_names_a_function_that_there_is():
    text = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8").replace("\n", " ")
    named = re.findall(r"`(destruct/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
    assert len(named) > 30
    for file, names in named:
        there = names_in(ROOT / file)
        lost = [name for name in re.findall(r"`(\w+)`", names) if name not in there]
        assert not lost, f"{file} has no {lost}"


def test_every_section_of_the_algorithm_names_the_code_that_does_it():
    text = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[2:]:
        equations, sources = section.count("```math"), len(re.findall(r"`destruct/[\w/]+\.py`", section))
        assert sources > 0, section.splitlines()[0]
        assert equations <= 4 * sources, section.splitlines()[0]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_files_and_links_that_a_page_names_are_there(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target
    for name in re.findall(r"`((?:destruct|tests|configs|ds_configs|bench|launch)/[\w/.*-]+)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), name


KEYS = {re.sub(r"<\w+>", "<name>", key) for key, _ in walk(Config)}


def keys_named_in(text: str) -> set[str]:
    """What stands in backticks as a dotted key of the YAML, without its value."""
    found = re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[\w.<>]+)", text)
    return {key.rstrip(".") for key in found if not key.endswith((".py", ".md", ".yaml", ".json", ".jsonl"))}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_keys_that_a_page_names_are_those_of_the_config(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "coming_from.md":  # there the first column has the keys of others
        text = re.sub(r"^\| [^|]*\|", "|", text, flags=re.MULTILINE)
    for key in keys_named_in(text):
        plain = re.sub(r"data\.sources\.\w+", "data.sources.<name>", key.replace("<name>", "name"))
        plain = re.sub(r"\.(terms|reference_loss)\..*", r".\1", plain)
        assert any(known == plain or known.startswith(f"{plain}.") for known in KEYS), key


RECORDED = (ROOT / "destruct" / "recording.py").read_text(encoding="utf-8")
NO_FIGURES = {"curriculum/reasons", *re.findall(r'histogram\("([\w/]+)"', RECORDED)}
"""Names of a table of words and of histograms, which no line of metrics.jsonl has."""


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_metrics_that_a_page_names_are_logged(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "coming_from.md":
        text = re.sub(r"^\| [^|]*\|", "|", text, flags=re.MULTILINE)
    groups = "|".join({name.partition("/")[0] for name in METRICS} - {"ppo"}) + "|ppo"
    for name in re.findall(rf"`((?:{groups})/[\w/<>]+)`", text):
        plain = name.replace("<source>", "prose").replace("<term>", "eos")
        if not (ROOT / "destruct" / plain).exists() and name not in NO_FIGURES:
            check_name(plain)


def test_every_claim_has_a_command_that_would_be_read():
    text = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    rows = [re.split(r" \| ", row.strip("| ")) for row in re.findall(r"^\| .*\|$", text, re.MULTILINE)]
    claims = [row for row in rows if row[1:2] and row[1].startswith("`") and not row[0].startswith("`")]
    assert len(claims) > 20
    for claim in claims:
        check(claim[1].strip("`"), ROOT)


def test_readme_s_first_screen_is_short_and_has_a_command_and_what_it_said():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    first, *_ = [block for block in blocks_of(text, "README.md") if block.commands]
    assert first.line < 15 and first.commands == [
        "make train        # a small run on embedded text: no download, no GPU"
    ]
    assert first.quoted


def test_every_page_of_docs_is_on_the_map_of_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in pages()[2:] if f"(docs/{path.name})" not in text] == []
    assert OUTPUTS.exists()
