"""Loops in C++ for a CPU, made on the machine they run on: attention, what stands between products, training's own."""
