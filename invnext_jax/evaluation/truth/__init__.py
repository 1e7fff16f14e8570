"""Ground truth of videos, aligned with the frames of the evaluation clip.

All readers implement `truth.Truth`: `load(row)` returns the clip and its ground truth as arrays,
with the same frames, crop and size.

    truth           the interface of the readers, and batches of valid rows
    geometry        crops of boxes, points and label images
    images          folders of images, depth images, windows of frames
    clip_reader     the evaluation clip of a manifest row
    world           rendered and written synthetic worlds
    depth_folders   depth of ScanNet and KITTI
    masks, joints   masks of DAVIS, joints of JHMDB; matlab_file reads the files of the joints
    boxes_jsonl     files with boxes of tracked objects
    box_tracks      windows of videos with these boxes; track_windows selects them
    epic_kitchens   clips before an action
    captions        captions of videos
    baselines       reference values without an encoder: chance levels and constant predictions
"""
