"""The prompts that the model continues at each evaluation, so that people can read how it changes."""

from pathlib import Path

from pydantic import Field

from destruct.config.base import Section, validate
from destruct.config.reading import read_yaml


class PromptsConfig(Section):
    """Prompts of your own, continued at each evaluation: in TensorBoard and in samples.jsonl."""

    file: str | None = Field(None, min_length=1)
    """YAML file of prompts, e.g. `configs/prompts.yaml`; looked up from the working folder, then from the folder of
    this YAML file, then from the one above.  None: no prompts."""
    response_tokens: int = Field(48, ge=1)
    """Most tokens of a continuation; it is sampled as rollouts are, each time by the same random numbers."""


class Prompt(Section):
    """One prompt."""

    topic: str = Field(min_length=1)
    """What it is about, e.g. `code`: its heading in TensorBoard."""
    text: str = Field(min_length=1)
    """The text that the model continues."""


class PromptFile(Section):
    """A file of prompts."""

    prompts: tuple[Prompt, ...] = Field(min_length=1, strict=False)
    """The prompts, in any number and of any length that the model's context holds."""


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a file of prompts.

    Raises:
        DestructError: the file is missing, is not YAML, or a key is misspelt or missing.
    """
    values, provenance = read_yaml(path)
    return validate(PromptFile, values, str(path), provenance, example="configs/prompts.yaml").prompts
