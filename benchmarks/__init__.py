"""Benchmarks: what a training step and an applied edit cost, in passes of the base model.

    python -m benchmarks.training_step [--path DIR] [--output FILE]
    python -m benchmarks.application [--path DIR] [--output FILE]
    python -m benchmarks.growth [--output FILE]

Every cost is also given in *units*. A unit is one plain forward and backward pass of the base model, with the gradients
of all its weights, on one edit text: what a method without frozen weights pays at least for one edit. Units are
measured between the other measurements, in CPU-seconds, so that a busy machine slows both sides alike.

Up to a third of a unit is the system handing out fresh memory for those gradients. A training step hardly pays that, so
with an allocator that keeps its memory the unit is cheaper and all ratios higher. Compare ratios of one allocator only.
"""
