"""Settings of the whole suite."""

from hypothesis import settings

# The same examples in every run, and no folder of earlier ones: a test that fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
