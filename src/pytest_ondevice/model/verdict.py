"""Verdicts: the closed set of answers that a check can give."""

from enum import StrEnum


class Verdict(StrEnum):
    """What a check found.

    Attributes:
        PASS: The measurement is within its bound, beyond what chance explains.
        FAIL: The measurement is beyond its bound, by more than chance explains.
        INCONCLUSIVE: The measurement is too uncertain to say either; more data is needed.
        INVALID: The measurement was disturbed, so that its value means nothing.
        BLOCKED: What the check needs died before it could be measured.
        UNSUPPORTED: The device or runtime cannot measure this quantity.
        NO_BASELINE: There is nothing on record to compare the measurement with.
    """

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    BLOCKED = "blocked"
    UNSUPPORTED = "unsupported"
    NO_BASELINE = "no baseline"
