"""Prediction of images of any size, tile by tile.

Network pixels are those of the image as the network sees it: the source resized by one scale. They exist only as
windows. `grid` cuts them into tiles, `resample` computes windows of them, `seams` decides which tile's copy of an
object is kept, and `tile_file` stores what a tile found.
"""
