"""Writes ground truth of the synthetic world in the layouts of published data sets."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from scipy import io as scipy_io

from invnext_jax.dataset_prep import waymo
from invnext_jax.synthetic_world.files import encode_mp4
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec

SPEC = WorldSpec("full", size=32, frames=20, split="val", clutter=1)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def widen(array, width):
    """Repeats the columns of frames [t h w ...], so that images are not square."""
    return np.repeat(array, width, axis=2)


def write_scannet(root, scenes=2, spec=SPEC):
    """Writes color images (as lossless PNG) and depth in millimeters."""
    names = [f"scene{number:04d}_00" for number in range(scenes)]
    for number, name in enumerate(names):
        clip, folder = render_clip(spec, number), root / "scans" / name
        millimeters = np.round(clip.depth.astype(float) * 1000).astype(np.uint16)
        for frame in range(spec.frames):
            save(folder / "color" / f"{frame}.png", clip.video[frame])
            save(folder / "depth" / f"{frame}.png", millimeters[frame])
    (root / "val.txt").write_text("\n".join(names) + "\n")
    return root


def write_scannet_splits(root, scenes=2, spec=SPEC):
    """Writes the lists and the scenes of both splits."""
    names = list((write_scannet(root, 2 * scenes, spec) / "val.txt").read_text().split())
    for split, part in (("train", names[:scenes]), ("val", names[scenes:])):
        (root / f"{split}.txt").write_text("\n".join(part) + "\n")


def write_kitti(root, drives=1, spec=SPEC, first=5, split="val", start=0):
    """Writes images that are twice as wide as high, and depth / 256 m of the inner frames."""
    for number in range(start, start + drives):
        drive = f"2011_09_26_drive_{number:04d}_sync"
        clip = render_clip(spec, number)
        video, depth = widen(clip.video, 2), widen(clip.depth.astype(float), 2)
        depth = np.round(depth * 256).astype(np.uint16)
        depth[:, ::2] = 0  # every second row is unknown
        raw = root / drive[:10] / drive / "image_02" / "data"
        truth = root / split / drive / "proj_depth" / "groundtruth" / "image_02"
        for frame in range(spec.frames):
            save(raw / f"{frame:010d}.png", video[frame])
            if first <= frame < spec.frames - 2:
                save(truth / f"{frame:010d}.png", depth[frame])
    return root


def write_davis(root, sequences=2, spec=SPEC):
    names = [f"sequence-{number}" for number in range(sequences)]
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for number, name in enumerate(names):
        clip = render_clip(spec, number)
        for frame in range(spec.frames):
            save(root / "JPEGImages" / "480p" / name / f"{frame:05d}.png", clip.video[frame])
            path = root / "Annotations" / "480p" / name / f"{frame:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(clip.ids[frame].astype(np.uint8))
            image.putpalette(palette)
            image.save(path)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "val.txt").write_text("\n".join(names))
    return root


def write_jhmdb(root, spec=SPEC, joints=15):
    """Writes two clips with random joints; returns the joints [2 j t], counted from 1."""
    rng, found = np.random.default_rng(0), {}
    for number, member in ((0, 2), (1, 1)):
        name, clip = f"clip_{number}", render_clip(spec, number)
        for frame in range(spec.frames):
            path = root / "Rename_Images" / "wave" / name / f"{frame + 1:05d}.png"
            save(path, widen(clip.video, 2)[frame])
        positions = rng.uniform([[[1]], [[1]]], [[[64]], [[32]]], (2, joints, spec.frames))
        path = root / "joint_positions" / "wave" / name / "joint_positions.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy_io.savemat(path, {"pos_img": positions, "scale": 1.0})
        found[name] = positions
        (root / "splits").mkdir(exist_ok=True)
        with (root / "splits" / "wave_test_split1.txt").open("a") as file:
            file.write(f"{name}.avi {member}\n")
    return found


def write_boxes(root, videos=2, spec=SPEC, fps=10.0, as_folder=False):
    """Writes mp4 files, or folders of images, and the boxes of the visible objects."""
    root.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(videos):
        clip, name = render_clip(spec, number), f"{number:06d}"
        if as_folder:
            for frame in range(spec.frames):
                save(root / name / f"{frame:06d}.png", clip.video[frame])
        else:
            name += ".mp4"
            (root / name).write_bytes(encode_mp4(clip.video))
        tracks = {}
        for k in range(spec.max_objects):
            frames = np.flatnonzero(clip.visible[:, k] > 0).tolist()
            boxes = (clip.boxes[frames, k] * spec.size).tolist()
            tracks[f"object {k}"] = {"frames": frames, "boxes": boxes}
        size = {"width": spec.size, "height": spec.size}
        lines.append(json.dumps({"video": name, "fps": fps, **size, "tracks": tracks}))
    (root / "tracks.jsonl").write_text("\n".join(lines) + "\n")
    return root / "tracks.jsonl"


def jpeg(image_hwc):
    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_waymo_segment(folder, name, clip):
    """Writes a clip in the columns of Waymo, with frames out of order and a second camera."""
    for part in ("camera_image", "camera_box"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    frames, size = clip.video.shape[:2]
    order = np.random.default_rng(0).permutation(frames).tolist()
    rows = [(t, camera) for t in order for camera in (1, 2)]
    images = {
        waymo.CAMERA: [camera for _, camera in rows],
        waymo.TIME: [10**15 + 100_000 * t for t, _ in rows],
        waymo.IMAGE: [jpeg(clip.video[t] if camera == 1 else 0 * clip.video[t])
                        for t, camera in rows],
    }  # fmt: skip
    parquet.write_table(pa.table(images), folder / "camera_image" / f"{name}.parquet")
    rows = [(t, k) for t, k in np.argwhere(clip.visible > 0).tolist()]
    corners = np.array([clip.boxes[t, k] * size for t, k in rows], float)
    center, extent = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    boxes = {
        waymo.CAMERA: [1] * len(rows),
        waymo.TIME: [10**15 + 100_000 * t for t, _ in rows],
        waymo.OBJECT: [f"object {k}" for _, k in rows],
        **{name: column for name, column in zip(waymo.BOX, [*center.T, *extent.T], strict=True)},
    }
    parquet.write_table(pa.table(boxes), folder / "camera_box" / f"{name}.parquet")


def write_waymo(root, segments=2, spec=SPEC):
    """Writes Parquet files of both splits."""
    for split, first in (("training", 0), ("validation", segments)):
        for number in range(first, first + segments):
            clip = render_clip(spec, number)
            write_waymo_segment(root / split, f"segment-{number}_with_camera_labels", clip)


EPIC_ROWS = {
    "train": [("P01_01", 10.0, 12.0, 0, 5), ("P01_01", 20.0, 21.0, 3, 5), ("P02_03", 0.5, 1, 0, 7)],
    "validation": [("P01_05", 65.25, 70.0, 3, 5), ("P01_05", 80.0, 81.0, 3, 7)],
}


def write_epic(root, rows=EPIC_ROWS):
    """Writes annotation files of EPIC-KITCHENS-100 and an empty folder of videos."""
    (root / "videos").mkdir(parents=True, exist_ok=True)
    for split, actions in rows.items():
        with (root / f"EPIC_100_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["narration_id", "video_id", "start_timestamp", "stop_timestamp"]
                + ["start_frame", "stop_frame", "verb_class", "noun_class"]
            )
            for number, (video, start, stop, verb, noun) in enumerate(actions):
                times = [f"00:{int(t // 60):02d}:{t % 60:05.2f}" for t in (start, stop)]
                frames = [int(start * 60), int(stop * 60)]
                writer.writerow([f"{video}_{number}", video, *times, *frames, verb, noun])
    return root


def write_videos(root, names, spec=SPEC):
    """Writes a clip of the world to each of these files, such as `videos/a.webm`."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode_mp4(render_clip(spec, number).video))


def write_kinetics(root, train=8, val=4):
    """Writes trimmed videos and the lists of Kinetics, with two classes."""
    (root / "annotations").mkdir(parents=True)
    names = ("abseiling", "playing guitar")
    rows = [(names[i % 2], f"id-{i:08d}", i, i + 10) for i in range(train + val)]
    write_videos(root / "videos", [f"{c}/{v}_{s:06d}_{e:06d}.mp4" for c, v, s, e in rows])
    for split, part in (("train", rows[:train]), ("val", rows[train:])):
        with (root / "annotations" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            writer.writerows([*row, split] for row in part)


def write_ssv2(root, train=8, val=4):
    """Writes videos and the lists of Something-Something v2, with two templates."""
    (root / "labels").mkdir(parents=True)
    templates = ["Putting [something] on a surface", "Opening [something]"]
    ids = {name.replace("[", "").replace("]", ""): str(i) for i, name in enumerate(templates)}
    (root / "labels" / "labels.json").write_text(json.dumps(ids))
    rows = [
        {"id": str(1000 + i), "label": "...", "template": templates[i % 2], "placeholders": []}
        for i in range(train + val)
    ]
    write_videos(root / "videos", [f"{row['id']}.webm" for row in rows])
    for split, part in (("train", rows[:train]), ("validation", rows[train:])):
        (root / "labels" / f"{split}.json").write_text(json.dumps(part))


def write_coin(root, train=8, val=4):
    """Writes videos and lists of lines "path class", with two classes."""
    (root / "annotations").mkdir(parents=True)
    names = [f"videos/{('ArcWeld', 'MakeTea')[i % 2]}/id-{i:08d}.mp4" for i in range(train + val)]
    write_videos(root, names)
    lines = [f"{name} {i % 2}\n" for i, name in enumerate(names)]
    for split, part in (("train", lines[:train]), ("test", lines[train:])):
        (root / "annotations" / f"{split}.txt").write_text("".join(part))


def write_captioned(root, split, videos, first=0, spec=SPEC):
    """Writes videos and their captions, of which the first video has two."""
    clips = [render_clip(spec, number) for number in range(first, first + videos)]
    names = [f"part/video{number:04d}.mp4" for number in range(first, first + videos)]
    for name, clip in zip(names, clips, strict=True):
        (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "videos" / name).write_bytes(encode_mp4(clip.video))
    texts = [clip.video_caption for clip in clips]
    rows = [{"video": v, "caption": text} for v, text in zip(names, texts, strict=True)]
    rows.append({"video": names[0], "caption": f"a clip of {texts[0]}"})
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(rows))


def write_choices(root, videos):
    """Writes three candidates for each of these videos, as SSv2-MC has them."""
    texts = ["opening something", "closing something", "holding something"]
    rows = [{"video": video, "caption": texts, "answer": n % 3} for n, video in enumerate(videos)]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "mc.json").write_text(json.dumps(rows))
