"""What every rank does for test_order.py: read the sources together, draw batches, and write down what was drawn."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from destruct.build import drawing
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.inputs import read_inputs
from destruct.tracking.console import Screen

BATCHES, SIZE = 120, 16


def order(config: Path, topology: Topology) -> dict[str, object]:
    """Digest of all drawn batches, this rank's share of their samples, and what was drawn in all."""
    settings = load(config, ["engine.backend=deepspeed"], topology.world_size)
    inputs = read_inputs(settings, topology, Screen(first_rank=False), None)
    mixture, loader = drawing(settings.config, inputs)
    rng, digest, mine = np.random.default_rng(0), hashlib.sha256(), []
    for _ in range(BATCHES):
        batch = loader.read(mixture.draw(SIZE, rng.dirichlet(np.full(len(inputs.train), 0.5))), topology.device)
        for field in (batch.windows, batch.prompt_lengths, batch.continuation_lengths, batch.source, batch.sample):
            digest.update(field.numpy().tobytes())
        mine += batch.sample[topology.share(SIZE)].tolist()
    return {"digest": digest.hexdigest(), "mine": mine, "state": mixture.state_dict(), "data": inputs.digests}


if __name__ == "__main__":
    here = ranks.start(timeout_s=120)
    found = order(Path(sys.argv[1]), here)
    Path(sys.argv[2], f"{here.world_size}-{here.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    ranks.stop()
    leave(Exit.DONE)
