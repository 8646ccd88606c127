"""What test_distributed.py starts with torchrun to see a run end: rank 1 stops, as told, while rank 0 waits for it."""

from __future__ import annotations

import os
import signal
import sys
import time

from rl.distributed import World


def main() -> None:
    with World.join(timeout=5 if sys.argv[1] == "late" else 120) as world:
        world.barrier()
        if world.rank == 1:
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if sys.argv[1] == "failed":
                raise RuntimeError("no more tasks")
            time.sleep(300)
        world.total({"reward": 1.0})


if __name__ == "__main__":
    main()
