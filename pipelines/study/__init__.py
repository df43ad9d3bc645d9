"""The study of what looking is worth (docs/study.md): which runs it has, their result files, and the page made of them.

`make study` calls it as `python -m pipelines.study`.
"""
