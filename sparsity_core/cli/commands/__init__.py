"""One file a command. Its first line is the command's help; `options(parser)` declares its options, and
`answer(options)` returns what it found, as JSON values and as text.
"""
