"""Pictures and figures. No torch.

draw            outlines of objects on their image; contact sheets
error_picture   the errors of a prediction, by kind
suspect_sheet   suspicious annotations
curves          the training curves of a run; compare_figure: those of several runs
display         8-bit RGB of an image of any type
colours         colours and line styles; legend: text in pictures
"""
