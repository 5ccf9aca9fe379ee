"""Reports of finished evaluations: Markdown, and an HTML page with plots; several versions of weights are compared."""

from engine.evaluation.reports.stored import Stored, stored
from engine.evaluation.reports.write import write_report

__all__ = ["Stored", "stored", "write_report"]
