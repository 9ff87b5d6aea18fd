"""An evaluation as tables for people, as Markdown and as JSON; the tables of both are made from the same cells."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from destruct.evaluating.comparing import SourceDifference, counting
from destruct.evaluating.estimates import Estimate, mean_of, perplexity
from destruct.evaluating.evaluation import Evaluation
from destruct.evaluating.measuring import Measured
from destruct.tracking.summary import null_unless_finite

LETTERS = "AB"
"""Of the models, where there are two."""
ROUNDING = 1e-12
"""Relative to a figure: an error that small is what is left of none."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: heading -> cells, of which the first column names the rows."""

    title: str
    columns: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Continued:
    """A prompt, and what each model said after it."""

    topic: str
    text: str
    said: list[str]


def names(evaluation: Evaluation) -> list[str]:
    """Each model as the tables call it, and what it is."""
    subjects = [f"{each.model.subject.name} ({_dtype(each)})" for each in evaluation.measured]
    if len(subjects) == 1:
        return subjects
    return [f"{letter}: {name}" for letter, name in zip(LETTERS, subjects, strict=True)]


def settings(evaluation: Evaluation) -> str:
    """One line: what the figures depend on beside the models."""
    job, rollout = evaluation.job, evaluation.job.config.rollout
    return (
        f"data and settings of {job.path}; windows of {job.config.window_tokens} tokens; sampled at temperature "
        f"{rollout.temperature:g}, up to {rollout.response_tokens} tokens after up to {rollout.prompt_tokens}, "
        f"seed {job.seed}; on {evaluation.device}"
    )


def grids(evaluation: Evaluation) -> Iterator[Grid]:
    """The tables: of each model what it loses and says, then the differences."""
    letters = [f"{letter}: " for letter in LETTERS] if evaluation.comparison else [""]
    for letter, measured in zip(letters, evaluation.measured, strict=True):
        yield Grid(f"{letter}held-out loss", _losses(measured))
        if measured.speech:
            yield Grid(f"{letter}responses to held-out prompts", _speech(measured))
    if evaluation.comparison is not None:
        yield Grid("A - B, held-out loss: below 0 A is better; * beyond two standard errors", _apart(evaluation))
        if evaluation.comparison.speech:
            apart = _with_names(evaluation.comparison.speech, mark=True)
            yield Grid("A - B, responses, paired; * beyond two standard errors", apart)


def legend(evaluation: Evaluation) -> list[str]:
    """What the tables mean, and the notes."""
    losses = evaluation.measured[0].losses
    left_out = [name for name in losses if name not in counting(losses)]
    lines = [
        "± a standard error; mean: every source counts alike" + f", but for {', '.join(left_out)}" * bool(left_out)
    ]
    if evaluation.measured[0].speech:
        ngram = evaluation.job.config.reward.ngram
        lines.append(
            f"repetition: share of a response's {ngram}-grams that came before in it; distinct-n: different n-grams of "
            "all responses per n-gram; length: tokens; eos_rate: ended by themselves"
        )
    if evaluation.comparison is not None and not all(row.paired for row in evaluation.comparison.sources.values()):
        lines.append(
            "windows others: other tokenizers cut other windows of the same held-out text, so that only bits per byte "
            "can be compared, with the error of two samples that have nothing to do with each other"
        )
    return lines + evaluation.notes


def continued(evaluation: Evaluation) -> dict[str, list[Continued]]:
    """The person's prompts by topic, in the order of the topics' first ones."""
    prompts = evaluation.job.prompts
    said = zip(*(each.continuations for each in evaluation.measured), strict=True)
    every = [Continued(p.topic, p.text, list(texts)) for p, texts in zip(prompts, said, strict=True)]
    order = list(dict.fromkeys(each.topic for each in every))
    every.sort(key=lambda each: order.index(each.topic))
    return {topic: list(group) for topic, group in groupby(every, key=lambda each: each.topic)}


def printable(text: str) -> str:
    """A text without what would move the cursor of a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _losses(measured: Measured) -> dict[str, list[str]]:
    rows = list(measured.losses.values())
    average = _mean_of(measured)
    return {
        "source": [*measured.losses, "mean"],
        "windows": [*(f"{len(loss.nats):,}" for loss in rows), ""],
        "tokens": [*(f"{int(loss.tokens.sum()):,}" for loss in rows), ""],
        "nats/token": _cells([*(loss.nats_per_token for loss in rows), average["nats_per_token"]]),
        "perplexity": _cells([*(loss.perplexity for loss in rows), average["perplexity"]]),
        "bits/byte": _cells([*(loss.bits_per_byte for loss in rows), average["bits_per_byte"]]),
    }


def _mean_of(measured: Measured) -> dict[str, Estimate]:
    """Over the sources that count; the perplexity is that of the mean loss."""
    counted = [measured.losses[name] for name in counting(measured.losses)]
    nats = mean_of([loss.nats_per_token for loss in counted])
    bits = mean_of([loss.bits_per_byte for loss in counted])
    return {"nats_per_token": nats, "perplexity": perplexity(nats), "bits_per_byte": bits}


def _speech(measured: Measured) -> dict[str, list[str]]:
    names, *figures = _with_names({name: _of_all(said.figures) for name, said in measured.speech.items()}).items()
    return dict([names, ("prompts", [f"{said.prompts:,}" for said in measured.speech.values()]), *figures])


def _of_all(figures: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: figure.estimate for name, figure in figures.items()}


def _with_names(rows: Mapping[str, Mapping[str, Estimate]], mark: bool = False) -> dict[str, list[str]]:
    figures = next(iter(rows.values()))
    return {"source": list(rows)} | {name: _cells([row[name] for row in rows.values()], mark) for name in figures}


def _apart(evaluation: Evaluation) -> dict[str, list[str]]:
    comparison = evaluation.comparison
    assert comparison is not None
    rows = [*comparison.sources.values(), comparison.mean]
    return {
        "source": [*comparison.sources, "mean"],
        "windows": ["the same" if row.paired else "others" for row in rows],
        "nats/token": _cells([row.nats_per_token for row in rows], mark=True),
        "bits/byte": _cells([row.bits_per_byte for row in rows], mark=True),
    }


def _cells(estimates: list[Estimate | None], mark: bool = False) -> list[str]:
    """`value ± error`, to the digit in which the smallest error has its second figure, at least three."""
    known = [e.se for e in estimates if e is not None and abs(e.value) * ROUNDING < e.se < math.inf]
    digits = min(9, max(3, 1 - math.floor(math.log10(min(known))))) if known else 4
    return [_cell(e, digits, mark) for e in estimates]


def _cell(estimate: Estimate | None, digits: int, mark: bool) -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return "-"
    error = f" ± {estimate.se:.{digits}f}" if math.isfinite(estimate.se) else ""
    return f"{estimate.value:.{digits}f}{error}" + " *" * (mark and estimate.is_beyond_error)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything as plain values, in full precision; null for what is not finite."""
    job, rollout, comparison = evaluation.job, evaluation.job.config.rollout, evaluation.comparison
    content: dict[str, Any] = {
        "config": str(job.path),
        "device": evaluation.device,
        "window_tokens": job.config.window_tokens,
        "rollout": {
            "prompt_tokens": rollout.prompt_tokens,
            "response_tokens": rollout.response_tokens,
            "temperature": rollout.temperature,
            "seed": job.seed,
        },
        "checkpoints": [_model_as_json(each) for each in evaluation.measured],
        "comparison": None,
        "prompts": [
            {"topic": each.topic, "text": each.text, "continuations": each.said}
            for group in continued(evaluation).values()
            for each in group
        ],
        "notes": evaluation.notes,
    }
    if comparison is not None:
        content["comparison"] = {
            "sources": {name: _difference(row) for name, row in comparison.sources.items()},
            "mean": _difference(comparison.mean),
            "responses": {
                name: {figure: _apart_as_json(e) for figure, e in row.items()}
                for name, row in comparison.speech.items()
            },
        }
    return _plain(content)


def _model_as_json(measured: Measured) -> dict[str, Any]:
    source = measured.model.subject.source
    sources = {}
    for name, loss in measured.losses.items():
        sources[name] = {
            "windows": len(loss.nats),
            "tokens": int(loss.tokens.sum()),
            "bytes": int(loss.bytes.sum()),
            "learnable": loss.learnable,
            "nats_per_token": _as_json(loss.nats_per_token),
            "perplexity": _as_json(loss.perplexity),
            "bits_per_byte": _as_json(loss.bits_per_byte),
        }
        if name in measured.speech:
            said = measured.speech[name]
            figures = {figure: _as_json(e) for figure, e in _of_all(said.figures).items()}
            sources[name]["responses"] = {"prompts": said.prompts, **figures}
    return {
        "checkpoint": measured.model.subject.name,
        "update": None if source is None else source.state.update,
        "dtype": _dtype(measured),
        "sources": sources,
        "mean": {name: _as_json(e) for name, e in _mean_of(measured).items()},
    }


def _dtype(measured: Measured) -> str:
    return str(measured.model.dtype).removeprefix("torch.")


def _as_json(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "se": estimate.se}


def _apart_as_json(estimate: Estimate) -> dict[str, Any]:
    return {**_as_json(estimate), "z": estimate.z, "beyond_two_se": estimate.is_beyond_error}


def _difference(row: SourceDifference) -> dict[str, Any]:
    nats = None if row.nats_per_token is None else _apart_as_json(row.nats_per_token)
    return {"paired": row.paired, "nats_per_token": nats, "bits_per_byte": _apart_as_json(row.bits_per_byte)}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return null_unless_finite(value)
