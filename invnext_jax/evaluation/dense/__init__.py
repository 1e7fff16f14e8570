"""Evaluation of dense predictions: masks, points, depth and boxes.

truth_source       opens the ground truth of a data set by name
propagation        propagates the labels of the first frame by the similarity of tokens
first_frame        labels of the first frame on the grid of tokens, and predictions in pixels
video_propagation  encodes a video and propagates its labels
weighted_rows      rows of the results with standard errors over videos
"""
