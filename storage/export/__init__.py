"""Taking the record away as data: eight formats, filtered as on the review desk, redacted unless told otherwise.

`formats` says what there is, `walk` finds the runs, `job` makes a stream of bytes of them, `file` a file that can be continued,
with a manifest beside it. `storage.own_import` reads the project's own format back.
"""

from storage.export.file import write_export
from storage.export.formats import FORMATS
from storage.export.job import Export, file_name
from storage.export.walk import Selection

__all__ = ["FORMATS", "Export", "Selection", "file_name", "write_export"]
