"""Texts of a model as HTML that no text can break, be it shown as it is or as the HTML in a page of Markdown."""

from collections.abc import Iterable

from destruct.tracking.sinks import Continuation, Sample


def safe(text: str) -> str:
    """The text with all that means something to HTML or Markdown as a number: `<` is `&#60;`, a backtick `&#96;`.

    Control characters, with which TensorBoard's Markdown marks places of its own, are shown as their pictures.
    """
    return "".join(map(_safe, text))


def _safe(character: str) -> str:
    number = ord(character)
    if character in "\n " or character.isalnum() or number >= 0xA0:
        return character
    is_printed = character == "\t" or 0x20 <= number < 0x7F
    return f"&#{number if is_printed else 0x2400 + min(number, 0x21)};"


def of_samples(samples: Iterable[Sample]) -> str:
    """Rollouts of one source, each with its figures above it."""
    return "<hr>".join(map(_of_sample, samples))


def _of_sample(sample: Sample) -> str:
    terms = {safe(name): f"{value:.4f}" for name, value in sample.terms.items()}
    figures = {"source": safe(sample.source), "reward": f"{sample.reward:.4f}", "KL, nats/token": f"{sample.kl:.5f}"}
    figures |= terms | {"ended by itself": "yes" if sample.stopped else "no"}
    parts = {"prompt": sample.prompt, "response": sample.response, "the data's continuation": sample.continuation}
    return _table(figures) + _passages({heading: text for heading, text in parts.items() if text})


def of_continuation(said: Continuation) -> str:
    """One of the user's prompts, and what the model said."""
    return _passages({"prompt": said.prompt, "response": said.response})


def _table(figures: dict[str, str]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in figures)
    cells = "".join(f"<td>{figure}</td>" for figure in figures.values())
    return f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"


def _passages(parts: dict[str, str]) -> str:
    return "".join(f"<p><strong>{safe(heading)}</strong></p>{_verbatim(text)}" for heading, text in parts.items())


def _verbatim(text: str) -> str:
    # HTML drops a line break that a text begins with; a space of no width before it keeps it.
    return f"<pre>{'&#8203;' * text.startswith(chr(10))}{safe(text)}</pre>"
