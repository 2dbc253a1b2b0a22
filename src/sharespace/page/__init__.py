"""A stored Share model as one HTML page that asks nobody for anything (extra ``report``).

::

    read_facts  store -> Facts   plain values: what is kept, sizes, history, similarity
    render      Facts -> text    the page; the same facts give the same bytes
    write       both, to a file
"""

from sharespace.page.facts import Facts
from sharespace.page.reading import read_facts
from sharespace.page.report import render
from sharespace.page.warnings import Notice, notices
from sharespace.page.write import Written, write

__all__ = ["Facts", "Notice", "Written", "notices", "read_facts", "render", "write"]
