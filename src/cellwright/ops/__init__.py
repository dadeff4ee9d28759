"""Tensor operations that know neither recipes nor networks.

boxes, nms, weighted_boxes   boxes: encoding, overlap, anchors; suppression; fusion
assign                       anchors and proposals to objects, and the sample for a loss
roi, points, paste           pooling and mask targets; values at points; masks into the image
batch                        the tensors of one training step
ranks                        sums over the processes that share a batch; batch norm over all of them
"""
