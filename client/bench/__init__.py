"""``spread bench``: what a cluster of this machine does, and how far that is from a bare loop of ``send()``.

    command     options; puts the rest together
    plan        which cases are measured, from the options
    cluster     the shards: started here, or pointed at
    compiler    the C programs are compiled when they are needed
    engine      their processes: the load generator, and the bare loop it is compared with
    protocol    what the load generator is told and what it answers
    generator   the same generator in plain Python, for machines without a compiler
    measuring   one case: server and bare loop in turn
    sweep       the same case with ever more channels, idle clients or shards
    figures     medians and ratios
    report      tables and JSON
    charts      pictures

The C programs are ``generator.c`` (with ``clients.c`` and ``formats.c``) and ``loop.c``.
"""
