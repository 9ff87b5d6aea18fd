"""The Hugging Face hub: whether it answers, and lets this machine have what the config names, or the cache has it."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from destruct.checkup.finding import Finding, State, fail, ok, warn
from destruct.data.hub_faults import first_line
from destruct.secrets import masked

PATIENCE_S = 10.0
"""For each of three requests."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What a config takes from the hub."""

    key: str  # of the config
    kind: str  # `model` or `dataset`
    name: str
    revision: str | None


class Hub:
    """The hub that HF_ENDPOINT names.

    Args:
        wanted: what the run takes from it; without anything it may be out of reach.
    """

    def __init__(self, wanted: Sequence[Repository]):
        self.wanted = wanted
        self.skew: tuple[str, float] | None = None  # a host, and the seconds that this machine's clock is ahead of its

    def reach(self) -> Iterator[Finding]:
        """Whether it answers, and whether each repository that the run takes from it can be had."""
        answers = self._knock()
        yield answers
        for repository in self.wanted:
            yield _had(repository, asked=answers.state is State.OK)

    def _knock(self) -> Finding:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        if constants.HF_HUB_OFFLINE:
            words = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: only what lies in the cache below HF_HOME is there"
            return warn("hub", words, "unset it") if self.wanted else ok("hub", words)
        endpoint = _public(constants.ENDPOINT)
        try:
            answer = get_session().head(constants.ENDPOINT, timeout=PATIENCE_S, follow_redirects=True)
        except Exception as error:  # the network's, or of an HF_ENDPOINT that is no address
            words = f"{endpoint} cannot be reached: {_public(first_line(error))}"
            if not self.wanted:
                return ok("hub", f"{words}; the config takes nothing from it")
            return warn("hub", words, "see to the network (HTTPS_PROXY), where not all of it is in the cache")
        self.skew = _skew(answer)
        if answer.status_code >= 500:
            return warn("hub", f"{endpoint} answers {answer.status_code}", "try again later")
        return ok("hub", f"{endpoint} answers")


def _skew(answer: Any) -> tuple[str, float] | None:
    try:
        # A proxy that had the answer in its store says for how many seconds.
        sent = parsedate_to_datetime(answer.headers["date"]).timestamp() + float(answer.headers.get("age", 0))
    except (KeyError, ValueError):
        return None
    return answer.url.host, time.time() - sent


def _public(text: str) -> str:
    """Without the name and the password of an address, and without the secrets of the environment."""
    return re.sub(r"//[^/@\s]*@", "//", masked(text))


def _had(wanted: Repository, asked: bool) -> Finding:
    """Whether a run gets a repository.

    Args:
        asked: the hub is; else only the cache is looked at.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import validate_repo_id

    called, why = f"hub: {wanted.key}", "the hub gives no answer"
    words = f"the {'model' if wanted.kind == 'model' else 'data set'} {wanted.name}"
    page = "datasets/" * (wanted.kind == "dataset") + wanted.name
    log_in = "`hf auth login`, or set HF_TOKEN"
    try:
        validate_repo_id(wanted.name)
        if asked:
            _ask(wanted)
            return ok(called, f"{words} can be had")
    except hub.HFValidationError:
        words = f"{wanted.name} is {'neither a folder here nor a' if wanted.kind == 'model' else 'no'} name on the hub"
        return fail(called, words, f"correct {wanted.key}")
    except hub.GatedRepoError:
        remedy = f"accept its terms at {_public(constants.ENDPOINT)}/{page}, then {log_in}"
        return fail(called, f"{words} is gated, and this account has no access", remedy)
    except hub.RevisionNotFoundError:
        return fail(called, f"{words} has no revision {wanted.revision!r}", f"correct the revision of {wanted.key}")
    except hub.RepositoryNotFoundError:
        return fail(called, f"{words} does not exist, or is private", f"correct {wanted.key}, or {log_in}")
    except Exception as error:  # of the network, and whatever else the client raises
        why = _public(first_line(error))
    if _is_cached(wanted):
        return ok(called, f"{words} is in the cache")
    remedy = "see to the network (HTTPS_PROXY), or start the run once where there is one, with this HF_HOME"
    return fail(called, f"{words} is not in the cache, and cannot be asked for: {why}", remedy)


def _ask(wanted: Repository) -> None:
    """Raises what the hub has against it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    HfApi().repo_info(wanted.name, repo_type=wanted.kind, revision=wanted.revision, timeout=PATIENCE_S)
    # As HfApi.auth_check does, which would wait for ever.
    address = f"{constants.ENDPOINT}/api/{wanted.kind}s/{wanted.name}/auth-check"
    hf_raise_for_status(get_session().get(address, headers=build_hf_headers(), timeout=PATIENCE_S))


def _is_cached(wanted: Repository) -> bool:
    """Whether what a run reads of it is there without the hub."""
    if wanted.kind == "dataset":
        from datasets import config
        from datasets.naming import camelcase_to_snakecase

        *owner, name = wanted.name.split("/")
        prepared = Path(config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(name)]))
        return any(path.suffix != ".incomplete" for path in prepared.glob("*/*/*") if path.is_dir())
    from huggingface_hub import try_to_load_from_cache

    description = try_to_load_from_cache(wanted.name, "config.json", revision=wanted.revision)
    if not isinstance(description, str):
        return False
    snapshot = Path(description).parent
    indices = [json.loads(path.read_text(encoding="utf-8")) for path in snapshot.glob("*.index.json")]
    weights = {part for index in indices for part in index["weight_map"].values()}
    weights = weights or {path.name for kind in ("safetensors", "bin") for path in snapshot.glob(f"*.{kind}")}
    return bool(weights) and all((snapshot / part).exists() for part in weights)
