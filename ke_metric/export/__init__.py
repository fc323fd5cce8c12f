"""Export: an embedder as a file that other runtimes run, compared with PyTorch before anybody relies on it.

`export` writes the folder, `onnx_file` and `torch_program` the two kinds of file, `quantization` makes one of 8-bit
integers, `verification` and `recall_cost` say how far it is from the network it was made of. Imports lineage,
evaluation, networks and retrieval; onnx and onnxruntime, which are an extra, only when they are needed.
"""
