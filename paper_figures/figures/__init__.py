"""One module for each figure, found by its name; `non_iid.py` is the example to read before writing another.

A module states what it needs and gives three functions; the pipeline does the rest: runs what is missing, checks that
there is something to draw, sets the style, writes PDF, PNG, CSV and caption, and adds the claims and the provenance.

    EXPERIMENTS   names of experiments of `plan.experiments`, whose runs are shown; empty for benchmarks
    NEEDS         what is missing where nothing can be drawn, for the error
    TITLE         heading of the caption
    transform     (results) -> a frame of the rows that are drawn, or several in a tuple; they are the CSV
    draw          (*frames) -> a figure of matplotlib
    caption       (results, *frames) -> what is drawn and how to read it, and lines by heading
"""
