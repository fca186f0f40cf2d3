"""Figures of a Trace: a table first, then a Plotly figure drawn from it, themed for the screen or for paper."""
