"""One module for each table, found by its name: as a figure's, see `paper_figures.figures`, but for `show`.

show          (*frames) -> the table as text, a frame of strings, which is written as Markdown and LaTeX
"""
