"""Placeholder until merged."""


def fresh(uuid: str, driver: str) -> bool:
    """Whether checked."""
    return False
