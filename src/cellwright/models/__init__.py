"""Networks and the classical baseline.

contract    the protocols that all models implement
build       from a recipe to a network
rcnn        Mask R-CNN and its variants
dense       U-Nets whose output maps are decoded into objects
classical   threshold and watershed, without training
weights     model folders, and weights of other frameworks
export      ONNX
layers      the convolutions that all networks share
"""
