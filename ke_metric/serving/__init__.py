"""Serving: an index behind HTTP, for programs that are not Python or not on this machine.

A request passes the door (`access`), its body is read (`uploads`), the picture is decoded in memory (`decoding`),
waits for others to be embedded and searched with (`batching`), and is answered (`endpoints`, `application`).
`service` owns the index, `server` the process. Imports retrieval.
"""
