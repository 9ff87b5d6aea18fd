"""An evaluation from its job to its figures: every model opened before the first is loaded, and one held at a time."""

from dataclasses import dataclass

from destruct.checkpoint.identity import DATA
from destruct.engine.topology import Topology
from destruct.evaluating.comparing import Comparison, compare
from destruct.evaluating.measuring import Measured, measure, reward_terms
from destruct.evaluating.model import Model, load_network, open_model
from destruct.evaluating.subject import Job
from destruct.inputs import HeldOut, read_held_out
from destruct.prompting import encode_prompts
from destruct.tracking.console import Screen


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What came of a job."""

    job: Job
    device: str
    measured: list[Measured]  # in the order of the job's subjects
    comparison: Comparison | None  # of two
    notes: list[str]  # on what the figures are of, a line each


def evaluate(job: Job, topology: Topology, screen: Screen) -> Evaluation:
    """Measure every subject; all ranks call it.

    Raises:
        DestructError: a model, a source or a prompt is not what it should be.
    """
    config = job.config
    topology.together(lambda: reward_terms(config))
    models = topology.together(lambda: [open_model(each, config, job.float32) for each in job.subjects])
    prompts = topology.together(lambda: [_encoded(job, model) for model in models])
    texts: dict[str, list[HeldOut]] = {}
    for model in models:
        if model.tokenizer.text not in texts:
            screen.say(f"reading and tokenizing the sources for {model.subject.name}")
            texts[model.tokenizer.text] = read_held_out(config, model.tokenizer, job.samples, topology, screen)
    measured = [
        _measured(job, model, texts[model.tokenizer.text], asked, topology, screen)
        for model, asked in zip(models, prompts, strict=True)
    ]
    comparison = compare(*measured) if len(measured) == 2 else None
    notes = [line for model in models for line in _notes(job, model, models[0], texts[model.tokenizer.text])]
    return Evaluation(job, str(topology.device), measured, comparison, notes)


def _encoded(job: Job, model: Model) -> list[list[int]]:
    return encode_prompts(job.prompts, model.tokenizer, model.context - job.config.prompts.response_tokens)


def _measured(
    job: Job, model: Model, held_out: list[HeldOut], prompts: list[list[int]], topology: Topology, screen: Screen
) -> Measured:
    network = topology.together(lambda: load_network(model, job.config, topology.device, screen))
    return measure(job, model, network, held_out, prompts, topology, screen)


def _notes(job: Job, model: Model, first: Model, held_out: list[HeldOut]) -> list[str]:
    """What a reader of a model's figures has to know."""
    subject, tokenizer, lines = model.subject, job.config.data.tokenizer.path or job.config.model.policy.path, []
    own = subject.config is not None and subject.config.resolve() == job.path.resolve()
    if not own and tokenizer != subject.name and (model is first or model.tokenizer.text != first.tokenizer.text):
        other = "would train one" if tokenizer is None else f"names that of {tokenizer}"
        lines.append(f"{subject.name} reads the texts with its own tokenizer; {job.path} {other}")
    if own and subject.source is not None:
        before = subject.source.facts[DATA]
        changed = [each.name for each in held_out if before.get(each.name, each.digest) != each.digest]
        lines += [
            f"{name}: not the text that {subject.name} was trained beside, which may have held some of it"
            for name in changed
        ]
    return lines
