"""Training a network: reproducible, resumable, with validation. `loop.train` is the whole procedure.

loop         validate, save a checkpoint, take a step, until the end
step         one optimiser step: losses, gradient, accumulation, mixed precision
distributed  several processes that share every batch: start, messages, failures
schedule     the learning rate of every step; steps, epochs and percentages of a recipe
pace         how long steps and evaluations take; the time limit of a call
precision    what train.precision: auto means on a device
slow_steps   a warning for steps that take far longer than their arithmetic
optimiser    parameter groups and gradient clipping
state        network, optimiser and averaged weights in training
checkpoint   the same on disk, with the best model; verified
validation   metrics on the validation images, the best model, early stopping
run_folder   the files of a run; metrics.json
run_output   starting, resuming, keeping and replacing a run
logging      log.csv, TensorBoard, progress on the terminal
environment  versions, device, threads, deterministic algorithms, signals
"""
