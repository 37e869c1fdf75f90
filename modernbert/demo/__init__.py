"""The demo: real text found beside the interpreter, and what a small model learns from it."""
