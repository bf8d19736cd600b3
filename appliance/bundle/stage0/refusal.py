"""How the shared modules refuse: a code of the appliance's catalogue, the cause, the evidence."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any


class Refused(Exception):  # noqa: N818 (it is a verdict, not a defect)
    """A refusal with a stable code, whose remedy stands in the catalogue.

    Args:
        code: a code of `catalogue/bundle.yaml` or `catalogue/install.yaml`.
        cause: what went wrong here, one sentence.
        remedy: in place of the catalogue's, where this place knows better; empty where it does not.
        evidence: the values that show it.
    """

    def __init__(self, code: str, cause: str, *, remedy: str = "", **evidence: Any) -> None:
        super().__init__(f"{code}: {cause}")
        self.code = code
        self.cause = cause
        self.remedy = remedy
        self.evidence = evidence


@contextlib.contextmanager
def space_refusals(doing: str) -> Iterator[None]:
    """Turn a full, read-only or forbidding file system into a refusal that says what was being done."""
    try:
        yield
    except OSError as error:
        where = str(error.filename) if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Refused("INSTALL_NO_SPACE", f"no space left while {doing}", path=where) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Refused("INSTALL_PERMISSION", f"not permitted while {doing}: {error.strerror}", path=where) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
            raise Refused("INSTALL_PREFIX", f"something is in the way while {doing}", path=where) from error
        raise
