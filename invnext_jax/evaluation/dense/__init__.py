"""Evaluation of dense predictions: masks, points, depth and boxes.

truth_source       opens the ground truth of a data set by name
propagation        propagates the labels of the first frame by the similarity of tokens
first_frame        converts labels of the first frame to the token grid, and predictions to pixels
video_propagation  encodes a video and propagates its labels
truth_clips        training clips with ground truth
head_fitting       trains and applies heads on the tokens of a frozen encoder
weighted_rows      makes result rows with standard errors over videos
"""
