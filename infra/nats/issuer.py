"""Makes the key with which gateways let event consumers onto the bus: the seed is theirs, the public half goes into the servers' configuration."""

import sys

from libs.runtime.nkeys import Issuer, new_seed


def main() -> int:
    seed = new_seed()
    sys.stdout.write(f"TRAINYARD_NATS_ISSUER_SEED={seed}\nissuer: {Issuer(seed).public}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
