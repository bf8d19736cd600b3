"""Start a real S3 server (OpenStack Swift) over TLS of the development authority, for the demo and for developers.

    scripts/dev-s3 --authority ca/authority --bucket registry --out DIR

Writes DIR/registry.yaml (settings for `--registry`) with CA and credentials beside it, prints one line when the server
is ready, and stops on Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

import yaml

from appliance.trust.tls import issue_tls
from tests.support.s3 import swift_server


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authority", type=Path, default=Path("ca/authority"))
    parser.add_argument("--bucket", default="registry")
    parser.add_argument("--out", type=Path, required=True, help="an existing folder for settings, CA and credentials")
    arguments = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    names = ["127.0.0.1", "localhost"]
    identity = issue_tls(arguments.authority, "tls-server", "registry", sans=names)
    with swift_server(identity) as server:
        server.make_bucket(arguments.out, arguments.bucket)
        settings = {"registry": server.settings(arguments.out.resolve(), bucket=arguments.bucket)}
        (arguments.out / "registry.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        print(
            f"ready: s3://{server.endpoint}/{arguments.bucket}  settings: {arguments.out / 'registry.yaml'}", flush=True
        )
        stop.wait()


if __name__ == "__main__":
    main()
