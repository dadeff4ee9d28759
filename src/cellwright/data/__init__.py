"""Datasets, from files to training batches.

formats         one file per annotation format
images          image files
check, info, suspects, split, merge    what the commands ``cellwright data ...`` do
synthetic       synthetic images with ground truth
network_input   from an image to the input of a network: channels, normalisation, size
labels          the objects of a training sample as label layers
augment         which random changes are drawn; warp: how pixels move; colour: how intensities change
views           sizes and orientations for test-time augmentation
sampling, decode, loader    the samples of a step, read from files, in batches (the loader alone imports torch)
"""
