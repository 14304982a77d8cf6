"""Take credentials out of text before it is kept or shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PATTERNS = (
    (re.compile(r"(?<=://)\S{1,4000}@"), "***@"),
    (re.compile(r"(?<![\w/:*])[\w.+-]{1,300}+:[^\s:/]+@(?!sha\d)(?=[\w.-])"), "***@"),
    (re.compile(r"(\b(?:curl|wget|http)\s(?:[^|;&\s]{1,200}\s+){0,20}?(?:-u|--user)[ =]?)[^\s:=]+:\S+"), r"\1***"),
    (re.compile(r"(\b(?:mysql|mariadb)[\w-]{0,20}\s(?:[^|;&\s]{1,200}\s+){0,20}?-p)[^\s-]\S*"), r"\1***"),
    (re.compile(r"(?i)\b(authorization\s*[:=]\s*)(?:bearer\s+|basic\s+)?\S+"), r"\1***"),
    (
        re.compile(
            r"(?i)([\w.-]{0,60}(?:passw(?:or)?d|secret|token(?!s\"?'?\s*[=:\s]\s*\d[\d.e+]*(?![\w-])|s\s+(?:in|per|of|and|at|a)\b)|api[_-]?key|access[_-]?key|credential)s?)(\"?'?\s*[=:]\s*|\s+)"
            r"(?!\s)(\"[^\"]*\"|'[^']*'|\S+)"
        ),
        r"\1\2***",
    ),
    (re.compile(r"(?i)([?&](?:sig|signature|x-amz-[\w-]+)=)[^&\s]+"), r"\1***"),
    (re.compile(r"\b(?:hf_|ghp_|gho_|github_pat_|glpat-|sk-|xox[abp]-)[\w-]{8,}|\bAKIA[0-9A-Z]{16}\b"), "***"),
)


_OPTION = re.compile(
    r"(?i)--?[\w-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|private[_-]?key|access[_-]?key|auth|credential)s?"
)
"""An option whose value, the next word, is secret."""
_SURROGATES = re.compile("[\ud800-\udfff]")


def redact_argv(argv: Sequence[str]) -> list[str]:
    """Return the words of a command without secrets: each by itself, and what follows an option such as `--token`."""
    out: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        count = before.lower().endswith("tokens") and re.fullmatch(r"\d[\d.e+]*", word)
        secret = _OPTION.fullmatch(before) and not count and not word.startswith("-")
        login = before in ("-u", "--user") and ":" in word and "curl" in argv[0]
        out.append("***" if secret or login else redact(word))
    return out


def redact(text: str) -> str:
    """Return the text with user parts of URLs, tokens, keys and passwords replaced by `***`, and without odd bytes.

    Words of a command line and names of files may hold bytes that are not UTF-8, which no JSON can.
    """
    text = _SURROGATES.sub("\ufffd", text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
