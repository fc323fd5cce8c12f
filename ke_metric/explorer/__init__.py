"""The explorer: a page in the browser that shows what pictures find, network beside network.

`collection` says what there is to be shown, of a lineage or an index; `exploration` answers; `application` speaks
HTTP.
"""
