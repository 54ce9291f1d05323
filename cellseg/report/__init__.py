"""What a person looks at: one HTML page about a few runs, or a PNG with true and predicted outlines.

:func:`cellseg.report.page.write_page` and :func:`cellseg.report.picture.write_picture_of_runs` are the doors; the
other modules read the runs, say in words what happened, and draw.
"""
