"""The R-CNN family.

mask_rcnn                                     the whole network, top to bottom; start here
c4, cascade, pointrend, mask_scoring          the variants, each replacing one step
openvino_rcnn, openvino_parts                 the same network with layers that OpenVINO computes, and these layers
resnet, fpn, rpn, heads                       the parts
regions, losses, views                        what passes between the parts; losses; test-time augmentation
"""
