"""``spread tables``: sheets of a spreadsheet become tables that shards and clients read (docs/tables.md).

``sheets`` reads workbooks, ``kinds`` and ``rules`` know what a column may hold, ``checking`` makes tables or
tells all that is wrong, ``writing`` puts them into a directory.
"""
