"""What TensorBoard wants as messages of its own: charts of several curves, and a run's line among the runs.

Its own functions for them import TensorFlow.
"""

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as charts_metadata
from tensorboard.plugins.hparams import metadata as runs_metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

EDGES = "only_for_charts"
"""The group of scalars that only the charts of CUSTOM SCALARS show; it stands behind those that people look for."""

BANDED = ("difficulty", "progress")
"""Figures of a source that are drawn with their standard error."""

PHASES = "data|generate|score|update|kl|round|evaluate|checkpoint|compare"

CHARTS = {
    "curriculum": {"sampling weights of the sources": ["curriculum/weight/.*"]},
    "rollouts": {"rewards of the sources": ["rollout/reward/.*"], "terms of the reward": ["rollout/term/.*"]},
    "KL": {"KL to the reference and its bound, nats per token": ["kl/to_reference", f"{EDGES}/kl_bound"]},
    "validation": {"losses of the sources, nats per token": ["validation/nats_per_token/.*"]},
    "PPO": {"shares clipped and explained": ["ppo/clip_fraction", "ppo/explained_variance"]},
    "time": {"seconds of the phases": [f"time/({PHASES})"]},
}
"""Category -> chart -> patterns of the scalars that are lines of it."""


def layout(sources: tuple[str, ...]) -> Summary:
    """The charts of several curves, for the tab CUSTOM SCALARS; it is the newest one that counts."""
    text = charts(sources).SerializeToString()
    tensor = TensorProto(dtype="DT_STRING", string_val=[text], tensor_shape=TensorShapeProto())
    metadata = charts_metadata.create_summary_metadata()
    return Summary(value=[Summary.Value(tag=charts_metadata.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=metadata)])


def charts(sources: tuple[str, ...]) -> layout_pb2.Layout:
    """By categories."""
    categories = []
    for title, charts in CHARTS.items():
        patterns = {chart: [f"^{tag}$" for tag in tags] for chart, tags in charts.items()}
        content = [
            layout_pb2.Chart(title=chart, multiline=layout_pb2.MultilineChartContent(tag=tags))
            for chart, tags in patterns.items()
        ]
        categories.append(layout_pb2.Category(title=title, chart=content))
    categories[0].chart.extend(_bands(figure, sources) for figure in BANDED)
    return layout_pb2.Layout(category=categories)


def _bands(figure: str, sources: tuple[str, ...]) -> layout_pb2.Chart:
    series = []
    for source in sources:
        lower, upper = edges(figure, source)
        value = f"curriculum/{figure}/{source}"
        series.append(layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper))
    title = f"{figure} of the sources, with one standard error on each side"
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))


def edges(figure: str, source: str) -> tuple[str, str]:
    """Names of the scalars that are the lower and the upper edge of a figure's error band."""
    return f"{EDGES}/{figure}_lower/{source}", f"{EDGES}/{figure}_upper/{source}"


def start_of_session(hyper_parameters: dict[str, bool | int | float | str], at_s: float) -> Summary:
    """A line of the tab HPARAMS.

    No message describes the experiment: then the tab has the columns of all runs, first those that differ.

    Args:
        hyper_parameters: by their names.
        at_s: seconds since 1970.
    """
    session = SessionStartInfo(start_time_secs=at_s)
    for name, value in hyper_parameters.items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(session.hparams[name], f"{kind}_value", value)
    data = HParamsPluginData(session_start_info=session, version=runs_metadata.PLUGIN_DATA_VERSION)
    return _about_a_session(runs_metadata.SESSION_START_INFO_TAG, data)


def end_of_session(at_s: float) -> Summary:
    """The run has made all its updates.

    Args:
        at_s: seconds since 1970.
    """
    session = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=at_s)
    data = HParamsPluginData(session_end_info=session, version=runs_metadata.PLUGIN_DATA_VERSION)
    return _about_a_session(runs_metadata.SESSION_END_INFO_TAG, data)


def _about_a_session(tag: str, data: HParamsPluginData) -> Summary:
    plugin = SummaryMetadata.PluginData(plugin_name=runs_metadata.PLUGIN_NAME, content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
