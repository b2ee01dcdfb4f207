"""The report of a run or of several runs: one self-contained HTML page and its figures."""

from icrl.report.build import build_report

__all__ = ["build_report"]
