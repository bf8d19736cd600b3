"""What `make demo` needs of the machine, checked before anything is done. Standard library only, any Python 3.

Run as a script it prints one line a need and exits with 1 where one is missing, with the command that gets it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FREE_BYTES = 8 * 1000**3  # environment 2.2 GB, wheels and release 1.5 GB, the installed release 1.5 GB, room to spare


def _python():
    found = ".".join(str(part) for part in sys.version_info[:3])
    fine = sys.version_info[:2] == (3, 11) and sys.maxsize > 2**32
    return fine, f"Python {found}", "sudo apt-get install python3.11 python3.11-venv, then: make demo PYTHON=python3.11"


def _venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False, "no venv module", "sudo apt-get install python3.11-venv"
    return True, "venv module", ""


def _openssl():
    path = shutil.which("openssl")
    said = "no openssl"
    if path:
        said = subprocess.run([path, "version"], capture_output=True, text=True, check=False).stdout.strip()
    return said.startswith("OpenSSL 3"), said, "sudo apt-get install openssl (version 3)"


def _tool(name):
    def check():
        path = shutil.which(name)
        return path is not None, path or f"no {name}", f"sudo apt-get install {name}"

    return check


def _disk():
    free = shutil.disk_usage(ROOT).free
    said = f"{free / 1000**3:.0f} GB free at {ROOT}"
    return free >= FREE_BYTES, said, f"free space: the demo needs {FREE_BYTES // 1000**3} GB beside the checkout"


def _machine():
    machine = os.uname()
    fine = machine.sysname == "Linux" and machine.machine == "x86_64"
    return fine, f"{machine.sysname} {machine.machine}", "run on Linux x86_64: the demo's pinned wheels are for it"


NEEDS = (
    ("machine", _machine),
    ("python", _python),
    ("venv", _venv),
    ("openssl", _openssl),
    ("git", _tool("git")),
    ("disk", _disk),
)


def main():
    """Print every need; return 1 where one is missing."""
    missing = 0
    for name, check in NEEDS:
        fine, said, remedy = check()
        print(f"  {'ok     ' if fine else 'MISSING'} {name:8} {said}")
        if not fine:
            print(f"          get it: {remedy}")
            missing = 1
    return missing


if __name__ == "__main__":
    sys.exit(main())
