"""Comparisons: what became of every cell, from an older report or set of baselines to a newer."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .change import Change, Finding
from .verdict import Verdict

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """What is compared: the two sides are of one kind."""

    REPORT = "report"
    BASELINES = "baselines"


class Presence(StrEnum):
    """On which side a cell is."""

    BOTH = "both"
    OLD = "only old"
    NEW = "only new"


class Side(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the two, described. Baselines of several machines or runtimes name them all.

    Attributes:
        path: The file or folder, as it was given.
        generator: Name and version of the program that wrote a report; empty for baselines.
        created: When the run was, or the first and the last day on which a section was recorded.
        complete: False if the run was interrupted.
        device: The machine: its processor.
        tier: The class of machines it belongs to; empty where it is not known.
        board: This one machine of the tier.
        runtime: The inference runtime and its version.
    """

    path: str
    generator: str = ""
    created: str = ""
    complete: bool = True
    device: str = ""
    tier: str = ""
    board: str = ""
    runtime: str = ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One field that the two sides do not have in common, each side's value in words."""

    field: str
    old: str
    new: str


class CellComparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one cell.

    Attributes:
        id: The cell's id; of baselines that bind on one tier only, with the tier.
        presence: Whether both sides have it.
        old_verdict: Its verdict in the old report; None for baselines or where none was given.
        new_verdict: The same of the new report.
        finding: What the changes that decide come to; None where nothing could be compared.
        decided_by: The quantity that the finding comes from and that changed most; empty where it
            comes from the verdicts, or where there is no finding.
        evidence: The finding in words.
        changes: What decides, a quantity each.
        advisory: What is shown and decides nothing: speeds of different runs.
        added: Quantities that only the new side has.
        differences: Fields of protocols that keep quantities from being compared, and the artifact.
    """

    id: str
    presence: Presence
    old_verdict: Verdict | None = None
    new_verdict: Verdict | None = None
    finding: Finding | None = None
    decided_by: str = ""
    evidence: str = ""
    changes: tuple[Change, ...] = ()
    advisory: tuple[Change, ...] = ()
    added: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two reports, or two sets of baselines, cell by cell.

    Attributes:
        schema_version: Version of this layout.
        kind: What was compared.
        old: The older side.
        new: The newer side.
        finding: What the cells that both have come to; None if there are none.
        differences: What else differs: machine, runtime, settings.
        cells: One entry per cell, in the order of the new side, then those that only the old has.
        notes: What a reader has to know, one sentence each.
    """

    schema_version: int
    kind: Kind
    old: Side
    new: Side
    finding: Finding | None
    differences: tuple[Difference, ...]
    cells: tuple[CellComparison, ...]
    notes: tuple[str, ...]
