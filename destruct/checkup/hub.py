"""The Hugging Face hub: whether it answers, and lets this machine have what the config names."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from destruct.checkup.finding import Finding, fail, ok, warn
from destruct.data.hub_faults import first_line, is_network_fault

PATIENCE_S = 10.0


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
        self.date: tuple[str, str] | None = None  # host and `Date` header of its answer

    def reach(self) -> Iterator[Finding]:
        """Whether it answers, and each repository that the run takes from it."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in "0"]
        if offline:
            words = f"{offline[0]} is set: only what lies in the cache below HF_HOME is there"
            yield warn("hub", words, f"unset {offline[0]}") if self.wanted else ok("hub", words)
            return
        try:
            answer = get_session().head(constants.ENDPOINT, timeout=PATIENCE_S, follow_redirects=True)
        except Exception as error:
            if not is_network_fault(error):
                raise
            words = f"{constants.ENDPOINT} cannot be reached: {error or type(error).__name__}"
            if self.wanted:
                yield fail("hub", words, "see to the network (HTTPS_PROXY), or bring the files here by hand")
            else:
                yield ok("hub", f"{words}; the config takes nothing from it")
            return
        if "date" in answer.headers:
            self.date = answer.url.host, answer.headers["date"]
        if answer.status_code >= 500:
            yield warn("hub", f"{constants.ENDPOINT} answers {answer.status_code}", "try again later")
        else:
            yield ok("hub", f"{constants.ENDPOINT} answers")
        for repository in self.wanted:
            yield self._access(repository)

    def _access(self, wanted: Repository) -> Finding:
        from huggingface_hub import HfApi, constants
        from huggingface_hub import errors as hub

        called = f"hub: {wanted.key}"
        words = f"the {'model' if wanted.kind == 'model' else 'data set'} {wanted.name}"
        page = "datasets/" * (wanted.kind == "dataset") + wanted.name
        log_in = "`hf auth login`, or set HF_TOKEN"
        try:
            api = HfApi()
            api.repo_info(wanted.name, repo_type=wanted.kind, revision=wanted.revision, timeout=PATIENCE_S)
            api.auth_check(wanted.name, repo_type=wanted.kind)
        except hub.GatedRepoError:
            remedy = f"accept its terms at {constants.ENDPOINT}/{page}, then {log_in}"
            return fail(called, f"{words} is gated, and this account has no access", remedy)
        except hub.RevisionNotFoundError:
            return fail(called, f"{words} has no revision {wanted.revision!r}", f"correct the revision of {wanted.key}")
        except hub.RepositoryNotFoundError:
            return fail(called, f"{words} does not exist, or is private", f"correct {wanted.key}, or {log_in}")
        except Exception as error:
            if not is_network_fault(error):
                raise
            return fail(called, f"{words} cannot be asked for: {first_line(error)}", "try again later")
        return ok(called, f"{words} can be had")
