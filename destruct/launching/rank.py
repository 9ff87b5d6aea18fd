"""One rank of `destruct launch local`, all of whose words go to a file of its own.

python -m destruct.launching.rank FOLDER MODULE [argument ...]  writes to FOLDER/rank-N.log, C++ and all.
"""

import os
import runpy
import sys

from destruct.launching.surroundings import DEVICES


def main() -> None:
    """Run the module in this process; both outputs are the end of the rank's file."""
    words = sys.argv[1:]
    if words[0].startswith("--local_rank"):  # DeepSpeed's launcher says it to every module
        del words[0]
    folder, module, *arguments = words
    os.makedirs(folder, exist_ok=True)
    file = os.open(
        os.path.join(folder, f"rank-{os.environ['RANK']}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666
    )
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.close(file)
    if DEVICES in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[DEVICES]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
