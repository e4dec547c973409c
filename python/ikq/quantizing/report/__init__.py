"""What a quantization did to every tensor: as records, as a table, as JSON and as a page with plots.

records.py   a record per tensor, totals by type and kind: `make_report`
table.py     the table at the end of a run
plots.py     drawings as SVG
page.py      an HTML page that needs nothing else
files.py     JSON or HTML, by the name of the file: `write_report`
"""

from ikq.quantizing.report.files import report_kind, write_report
from ikq.quantizing.report.records import Group, Report, TensorRecord, make_report
from ikq.quantizing.report.table import table_lines

__all__ = [
    "Group",
    "Report",
    "TensorRecord",
    "make_report",
    "report_kind",
    "table_lines",
    "write_report",
]
