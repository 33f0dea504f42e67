"""What people see of results: one self-contained HTML page, Markdown, LaTeX, or data for other programs."""

from torchstone.bench.report.data import means_csv, to_csv, to_json
from torchstone.bench.report.latex import latex
from torchstone.bench.report.markdown import markdown
from torchstone.bench.report.page import html
from torchstone.bench.report.report import FORMATS, format_of, report_path, write, write_report

__all__ = [
    "FORMATS",
    "format_of",
    "html",
    "latex",
    "markdown",
    "means_csv",
    "report_path",
    "to_csv",
    "to_json",
    "write",
    "write_report",
]
