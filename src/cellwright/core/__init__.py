"""The types that all packages share, and what they need: errors, files, progress. No torch and no recipes.

image       `Image`: pixels, channel names, pixel size
masks       `MaskSet`, `SoftMasks`: the masks of one image as small crops; polygons, rle: their conversions
instances   `Instances`: the objects of one image; coco: decoding of COCO annotations
dataset     `Dataset`, `Sample`: images with objects that are read on demand
scores      score thresholds; candidates: why a detector removed an object
geometry    coordinate conventions, operations on boxes
errors      the errors that a user can fix, and the form of their messages
cache       the folder for files that can be made again; jit: compiling kernels
interrupts  signals that stop the program
files       atomic writing, JSON; unpickle: a restricted unpickler
progress    how long-running functions report their progress; table, text: tables and wording of results
"""
