"""A stored Share model as one HTML page that asks nobody for anything (extra ``report``).

::

    read_facts  store -> Facts   plain values: what is kept, sizes, history, similarity
    render      Facts -> text    the page; the same facts give the same bytes
    write_report  both, to a file
"""

from sharespace.report.facts import Facts, read_facts
from sharespace.report.page import WrittenReport, render, write_report
from sharespace.report.warnings import Notice, notices

__all__ = ["Facts", "Notice", "WrittenReport", "notices", "read_facts", "render", "write_report"]
