"""Evaluation of predictions against ground truth. Definitions of all metrics: docs/metrics.md. No torch.

evaluate         predictions and ground truth in, a `Report` out: `evaluate_pairs` for objects in memory,
                 `evaluate_images` for paired datasets
pairing          pairs two datasets by image, and gives both the same classes
matching         overlaps between the objects of one image; one-to-one matching
coco             average precision as in the COCO API
label_metrics    metrics without scores: counts, panoptic quality, AJI, Dice, boundary IoU
errors_by_kind   merged, split, missed, spurious, ...
ranking          rank correlation and calibration of scores
lost_recall      why objects were missed
data             the metrics that can be requested; what values and tables are computed from
values, tables   the values by name, with reasons and notes; the tables
report           `Report` and its files
bootstrap        confidence intervals, and the comparison of two predictions
thresholds       tuning of score thresholds, minimum areas and calibration
"""
