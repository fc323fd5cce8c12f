"""Serving: an index, or a classifier, behind HTTP.

A request passes `server` (connections), `routing` (who answers), `exchange` (who may ask, uploads), `pictures`
(decode, batch) and `service` (embed, search); `api` says what can be asked and what is answered.
"""
