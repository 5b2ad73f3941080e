"""The report of an evaluation: one HTML file with everything in it, and the figures as JSON."""

from teramind.evaluate.report.folder import ReportFolder

__all__ = ["ReportFolder"]
