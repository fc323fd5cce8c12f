"""Serving: an index, or a classifier, behind HTTP.

A request passes `server` (connections), `application` (routes), `exchange` (who may ask, uploads), `batching` and
`service` (decode, embed, search); `api` says what can be asked and what is answered.
"""
