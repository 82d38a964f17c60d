"""``spread bench``: what a cluster of this machine does, and how far that is from a bare loop of ``send()``.

    command     the options, and their help
    session     a whole benchmark: prepared, measured case by case, told
    plan        which cases the options ask for
    sweep       the same case with ever more channels, idle clients or shards
    measuring   one case: server and bare loop in turn
    cluster     the shards: started here; where: or running already
    processes   the CPU and memory they use, and whether they live; cpus: where they run
    engine      the load generator's process, and that of the bare loop
    compiler    these are C, and compiled when they are needed
    protocol    what a load generator is told and what it answers
    generator   the same generator in Python, for machines without a compiler; with speaking (its clients),
                payload and histogram
    figures     medians and ratios
    report      tables and JSON; charts: pictures; progress: what is being done

The C programs are ``generator.c`` (with ``clients.c`` and ``formats.c``) and ``loop.c``.
"""
