"""Recipes: one validated, frozen section per topic. Every default of a recipe is defined here, once. No torch.

recipe        `Recipe`, and recipes as YAML files: find, extend, override, dump
input         sections ``input``, ``data`` and ``augment``
model_*       section ``model``, one file per family: rcnn, dense, classical
training      section ``train``
conventions   where torchvision and Detectron2 differ
section       the base class and field types of all sections
"""
