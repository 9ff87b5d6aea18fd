"""The line that a run begins with where the plan says that it does not fit this machine."""

import os
import re

from destruct.config.settings import load
from destruct.planning.here import memory_warning
from tests.planning.planned import ROOT, job
from tests.tiny import tiny_run


def test_a_gpu_that_is_too_small_is_told_with_what_would_do():
    """What that is depends on the memory of the host."""
    settings = job(config="base").settings
    said = memory_warning(settings, 8, ("a small GPU", 10 * 2**30))
    assert said is not None and "more than the 8.50 of a small GPU; " in said
    assert memory_warning(settings, 1, ("a large GPU", 200 * 2**30)) is None


def test_a_host_has_the_memory_that_the_kernel_says():
    """Sixteen ranks of Llama-3.1-8B take 400 GiB."""
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    said = memory_warning(job(config="llama3_8b_multinode", ranks=16).settings, 16, None)
    assert said is not None
    assert float(re.search(r"more than the ([\d.]+) of a machine's host", said)[1]) == round(gib, 2)


def test_networks_of_unknown_sizes_are_not_warned_of(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    settings = load(ROOT / "configs" / "base.yaml", [f"model.policy.path={tmp_path}"], 8)
    assert memory_warning(settings, 1, ("a small GPU", 2**30)) is None


def test_a_run_that_fits_starts_without_a_word_of_it(tmp_path, capsys):
    with tiny_run(tmp_path, aloud=True):
        assert "warning" not in capsys.readouterr().out
