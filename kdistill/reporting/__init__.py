"""`kdistill report` and `kdistill plot`: a finished run, sweep, comparison or study as one page, or as single figures.

Folder -> `Findings` (folders, runs, comparisons, studies) -> `Drawing`s (drawings, and the modules that draw) -> page.
"""
