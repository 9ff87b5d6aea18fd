"""The config of a pretrained policy, kept in its run's folder: what its path names may be changed, moved or deleted."""

from contextlib import suppress
from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file

from destruct.errors import DestructError
from destruct.models.pretrained import faults_of

FOLDER = "policy"
"""In a run's folder."""


def keep(run: Path, config: PreTrainedConfig, path: str, revision: str | None) -> None:
    """Write the configs of a network, and of how it speaks where it has one, into its run's folder.

    Args:
        config: that the run computes with.
        path: local folder or hub id of the model.

    Raises:
        OSError: they cannot be written.
    """
    folder = run / FOLDER
    config.save_pretrained(folder)
    (folder / GENERATION_CONFIG_NAME).unlink(missing_ok=True)  # of a life with another model
    with suppress(DestructError):  # the run does not need it
        speaks = generation_config("model.policy.path", path, revision)
        if speaks is not None:
            speaks.save_pretrained(folder)


def kept(run: Path) -> Path | None:
    """The folder that has them; None where the run is older than that."""
    return run / FOLDER if (run / FOLDER / CONFIG_NAME).is_file() else None


def generation_config(key: str, path: str, revision: str | None) -> GenerationConfig | None:
    """How the author of a model lets it speak; None where that is not said.

    Args:
        key: of our config that names the model, for errors.

    Raises:
        DestructError: it cannot be had.
    """
    with faults_of(key, path, revision):
        file = cached_file(path, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if file is None else GenerationConfig.from_pretrained(Path(file).parent)
