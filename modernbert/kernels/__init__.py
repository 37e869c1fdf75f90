"""Kernels of this package for a GPU, in Triton: what stands between matrix products, and attention in a window.

Each is a function of tensors with its way back. A kernel is compiled once for a shape of model, not for each number of
tokens: what changes from batch to batch is named in `do_not_specialize`. Nothing here is imported before a model is to
run on a GPU, since Triton comes with torch for CUDA only, and its import takes time.
"""
