"""What people see of a result: one self-contained HTML page, or Markdown."""

from torchstone.bench.report.report import markdown, report_path, write_report

__all__ = ["markdown", "report_path", "write_report"]
