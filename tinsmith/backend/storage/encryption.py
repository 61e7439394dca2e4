"""Exports that only the holders of some keys can read: age (age-encryption.org/v1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyrage

from tinsmith.errors import TinsmithError

MAX_RECIPIENTS = 10  # as on the hosted service
age: Any = pyrage  # a compiled module, without types
SUFFIX = ".age"
Recipient = Any  # of age: x25519.Recipient or ssh.Recipient


def parse_recipients(texts: Sequence[str]) -> list[Recipient]:
    """Public keys: `age1...` (X25519), or of SSH (`ssh-ed25519 ...`, `ssh-rsa ...`)."""
    if not 1 <= len(texts) <= MAX_RECIPIENTS:
        raise TinsmithError(
            f"age_encryption_recipients must be 1 to {MAX_RECIPIENTS} public keys, got "
            f"{len(texts)}; leave the field out for files that are not encrypted"
        )
    return [_parse(index, text) for index, text in enumerate(texts)]


def _parse(index: int, text: str) -> Recipient:
    kind = age.ssh if text.startswith("ssh-") else age.x25519
    try:
        return kind.Recipient.from_str(text.strip())
    except age.RecipientError as error:
        raise TinsmithError(
            f"age_encryption_recipients[{index}]: must be an age1... key or an SSH public key, got "
            f"{text[:80]!r} ({error})"
        ) from error


def encrypt_folder(folder: Path, recipients: Sequence[Recipient]) -> None:
    """Replace every file of `folder` by one that is encrypted to all `recipients`."""
    for file in [path for path in folder.iterdir() if path.is_file()]:
        encrypted = file.with_name(f"{file.name}{SUFFIX}")
        age.encrypt_file(str(file), str(encrypted), list(recipients))
        file.unlink()
