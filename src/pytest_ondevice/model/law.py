"""Laws: relations across the cells of a model or of a family, and what a run found of them."""

from __future__ import annotations

import msgspec

from .verdict import Verdict


class Figure(msgspec.Struct, frozen=True):
    """A quantity's value, and its standard error where one is known."""

    value: float
    error: float | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What laws are told of one cell.

    Attributes:
        cell: The cell's id.
        model: Name of the model.
        method: The method, with its variants: ``Q4_K_M``, ``Q4_K_M+imatrix``.
        reference: It is the cell that loss is measured against.
        figures: Its figures by the name of the quantity.
        weights: Number of the model's weights.
    """

    cell: str
    model: str
    method: str
    reference: bool = False
    figures: dict[str, Figure] = {}
    weights: int = 0


class LawPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One cell in the picture of a law.

    Attributes:
        cell: The cell's id.
        x: Where it lies on the x axis.
        y: The measured figure.
        error: Standard error of ``y``.
        fitted: What the law says ``y`` should be, or the largest (smallest) value it allows.
        residual: ``y - fitted``.
        left_out: Why the point does not take part; empty if it does.
    """

    cell: str
    x: float
    y: float
    error: float | None = None
    fitted: float | None = None
    residual: float | None = None
    left_out: str = ""


class LawReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run found of a law.

    Attributes:
        law: The law's name: ``memory``, ``file_size``, ``decode_time`` ...
        subject: The model or the family it was held for.
        verdict: Pass, fail, inconclusive, or unsupported where points are missing.
        message: The verdict in words, with the figures it rests on; what is missing.
        anomalies: One sentence for each deviation, naming the cells involved.
        warns: It warns only: anomalies do not turn it red.
        x: The quantity on the x axis.
        x_unit: Its unit.
        y: The quantity on the y axis.
        y_unit: Its unit.
        y_log: The y axis is meant to be logarithmic.
        points: The cells.
        slope: Slope of the fitted line, in y_unit/x_unit (of ln y where ``y_log``).
        slope_error: Its standard error.
        intercept: Intercept of the fitted line.
        intercept_error: Its standard error.
        r2: Share of the variance that the line explains.
        crossover: For the threshold: the measured BPW from which on the bigger model is as good.
        figures: Further figures by name: fits with and without F16, largest residuals.
    """

    law: str
    subject: str
    verdict: Verdict
    message: str
    anomalies: tuple[str, ...] = ()
    warns: bool = False
    x: str = ""
    x_unit: str = ""
    y: str = ""
    y_unit: str = ""
    y_log: bool = False
    points: tuple[LawPoint, ...] = ()
    slope: float | None = None
    slope_error: float | None = None
    intercept: float | None = None
    intercept_error: float | None = None
    r2: float | None = None
    crossover: float | None = None
    figures: dict[str, float] = {}
