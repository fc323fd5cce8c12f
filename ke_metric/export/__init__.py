"""Export: an embedder or a classifier as a file that other runtimes run, compared with PyTorch before it is kept.

`export` writes the folder, `onnx_file` the files, `verification` says how far one is from its network, `record` what
export.json says. onnx and onnxruntime, which are an extra, are imported only when they are needed.
"""
