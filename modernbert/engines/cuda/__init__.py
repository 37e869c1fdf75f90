"""Triton kernels for CUDA: attention with RoPE, residual LayerNorm, GeGLU, cross entropy, optimizer step.

Each is a differentiable function of tensors. A kernel is compiled once for the shape of a model, not for each number of
tokens: arguments that change from batch to batch are in `do_not_specialize`. Import these modules only to run a model
on a GPU: importing Triton takes time, and torch installs it for CUDA alone.
"""
