"""Procedural video world: an unlimited number of clips with labels, captions and ground truth.

`render.render_clip(spec, index)` is a pure function of its arguments. `files.write_world` writes
clips to disk as H.264 files with a manifest. The clips of a manifest named `world:...` (see
`urls`) are rendered when they are read and need no disk space.

The level "simple" (one bright shape on a nearly plain background, 8 directions) is for demos and
tests. The level "full" has digits, textures, parallax, distractors, occlusion and 10 motions. In
both levels, the motion can only be inferred from the order of the frames, not from a single frame.
The level "anticipation" has a cue in the first third that indicates the motion in the last third.

    spec        parameters and class names     digits      handwritten digits
    scene       labels and trajectories        captions    sentences about a clip
    render      pixels and ground truth        tokenizer   captions as token ids
    files       clips on disk                  urls        worlds rendered when they are read
    train_teacher   training of the image teacher for the demo
"""
