"""The colours of the page, held against what people see: contrast as WCAG 2 counts it, and colour-blind distances.

Source of the three matrices: Machado, Oliveira and Fernandes 2009, severity 1; of the distance: OKLab.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

STYLE = Path(__file__).parents[2] / "destruct" / "reporting" / "style.css"
SEEN = {
    "by most": np.eye(3),
    "without long cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "without middle cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "without short cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]
OKABE_ITO = ["#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]


def theme(dark: bool) -> dict[str, np.ndarray]:
    """Name -> linear RGB."""
    light, _, rest = STYLE.read_text().partition("prefers-color-scheme: dark")
    text = rest.partition("* {")[0] if dark else light
    return {name: linear(colour) for name, colour in re.findall(r"--(\w+): (#[0-9a-f]{6})", text)}


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    low, high = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def nearest(colours: list[np.ndarray], seen: object) -> float:
    """The distance of the two that are hardest to tell apart."""
    cones = np.clip(np.array(colours) @ np.array(seen).T, 0, 1) @ np.array(CONES).T
    places = np.cbrt(cones) @ np.array(OKLAB).T
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2))


@pytest.mark.parametrize("dark", [False, True])
def test_words_have_a_contrast_of_four_and_a_half_and_lines_of_three(dark):
    colours = theme(dark)
    for paper in ("paper", "sheet"):
        for words in ("ink", "soft", "link", "good", "bad"):
            assert contrast(colours[words], colours[paper]) >= 4.5, (words, paper)
    for k in range(8):
        assert contrast(colours[f"c{k}"], colours["paper"]) >= 2.95, k


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("seen", SEEN)
def test_no_two_colours_are_nearer_than_the_nearest_of_okabe_and_ito(dark, seen):
    theirs = min(nearest([linear(c) for c in OKABE_ITO], matrix) for matrix in SEEN.values())
    ours = nearest([theme(dark)[f"c{k}"] for k in range(8)], SEEN[seen])
    assert ours > 1.2 * theirs
