"""Take credentials out of text before it is kept or shown."""

from __future__ import annotations

import re

_PATTERNS = (
    (re.compile(r"(?<=://)\S+@"), "***@"),
    (re.compile(r"(?i)\b(authorization\s*[:=]\s*)(?:bearer\s+|basic\s+)?\S+"), r"\1***"),
    (
        re.compile(
            r"(?i)([\w.-]{0,60}(?:passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key|credential)s?)(\"?'?\s*[=:]\s*|\s+)"
            r"(?!\s)(\"[^\"]*\"|'[^']*'|\S+)"
        ),
        r"\1\2***",
    ),
    (re.compile(r"(?i)([?&](?:sig|signature|x-amz-[\w-]+)=)[^&\s]+"), r"\1***"),
    (re.compile(r"\b(?:hf_|ghp_|gho_|github_pat_|glpat-|sk-|xox[abp]-)[\w-]{8,}|\bAKIA[0-9A-Z]{16}\b"), "***"),
)


def redact(text: str) -> str:
    """Return the text with user parts of URLs, tokens, keys and passwords replaced by `***`."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
