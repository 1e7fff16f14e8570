"""Linear probes of a frozen encoder, and baselines for comparison.

    python launch/evaluate.py --config=configs/eval/tasks/linear_probe.py:tiny \
        --checkpoint=runs/s2 --workdir=runs/e2

The sizes of the encoder are read from its checkpoint. The variant only sets the options of the
evaluation. Configs of other evaluations are based on this one and change `evaluators`.
"""

import ml_collections

from configs import common


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world, with baselines) or base."""
    config = ml_collections.ConfigDict()
    # Workdir of a pretraining run, an exported .safetensors file, or a folder in the published
    # format or in that of transformers. The flag --checkpoint also sets it.
    config.checkpoint = ""
    # Whether to evaluate a run's moving average instead of its parameters.
    config.ema = False
    # Checkpoints of a run to evaluate: "": the newest one; "all": all that are kept; or the numbers
    # of steps, separated by commas. launch/compare.py draws learning curves of them.
    config.steps = ""
    # Names from invnext_jax/evaluation/evaluators/registry.py, in the order in which they run. All
    # but the first are baselines, which run only with `controls`.
    config.evaluators = ("linear_probe", "pixel_baselines", "box_baselines", "supervised")
    # CSV file with `label_<task>` columns that is used to fit probes and baselines.
    config.train_manifest = ""
    # CSV file of the held-out videos that are used to measure all results.
    config.val_manifest = ""
    # Whether the two manifests may be the same file, to measure the fit on training videos.
    config.same_manifest = False
    # Label columns to use, without "label_". (): all columns that both manifests have.
    config.tasks = ()
    # Features of a clip. "mean": mean of all grid tokens; "frames": mean per frame, concatenated;
    # "pool": pooled output of the encoder; "class": class tokens, concatenated. Features that an
    # encoder does not have are left out.
    config.poolings = ("mean", "frames")
    # Seed of the split that selects the penalty, of random initialization and of random forests.
    config.seed = 0
    # Clips per forward pass.
    config.batch_size = 64
    # Features that are stored in the workdir.
    config.features = ml_collections.ConfigDict(
        {
            "max_gb": 100.0,  # Maximum size of the features of one encoder and split, in GB.
            "dtype": "float32",  # Type of the stored numbers: float32 or float16.
            # Crops of each held-out video whose probabilities a linear probe averages: 1 (center)
            # or 3 (center and both ends of the longer side).
            "views": 1,
        }
    )
    # Candidate values of C, the inverse penalty of the logistic regression. The value with the
    # best accuracy on held-out training videos is used.
    config.inverse_penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    # Nearest neighbors, for the evaluators "knn" and "few_shot".
    config.knn = ml_collections.ConfigDict(
        {
            "neighbors": (10, 20, 100, 200),  # Numbers of neighbors; few_shot uses the smallest.
            "temperature": 0.07,  # A neighbor votes with exp(cosine similarity / temperature).
            "shots": (1, 5, 10),  # Few-shot: labeled videos of each class.
            "draws": 5,  # Few-shot: random draws over which the accuracy is averaged.
        }
    )
    # Fraction of the training videos that is held out to select the penalty.
    config.held_out = 0.2
    # Linear probes of large features are trained in batches, with all combinations of learning
    # rates and weight decays at once. The combination that is best on held-out training videos is
    # then trained again on all training videos.
    config.streaming = ml_collections.ConfigDict(
        {
            "above_gb": 0.25,  # Size of the training features above which this solver is used.
            "epochs": 20,  # Passes over the training videos.
            "warmup_epochs": 2,  # Epochs of linear warm-up, followed by a cosine decay to 0.
            "batch_size": 1024,  # Videos per step.
            "learning_rates": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),  # Candidate peak rates of AdamW.
            "weight_decays": (0.0, 1e-2, 1e-1, 1.0),  # Candidate decoupled weight decays.
        }
    )
    # Whether to also evaluate the same encoder with random initialization, and to run the
    # baselines: first frame, bag of frames, ground-truth boxes and supervised training. They load
    # all videos into memory. If there are several evaluations on the same data, only one needs
    # them.
    config.controls = False
    # Trees of the random forests on ground-truth boxes.
    config.trees = 200
    # End-to-end training of the same encoder with labels, as a baseline.
    config.supervised = ml_collections.ConfigDict(
        {
            "steps": 0,  # Number of training steps. 0: the baseline is not run.
            "batch_size": 32,  # Clips per step.
            "learning_rate": 1e-3,  # Peak learning rate.
            "warmup_steps": 20,  # Steps of linear warm-up from 0.
            "weight_decay": 0.05,  # Weight decay.
        }
    )
    config.data = common.data()
    # 0: the size and frame count that the encoder was built for.
    config.data.update(size=0, frames=0, short_side=0)
    # Folder of the data set, to which the paths of manifests are relative. "": the current folder.
    config.data.root = ""
    if variant not in ("", *common.VARIANTS):
        raise ValueError(f"unknown variant {variant!r}: choose one of {common.VARIANTS}")
    if variant == "tiny":
        config.train_manifest = "data/world/train.csv"
        config.val_manifest = "data/world/val.csv"
        config.controls = True
        config.supervised.steps = 60
        config.data.update(workers=1, prefetch=32)
    return config
