"""The report: what a run found, as data. Its JSON Schema is generated from these types."""

from __future__ import annotations

import msgspec

from .bound import Bound
from .change import Change, Finding
from .device import Device, Runtime
from .law import LawReport
from .measurement import Measurement, ProtocolFields
from .verdict import Verdict

SCHEMA_VERSION = 1


class TypeShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one tensor type holds of an artifact."""

    tensors: int
    weights: int
    bytes: int


class ArtifactFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an artifact is and where it came from; no paths of this machine.

    Attributes:
        file: The file's name.
        sha256: Digest of the file.
        size: Its length in bytes.
        origin: ``quantized`` here, ``candidate`` (given ready-made) or ``source`` (taken as is).
        architecture: ``general.architecture`` of the header.
        file_type: The file type the header declares, None if none or unknown.
        weights: Number of weights.
        types: Tensor types and what they hold.
        source: Where the source is, in words; empty for candidates.
        source_sha256: Digest of the source.
        source_type: The source's own file type.
        source_quantized: The source is quantized already: loss is defined, laws are not.
        quantized_by: The runtime that quantized it, if that happened here.
    """

    file: str
    sha256: str
    size: int
    origin: str
    architecture: str
    file_type: str | None = None
    weights: int = 0
    types: dict[str, TypeShare] = {}
    source: str = ""
    source_sha256: str = ""
    source_type: str = ""
    source_quantized: bool = False
    quantized_by: str = ""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One verdict: what one item asserted of one cell.

    Attributes:
        check: The check's id; for a user's own test its node id without the parameters.
        cell: The cell's id; of a law the model or family that it is held for.
        verdict: The verdict.
        quantity: What was judged; empty where nothing was measured.
        value: Its value.
        unit: Its unit.
        bound: What it was held against.
        message: The verdict in words.
        advisory: The verdict decides nothing.
        outcome: What the item ended with for it: passed, failed, skipped, or xfailed (waived).
        waived: Why the failure is accepted, and until when; empty if it is not.
        finding: Against what it was before: identical, changed, better, no worse, worse, undecided;
            None where nothing earlier is at hand.
        change: What it was before, and what it became; None where nothing earlier is at hand.
        node: The test item's id, for people; results are keyed by check, cell and quantity.
    """

    check: str
    cell: str
    verdict: Verdict
    quantity: str = ""
    value: float | None = None
    unit: str = ""
    bound: Bound | None = None
    message: str = ""
    advisory: bool = False
    outcome: str = "passed"
    waived: str = ""
    finding: Finding | None = None
    change: Change | None = None
    node: str = ""


class GroupReport(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of question of a set: how many, how many right, and Wilson's 95 % interval."""

    n: int
    right: int
    lower: float
    upper: float


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell answered to a set of questions.

    Attributes:
        name: The set.
        digest: Digest of the items that were asked, in their order.
        normalisation: What log-likelihoods of choices were divided by: none, bytes or tokens.
        n: Items asked.
        right: Items answered right.
        accuracy: Their share.
        lower: Lower end of Wilson's 95 % interval of the accuracy.
        upper: Upper end.
        chance: The accuracy of guessing.
        mass: Mean share of probability on right choices, of items scored so (MC2).
        groups: The same by kind of question.
        lost: Items that the reference has right and the cell wrong; None for the reference.
        gained: Items that the reference has wrong and the cell right.
        mcnemar_p: The exact two-sided McNemar p of lost against gained.
        detectable: The smallest change of accuracy that this test would call in 80 % of cases, if
            as many items flip.
    """

    name: str
    digest: str
    normalisation: str
    n: int
    right: int
    accuracy: float
    lower: float
    upper: float
    chance: float
    mass: float | None
    groups: dict[str, GroupReport]
    lost: int | None
    gained: int | None
    mcnemar_p: float | None
    detectable: float | None


class ItemReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one test item sends to whoever writes the report, of a cell or of a law's subject."""

    cell: str
    results: tuple[CheckResult, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    artifact: ArtifactFacts | None = None
    protocols: dict[str, ProtocolFields] = {}
    logits: dict[str, tuple[str, ...]] = {}
    predecessor: ArtifactFacts | None = None
    tasks: tuple[TaskReport, ...] = ()
    system_info: str = ""
    laws: tuple[LawReport, ...] = ()


class CellReport(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's artifact, measurements and overall verdict: the worst of its checks'.

    ``predecessor`` is the artifact that it was compared with, None without ``--ondevice-against``;
    ``finding`` is what that comparison as a whole comes to. ``logits`` are digests of the logits of
    the first windows, by the ISA class that computed them. ``tasks`` is one entry per set of
    questions that was asked.
    """

    id: str
    model: str
    method: str
    reference: bool
    verdict: Verdict | None
    artifact: ArtifactFacts | None
    measurements: dict[str, Measurement]
    predecessor: ArtifactFacts | None = None
    finding: Finding | None = None
    logits: dict[str, tuple[str, ...]] = {}
    tasks: tuple[TaskReport, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run.

    Attributes:
        schema_version: Version of this layout.
        generator: Name and version of the program that wrote it.
        created: When, ISO 8601 in UTC.
        complete: False if the run was interrupted, or stopped at a failure, before its end.
        device: The machine that measured.
        tier: The class of machines that it belongs to: speed is compared within one.
        board: This one machine of the tier, by a salted digest or a given name.
        runtime: The inference runtime.
        settings: The options that decide what was measured.
        cells: One entry per cell, in matrix order.
        checks: One entry per verdict.
        laws: One entry per law and model or family.
        protocols: Protocol digests and what they stand for.
        notes: What a reader has to know, one sentence each.
    """

    schema_version: int
    generator: str
    created: str
    complete: bool
    device: Device
    tier: str
    board: str
    runtime: Runtime
    settings: dict[str, str]
    cells: tuple[CellReport, ...]
    checks: tuple[CheckResult, ...]
    laws: tuple[LawReport, ...] = ()
    protocols: dict[str, ProtocolFields]
    notes: tuple[str, ...]
