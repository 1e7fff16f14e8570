"""Zero-shot classification and video-text retrieval by locked-image tuning (LiT).

    python launch/evaluate.py --config=configs/eval/tasks/zero_shot.py:tiny --checkpoint=runs/s2 \
        --workdir=runs/e2

The base variant has the values of InternVideo2's small CLIP models, which the paper follows
(Tables 9 and 10), for a folder of SigLIP 2 or CLIP as text tower. k400_zero_shot.py,
ssv2_multiple_choice.py and msrvtt_retrieval.py are based on it.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base."""
    config = linear_probe.get_config(variant)
    config.evaluators = ("text_alignment",)
    config.text = ml_collections.ConfigDict(
        {
            # Folder of a SigLIP, SigLIP 2 or CLIP model in the format of transformers, with its
            # tokenizer.json. "": a small text tower with random parameters for the words of the
            # captions (the 65,536 most frequent ones), which needs train_text.
            "encoder": "",
            # Whether the text tower is also trained. The video encoder is always frozen.
            "train_text": False,
            # Files of captions of both splits (docs/ground_truth.md), relative to `data.root`. "":
            # the file <manifest>.captions.jsonl next to the manifest. Rendered worlds need no file.
            "train_captions": "",
            "val_captions": "",
            # Whether all captions of a video are joined into one text (ActivityNet, DiDeMo).
            "join": False,
            # File with candidate captions of each held-out video (SSv2-MC). "": none.
            "choices": "",
            # Prompts of a class; {} is the name. The vector of a class is the mean of its prompts.
            # The classes of the synthetic world have their own prompts.
            "templates": ("{}", "a video of {}.", "a person is {}.", "a video of a person {}."),
            # Workdir of an evaluation with the same encoder, training pairs and options, whose
            # trained alignment is used. "": an alignment is trained.
            "alignment": "",
            # Input of the projector. "attention": an attention pool on all tokens, which is trained
            # and starts as the pool of the checkpoint, if it has one. "pool", "mean", "frames" and
            # "class": frozen features, see `poolings`.
            "pooling": "attention",
            "pool_width": 768,  # Width of the pool if the checkpoint has none.
            "pool_heads": 16,  # Attention heads of this pool; must divide the encoder's width.
            # Whether new clips are sampled in each epoch with the options in `data`; the encoder
            # then runs in each step. False: its output is stored (see `features.max_gb`).
            "augment": True,
            "loss": "info_nce",  # "info_nce" (as in CLIP) or "sigmoid" (as in SigLIP).
            # Initial temperature of the logits. It is learned and never less than 0.01.
            "temperature": 0.01,
            "learning_rate": 4e-4,  # Peak learning rate of AdamW with betas 0.9 and 0.98.
            "weight_decay": 0.2,
            "batch_size": 2048,  # Pairs of videos and captions per step.
            "epochs": 5.0,  # Passes over the training videos.
            "warmup_epochs": 0.6,  # Epochs of linear warm-up, followed by a cosine decay to 0.
        }
    )
    config.data.frames = 8
    if variant == "tiny":
        config.text.update(
            train_text=True,
            pooling="frames",
            augment=False,
            temperature=0.07,
            learning_rate=3e-3,
            weight_decay=0.01,
            batch_size=128,
            epochs=60.0,
            warmup_epochs=2.0,
        )
    return config
