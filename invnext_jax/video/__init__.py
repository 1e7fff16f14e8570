"""Containers, packets and frames of videos: demuxing, frame numbers and conversion of frames."""
