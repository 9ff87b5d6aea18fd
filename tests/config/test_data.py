"""Sources of the config: one origin, keys that something reads, templates, and what a resolved.yaml gives back."""

import pytest
import yaml
from pydantic import ValidationError

from destruct.config.base import dump_with_provenance
from destruct.config.data import DataConfig, SourceConfig

HUB = "hub: Salesforce/wikitext"


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("{}", "none"),
        ("{embedded: prose, path: a.txt}", "embedded and path"),
        (f"{{path: a.txt, {HUB}}}", "path and hub"),
    ],
)
def test_a_source_takes_exactly_one_origin(files, refusal, source, given):
    problem, remedy = refusal(files.load, f"data.sources={{mine: {source}}}")
    assert problem.endswith(f"a source takes exactly one of `embedded`, `path` and `hub`, and it has {given}")
    assert remedy.startswith("give one of them")


@pytest.mark.parametrize(
    "change", [{"sources": {}}, {"sources": {"a.b": {"embedded": "prose"}}}, {"validation_fraction": 1}, {"root": ""}]
)
def test_the_config_refuses_what_cannot_work(change):
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"sources": {"a": {"embedded": "prose"}}, **change})


@pytest.mark.parametrize("hub", ["wikitext", "https://huggingface.co/datasets/a/b", "a/b/c", "a/", "/b", "a b/c"])
def test_an_id_of_the_hub_is_owner_and_name(files, refusal, hub):
    problem, remedy = refusal(files.load, f"data.sources={{mine: {{hub: '{hub}'}}}}")
    assert f"'{hub}' is not owner/name" in problem and "Salesforce/wikitext" in remedy


@pytest.mark.parametrize(
    ("source", "key", "reader"),
    [
        ("path: a.txt, config: en-fr", "config", "a hub source"),
        ("path: a.txt, revision: main", "revision", "a hub source"),
        ("path: a.txt, split: test", "split", "a hub source"),
        ("embedded: noise, validation_split: test", "validation_split", "a hub source"),
        ("embedded: noise, format: dialog", "format", "a source of rows (path or hub)"),
        ("embedded: noise, on_bad_row: skip", "on_bad_row", "a source of rows (path or hub)"),
        ("embedded: noise, column: text", "column", "a source of rows (path or hub)"),
        (f"{HUB}, language: fr", "language", "format: translation"),
        (f"{HUB}, template: '{{a}}'", "template", "format: fields"),
        (f"{HUB}, format: fields, template: '{{a}}', column: a", "column", "format: text, dialog, translation, chat"),
        (f"{HUB}, format: 'my.own:f', column: a", "column", "format: text, dialog, translation, chat"),
    ],
)
def test_a_key_that_nothing_would_read_is_refused(files, refusal, source, key, reader):
    problem, remedy = refusal(files.load, f"data.sources={{mine: {{{source}}}}}")
    assert problem.endswith(f"data.sources.mine: {key} is read by {reader} alone")
    assert remedy == f"remove {key}"


@pytest.mark.parametrize("format", ["csv", "module", "module:", "a-b:c", ":f"])
def test_an_unknown_format_names_the_known_ones(files, refusal, format):
    problem, remedy = refusal(files.load, f"data.sources={{mine: {{path: a.txt, format: '{format}'}}}}")
    assert f"no format '{format}'" in problem
    assert remedy == "take one of text, dialog, translation, chat, fields or module:function"


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({}, ["text"]),
        ({"column": "article"}, ["article"]),
        ({"format": "dialog"}, ["dialog"]),
        ({"format": "translation", "language": "fr"}, ["translation"]),
        ({"format": "chat"}, ["messages"]),
        ({"format": "chat", "column": "talk"}, ["talk"]),
        ({"format": "fields", "template": "{b}{a}\n{b}"}, ["b", "a"]),
        ({"format": "package.module:function"}, None),
    ],
)
def test_each_format_reads_the_columns_of_its_own(options, columns):
    assert SourceConfig.model_validate({"path": "a.parquet", **options}).columns == columns


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("no column", "it names no column"),
        ("{}", "{} is not the name of a column alone"),
        ("{0}", "{0} is not"),
        ("{a.b}", "{a.b} is not"),
        ("{a[0]}", "{a[0]} is not"),
        ("{a!r}", "{a!r} is not"),
        ("{a:>8}", "{a:>8} is not"),
        ("{a:{b}}", "{a:{b}} is not"),
        ("{a", "it is no template: expected '}' before end of string"),
        ("a}", "it is no template: Single '}' encountered in format string"),
    ],
)
def test_a_template_of_more_than_plain_columns_is_refused(files, refusal, template, problem):
    source = yaml.safe_dump({"path": "a.parquet", "format": "fields", "template": template}, default_flow_style=True)
    got, remedy = refusal(files.load, f"data.sources.mine={source.strip()}")
    assert f"data.sources.mine.template: {problem}" in got
    assert remedy == "write columns as in 'Question: {question}', and {{ }} for braces themselves"


def test_fields_without_a_template_is_refused(files, refusal):
    problem, _ = refusal(files.load, "data.sources={mine: {path: a.parquet, format: fields}}")
    assert problem.endswith("format: fields needs a template")


def test_a_resolved_file_with_every_default_written_out_loads_again(files):
    sources = f"{{a: {{embedded: noise}}, b: {{path: a.txt}}, c: {{{HUB}, config: '3.0.0', format: 'own:f'}}}}"
    config = files.load(f"data.sources={sources}", "data.root=~/corpora").config
    text = dump_with_provenance(config, {})
    assert "language: en" in text and type(config)(**yaml.safe_load(text)) == config
