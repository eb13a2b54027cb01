"""Benchmarks: what a training step and an applied edit cost, in passes of the base model.

    python -m benchmarks.training_step [--path DIR] [--output FILE]
    python -m benchmarks.application [--path DIR] [--output FILE]

Every cost is also given in *units*. A unit is one plain forward and backward pass of the base model, with the gradients
of all its weights, on one edit text: what a method without frozen weights pays at least for one edit. Units are
measured between the other measurements, in CPU-seconds, so that a busy machine slows both sides alike.
"""
