"""Memory as parts: what lies where, and when."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Place = Literal["device", "host", "files"]
ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one rank."""

    network: str  # "policy", "value", "frozen", ...
    what: str
    bytes: int
    moment: str = ALWAYS  # one of the update's moments, such as "policy backward"
    place: Place = "device"


@dataclass(frozen=True, slots=True)
class Memory:
    """All parts of a rank."""

    parts: tuple[Part, ...]

    def resident(self, place: Place) -> int:
        """Bytes that are there all the time."""
        return sum(part.bytes for part in self.parts if part.place == place and part.moment == ALWAYS)

    def moments(self, place: Place) -> dict[str, int]:
        """Bytes at each moment, in the order of an update."""
        names = dict.fromkeys(part.moment for part in self.parts if part.moment != ALWAYS)
        extra = {name: sum(p.bytes for p in self.parts if (p.place, p.moment) == (place, name)) for name in names}
        return {name: self.resident(place) + more for name, more in extra.items()}

    def peak(self, place: Place) -> tuple[str, int]:
        """The fullest moment and its bytes."""
        return max(self.moments(place).items(), key=lambda moment: moment[1], default=(ALWAYS, self.resident(place)))

    def at(self, place: Place, moment: str) -> Iterable[Part]:
        """The parts that are there at a moment."""
        return (p for p in self.parts if p.place == place and p.moment in (ALWAYS, moment) and p.bytes)
